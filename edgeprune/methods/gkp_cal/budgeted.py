"""gkp-cal within a budget: each layer dense, thinner or in groups, whichever changes the outputs least in all.

Every choice is priced alone (`candidates`), one program decides (`allocation`), and a pass over the network then fits
all layers to what was decided, each on what it reads by then.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from edgeprune.errors import InputError
from edgeprune.graph import Layer
from edgeprune.io import progress
from edgeprune.methods.base import MethodInput, PruneRequest, dense_reason, nothing_to_prune
from edgeprune.methods.gkp_cal.allocation import Allocation, Allocator, Need
from edgeprune.methods.gkp_cal.candidates import GROUPS, Candidates, Search
from edgeprune.methods.on_images import Clock
from edgeprune.methods.shared.alignment import Grouping
from edgeprune.methods.shared.channel_choice import plan_of
from edgeprune.methods.shared.layer_times import relative_time
from edgeprune.methods.shared.units import Prunable, units
from edgeprune.plans.plan import LayerPlan, Plan

ROUNDS = 6
"""Of measuring the whole network, at most."""
FRONT = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3)
"""Shares for which the report shows what the best choice costs."""
CLOSE = 0.02
"""To what was asked, as a share of it, where no further round is run."""


@dataclass(frozen=True)
class Tried:
    """A choice, and what the network took with it."""

    allocation: Allocation
    plan: Plan
    cost: float
    """Estimated divergence of the outputs."""
    latency: float | None
    """Share of the dense network's."""


@dataclass(frozen=True)
class Decision:
    """What the budget led to."""

    chosen: Tried
    tried: tuple[Tried, ...]
    candidates: Candidates
    among: Prunable
    front: tuple[tuple[float, float], ...]
    """(share of the dense network, estimated divergence) of the best choices for other budgets of the same thing."""
    front_of: str


def decide(given: MethodInput, damping: float) -> Decision:
    """The structure of every layer; InputError for a budget that nothing meets, with the nearest that can be had."""
    among = units(given.graph, given.request, "coupled")
    groupings = {x.name: found for x in given.graph.layers if (found := _groupings(x, given.request))}
    if not among.units and not groupings:
        raise nothing_to_prune(given.graph, among.reasons, "be changed", "see --skip, --include-first")
    candidates = Search(given, among, damping).run(groupings)
    allocator = Allocator(among, candidates)
    return _Budgeted(given, among, candidates, allocator).decided()


class _Budgeted:
    def __init__(self, given: MethodInput, among: Prunable, candidates: Candidates, allocator: Allocator) -> None:
        self._given, self._among, self._candidates, self._allocator = given, among, candidates, allocator

    def decided(self) -> Decision:
        budget, clock = self._given.request.budget, self._given.clock
        if budget.latency_share(clock) is None:
            tried = [self._tried(self._fixed_needs(), None)]
        else:
            assert clock is not None, "a latency is asked"
            tried = list(self._timed(clock))
        name, need = next(iter(self._needs().items()))
        front = tuple(self._front(need))
        return Decision(self._nearest(tried), tuple(tried), self._candidates, self._among, front, name)

    def _front(self, need: Need) -> Iterator[tuple[float, float]]:
        whole = need.dense(self._given.graph)
        for share in FRONT:
            found = self._allocator.choose([dataclasses.replace(need, limit=share * whole)])
            if found is not None:
                yield float(found.needs[0] / whole), float(found.cost)

    def _needs(self) -> dict[str, Need]:
        """All that the budget limits, by name."""
        budget, clock = self._given.request.budget, self._given.clock
        found = {name: need for name, need in zip(self._fixed_names(), self._fixed_needs(), strict=True)}
        share = budget.latency_share(clock)
        return found if share is None or clock is None else {"latency": self._time_need(clock, share), **found}

    def _timed(self, clock: Clock) -> Iterator[Tried]:
        """Choices by estimated times, each measured, until what is measured is what was asked."""
        share = self._given.request.budget.latency_share(clock)
        assert share is not None
        correction = 1.0  # of the estimate
        for number in range(ROUNDS):
            need = self._time_need(clock, share / correction)
            tried = self._tried([*self._fixed_needs(), need], clock)
            assert tried.latency is not None
            progress.note(f"round {number + 1}: {tried.latency:.3f} of the dense latency, {share:g} was asked")
            yield tried
            if abs(tried.latency / share - 1) <= CLOSE:
                return
            correction = tried.latency / (tried.allocation.needs[-1] / need.dense(self._given.graph))

    def _tried(self, needs: list[Need], clock: Clock | None) -> Tried:
        found = self._allocator.choose(needs)
        if found is None and self._given.request.budget.is_wish:
            nearest = [dataclasses.replace(need, limit=self._allocator.least(need) * (1 + CLOSE)) for need in needs]
            found = self._allocator.choose(nearest)
        if found is None:
            raise self._unmet(needs)
        plan = plan_for(found, self._among, self._candidates, self._given.request)
        latency = clock.pruned_ms(plan) / clock.dense_ms if clock is not None else None
        return Tried(found, plan, found.cost, latency)

    def _nearest(self, tried: list[Tried]) -> Tried:
        share = self._given.request.budget.latency_share(self._given.clock)
        if share is None:
            return tried[-1]
        within = [one for one in tried if one.latency is not None and one.latency <= share * (1 + CLOSE)]
        return max(within, key=lambda one: one.latency or 0) if within else min(tried, key=lambda one: one.latency or 0)

    def _fixed_names(self) -> list[str]:
        budget = self._given.request.budget
        return [name for name, share in (("macs", budget.macs), ("params", budget.params)) if share is not None]

    def _fixed_needs(self) -> list[Need]:
        graph, budget = self._given.graph, self._given.request.budget
        needs = []
        if budget.macs is not None:
            needs.append(Need(layer_macs, 0.0, budget.macs * graph.macs))
        if budget.params is not None:
            needs.append(Need(_weights, float(graph.other_params), budget.params * graph.params))
        return needs

    def _time_need(self, clock: Clock, share: float) -> Need:
        times = clock.layer_ms

        def of_layer(layer: Layer, inputs: float, filters: float, grouping: Grouping | None) -> float:
            whole = math.ceil(inputs), math.ceil(filters)
            return times.get(layer.name, 0.0) * relative_time(layer, *whole, clock.profile, grouping)

        rest = max(0.0, clock.dense_ms - sum(times.get(layer.name, 0.0) for layer in self._given.graph.layers))
        return Need(of_layer, rest, share * (rest + sum(times.values())))

    def _unmet(self, needs: list[Need]) -> InputError:
        asked, least = [], []
        names = [*self._given.request.budget.shares]
        for name, need in zip(names, needs, strict=False):
            whole = need.dense(self._given.graph)
            asked.append(f"{name}={need.limit / whole:.3g}")
            least.append(f"{name}={math.ceil(self._allocator.least(need) / whole * 1000) / 1000:g}")
        return InputError(
            f"--budget {','.join(asked)} cannot be met",
            expected=f"{' and '.join(least)} or more"
            + (", each alone" if len(least) > 1 else "")
            + f" in blocks of {self._given.request.align} channels",
            remedy="a smaller --align or none; --include-first, --include-shortcuts, fewer --skip let more be pruned",
        )


def plan_for(found: Allocation, among: Prunable, candidates: Candidates, request: PruneRequest) -> Plan:
    """The plan of a choice, with groups as they were when they were priced."""
    kept = [
        candidates.widths[number][found.widths[number]].kept if number in found.widths else tuple(range(unit.size))
        for number, unit in enumerate(among.units)
    ]
    drawn = plan_of(kept, among, "gkp-cal", {})
    ends = {name: LayerPlan(name, note="its branch is left out", left_out=True) for name in found.left_out}
    entries = {
        name: next(choice.entry for choice in candidates.grouped[name] if choice.grouping == grouping)
        for name, grouping in found.grouped.items()
    }
    entries |= ends
    return msgspec.structs.replace(drawn, layers=tuple(entries.get(entry.name, entry) for entry in drawn.layers))


def layer_macs(layer: Layer, inputs: float, filters: float, grouping: Grouping | None) -> float:
    """Multiply-adds a sample."""
    return _weights(layer, inputs, filters, grouping) * layer.positions


def _weights(layer: Layer, inputs: float, filters: float, grouping: Grouping | None) -> float:
    size = math.prod(layer.kernel_size) * layer.features_per_channel
    if grouping is not None:
        return filters * grouping.kept * size
    if layer.groups == 1:
        return filters * inputs * size
    groups = layer.groups * filters / layer.out_channels if layer.thins_by_group else layer.groups
    return filters * inputs * size / max(groups, 1)


def _groupings(layer: Layer, request: PruneRequest) -> list[Grouping]:
    """Groups to try, on the block: each reads its part of the input channels, or half of all."""
    found = []
    for groups in GROUPS:
        if layer.out_channels % (groups * request.align) or dense_reason(layer, _with_groups(request, groups)):
            continue
        for kept in sorted({layer.in_channels // groups, layer.in_channels // 2}):
            if kept and kept < layer.in_channels and not kept % request.align:
                found.append(Grouping(groups, kept))
    return found


def _with_groups(request: PruneRequest, groups: int) -> PruneRequest:
    return dataclasses.replace(request, groups=groups)
