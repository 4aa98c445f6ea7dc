"""gkp-cal within a budget: each layer dense, thinner or in groups, whichever changes the outputs least in all.

Every choice is priced alone (`candidates`), one program decides (`allocation`), and a pass over the network then fits
all layers to what was decided, each on what it reads by then.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
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
    latency: float | None
    """Share of the dense network's; None where no time is asked for."""


@dataclass(frozen=True)
class Decision:
    """What the budget led to."""

    chosen: Tried
    candidates: Candidates
    among: Prunable
    front: tuple[tuple[float, float], ...]
    """(share of the dense network, estimated divergence) of the best choices for other budgets of the same thing."""
    front_of: str
    """What the shares of the front are of: macs, params or latency."""


def decide(given: MethodInput, damping: float) -> Decision:
    """The structure of every layer; InputError for a budget that nothing meets, with the nearest that can be had."""
    among = units(given.graph, given.request, "coupled")
    groupings = {x.name: found for x in given.graph.layers if (found := _groupings(x, given.request))}
    if not among.units and not groupings:
        raise nothing_to_prune(given.graph, among.reasons, "be changed", "see --skip, --include-first")
    candidates = Search(given, among, damping).run(groupings)
    return _Budgeted(given, among, candidates).decided()


class _Budgeted:
    def __init__(self, given: MethodInput, among: Prunable, candidates: Candidates) -> None:
        self._given, self._among, self._candidates = given, among, candidates
        self._allocator = Allocator(among, candidates)
        self._share = given.request.budget.latency_share(given.clock)
        """Of the dense latency, that is asked for."""

    def decided(self) -> Decision:
        chosen = self._nearest(list(self._timed())) if self._share is not None else self._tried(self._needs())
        name, need = next(reversed(self._needs().items()))
        return Decision(chosen, self._candidates, self._among, tuple(self._front(need)), name)

    def _needs(self, correction: float = 1.0) -> dict[str, Need]:
        """All that the budget limits, by name, the latency last.

        `correction`: the latency that was measured, over the estimate.
        """
        graph, budget, clock = self._given.graph, self._given.request.budget, self._given.clock
        found = {}
        if budget.macs is not None:
            found["macs"] = Need(layer_macs, 0.0, budget.macs * graph.macs)
        if budget.params is not None:
            found["params"] = Need(_weights, float(graph.other_params), budget.params * graph.params)
        if self._share is not None and clock is not None:
            found["latency"] = self._time_need(clock, self._share / correction)
        return found

    def _time_need(self, clock: Clock, share: float) -> Need:
        times = clock.layer_ms

        def of_layer(layer: Layer, inputs: float, filters: float, grouping: Grouping | None) -> float:
            whole = math.ceil(inputs), math.ceil(filters)
            return times.get(layer.name, 0.0) * relative_time(layer, *whole, clock.profile, grouping)

        rest = max(0.0, clock.dense_ms - sum(times.get(layer.name, 0.0) for layer in self._given.graph.layers))
        return Need(of_layer, rest, share * (rest + sum(times.values())))

    def _timed(self) -> Iterator[Tried]:
        """Choices by estimated times, each measured, until what is measured is what was asked."""
        assert self._share is not None
        correction = 1.0
        for number in range(ROUNDS):
            needs = self._needs(correction)
            tried = self._tried(needs, correction)
            assert tried.latency is not None
            progress.note(f"round {number + 1}: {tried.latency:.3f} of the dense latency, {self._share:g} was asked")
            yield tried
            if abs(tried.latency / self._share - 1) <= CLOSE:
                return
            estimated = tried.allocation.needs[-1] / needs["latency"].dense(self._given.graph)
            correction = tried.latency / estimated

    def _tried(self, needs: Mapping[str, Need], correction: float = 1.0) -> Tried:
        found = self._allocator.choose([*needs.values()])
        if found is None and self._given.request.budget.is_wish:
            nearest = [dataclasses.replace(n, limit=self._allocator.least(n) * (1 + CLOSE)) for n in needs.values()]
            found = self._allocator.choose(nearest)
        if found is None:
            raise self._unmet(needs, correction)
        plan, clock = plan_for(found, self._among, self._candidates), self._given.clock
        return Tried(found, plan, clock.pruned_ms(plan) / clock.dense_ms if clock is not None else None)

    def _nearest(self, tried: list[Tried]) -> Tried:
        """The slowest of those that are fast enough; else the fastest, which is told."""
        assert self._share is not None
        by_time = sorted(tried, key=lambda one: one.latency or 0)
        within = [one for one in by_time if (one.latency or 0) <= self._share * (1 + CLOSE)]
        if not within:
            progress.note(
                f"the nearest to {self._share:g} of the dense latency that was found is {by_time[0].latency:.3f}"
            )
        return within[-1] if within else by_time[0]

    def _front(self, need: Need) -> Iterator[tuple[float, float]]:
        whole = need.dense(self._given.graph)
        for share in FRONT:
            found = self._allocator.choose([dataclasses.replace(need, limit=share * whole)])
            if found is not None:
                yield float(found.needs[0] / whole), float(found.cost)

    def _unmet(self, needs: Mapping[str, Need], correction: float) -> InputError:
        """With the nearest that can be had, in the words of the budget; of times as far as they were measured."""
        budget, clock = self._given.request.budget, self._given.clock
        asked = {name: f"{name}={value:g}" for name, value in budget.shares.items()}
        least = {}
        for name, need in needs.items():
            share = (
                self._allocator.least(need) / need.dense(self._given.graph) * (correction if name == "latency" else 1)
            )
            least[name] = f"{name}={math.ceil(share * 1000) / 1000:g}"
            if name == "latency" and budget.latency_ms is not None and clock is not None:
                asked[name] = f"latency-ms={budget.latency_ms:g}@{budget.profile}"
                least[name] = f"latency-ms={math.ceil(share * clock.dense_ms * 100) / 100:g}@{budget.profile}"
        together, block = ", each alone," if len(least) > 1 else "", self._given.request.align
        return InputError(
            f"--budget {','.join(asked[name] for name in needs)} cannot be met",
            expected=f"{' and '.join(least.values())} or more{together} in blocks of {block} channels",
            remedy="a smaller --align or none; --include-first, --include-shortcuts, fewer --skip let more be pruned",
        )


def plan_for(found: Allocation, among: Prunable, candidates: Candidates) -> Plan:
    """The plan of a choice, with groups as they were when they were priced."""
    kept = [
        candidates.widths[number][found.widths[number]].kept if number in found.widths else tuple(range(unit.size))
        for number, unit in enumerate(among.units)
    ]
    drawn = plan_of(kept, among, "gkp-cal", {})
    # What plan_of says of layers that keep everything is of rates, and there are none.
    entries = {x.name: msgspec.structs.replace(x, note=among.reasons.get(x.name, "")) for x in drawn.layers}
    ends = {name: LayerPlan(name, note="its branch is left out", left_out=True) for name in found.left_out}
    entries |= {
        name: next(choice.entry for choice in candidates.grouped[name] if choice.grouping == grouping)
        for name, grouping in found.grouped.items()
    }
    entries |= ends
    return msgspec.structs.replace(drawn, layers=tuple(entries[entry.name] for entry in drawn.layers))


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
    """Groups to try, on the block: each reads its part of the input channels, or half of all. None where no Gather may
    be left, since they choose freely what they read."""
    if not request.allows_gathers:
        return []
    found = []
    for groups in GROUPS:
        if layer.out_channels % (groups * request.align) or dense_reason(
            layer, dataclasses.replace(request, groups=groups)
        ):
            continue
        for kept in sorted({layer.in_channels // groups, layer.in_channels // 2}):
            if kept and kept < layer.in_channels and not kept % request.align:
                found.append(Grouping(groups, kept))
    return found
