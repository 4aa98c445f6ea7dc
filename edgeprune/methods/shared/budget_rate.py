"""The smallest rate of a filter-pruning method that holds a budget."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable

from edgeprune.errors import InputError
from edgeprune.graph import Graph
from edgeprune.methods.budget import Budget
from edgeprune.methods.shared.channel_choice import kept_counts, plan_of
from edgeprune.methods.shared.units import Prunable
from edgeprune.plans.costs import planned_macs, planned_params
from edgeprune.plans.plan import Plan


def within_budget(among: Prunable) -> Prunable:
    """The same units with the smallest rate that holds the request's budget; as they are if it has none.

    What --layer-rate sets stays as it is. InputError if no rate holds the budget.
    """

    def with_rate(rate: float) -> Prunable:
        return dataclasses.replace(among, request=dataclasses.replace(among.request, rate=rate))

    def plan_at(rate: float) -> Plan:
        """As costly as any plan of this rate: costs depend on how many filters stay, not on which."""
        at_rate = with_rate(rate)
        return plan_of([tuple(range(count)) for count in kept_counts(at_rate)], at_rate, "", {})

    budget = among.request.budget
    return with_rate(rate_for_budget(plan_at, among, budget)) if budget.is_given else among


def rate_for_budget(plan_at: Callable[[float], Plan], among: Prunable, budget: Budget) -> float:
    """The smallest rate whose plan holds the budget; InputError with what can be met if none does.

    `plan_at` gives the plan of a rate, whose cost must not rise with the rate. Plans differ only at rates
    d / size, size being a unit's, so that a bisection over these finds the smallest exactly.
    """
    rates = sorted({gone / unit.size for unit in among.units for gone in range(unit.size)})
    graph = among.graph

    def costs(rate: float) -> dict[str, float]:
        return shares_needed(plan_at(rate), graph)

    wanted = budget.shares

    def holds(rate: float) -> bool:
        needed = costs(rate)
        return all(needed[name] <= share for name, share in wanted.items())

    place = bisect.bisect_left(rates, True, key=holds)
    if place < len(rates):
        return rates[place]
    least = costs(rates[-1])
    missed = next(name for name, share in wanted.items() if least[name] > share)
    raise InputError(
        f"--budget {missed}={wanted[missed]:g} cannot be met",
        expected=f"{missed}={math.ceil(least[missed] * 1000) / 1000:g} or more, which rate {rates[-1]:.4g} needs",
        remedy="--include-first, --include-shortcuts, fewer --skip and --set coupling=coupled let more be thinned",
    )


def shares_needed(plan: Plan, graph: Graph) -> dict[str, float]:
    """What the network needs under a plan, as shares of the dense one: "macs" and "params"."""
    return {
        "macs": sum(planned_macs(plan, graph).values()) / graph.macs,
        "params": planned_params(plan, graph) / graph.params,
    }
