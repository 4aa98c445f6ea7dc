"""Which filters a filter-pruning method may leave out, and the plan that follows from its choice.

Filters are chosen in *units*: channels of which the i-th ones stay or go together. Two couplings:

- "separate" (paper 004, eq. 4.8): a coupled set into which branches are added (a residual stream) stays whole, and
  each layer at the end of a branch is a unit, whose filters are left out of the add. Other coupled sets are units.
- "coupled": every coupled set loses the same channels in all of its layers, so that no add needs a scatter.

What is joined beyond a coupled set stays in step, too: channels of a concatenation are those of its parts, and the
channels that a parameter-free shortcut pads with zeros are those of its source (else the padded stream could not lose
them without loss). A padded stream therefore consists of several units: the channels from its source, and its own.

Paper 004 prunes all convolutions but the projection shortcuts. Here the first convolution, where it alone writes its
coupled set, also waits for --include-first, as with every other method; --include-shortcuts takes in the shortcuts.
In a coupled set of several layers both follow the others.
"""

from __future__ import annotations

import bisect
import dataclasses
import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from edgeprune.errors import InputError
from edgeprune.graph import CoupledSet, Graph, Layer
from edgeprune.methods.base import Budget, PruneRequest, check_skip_patterns, nothing_to_prune
from edgeprune.plans.costs import planned_macs, planned_params
from edgeprune.plans.plan import LayerPlan, Plan, SetPlan

Coupling = Literal["separate", "coupled"]
Numbers = tuple[int, ...]
"""Channel or filter numbers of the original network."""


@dataclass(frozen=True)
class Unit:
    """Channels that are chosen together; number i of the unit is number `numbers[i]` of each of its parts."""

    layers: tuple[tuple[str, Numbers], ...]
    """(layer, filter numbers): the layers whose filters are chosen, in forward order."""
    followers: tuple[tuple[str, Numbers], ...] = ()
    """(layer, filter numbers): the depthwise convolutions in between."""
    sets: tuple[tuple[str, Numbers], ...] = ()
    """(coupled set, channel numbers); empty for the end of a branch, whose coupled set stays whole."""

    @property
    def name(self) -> str:
        """Its first layer."""
        return self.layers[0][0]

    @property
    def size(self) -> int:
        return len(self.layers[0][1])

    @property
    def is_branch_end(self) -> bool:
        return not self.sets


@dataclass(frozen=True)
class Prunable:
    """The units of a network under a request."""

    graph: Graph
    request: PruneRequest
    units: tuple[Unit, ...]
    """By their first layer, in forward order."""
    reasons: Mapping[str, str]
    """Layer -> why it keeps all of its filters, for every layer that is in no unit."""
    asked: Numbers = ()
    """How many filters of each unit were asked for, where alignment decides how many stay; else empty."""
    kept: Numbers = ()
    """How many filters of each unit stay on the request's block; empty where nothing is aligned."""

    @property
    def choosing(self) -> tuple[str, ...]:
        """The layers whose filters are chosen."""
        return tuple(dict.fromkeys(name for unit in self.units for name, _ in unit.layers))


def prunable(graph: Graph, request: PruneRequest, coupling: Coupling) -> Prunable:
    """The units that may be thinned; InputError if there are none, or a --skip pattern matches nothing."""
    found = units(graph, request, coupling)
    if not found.units:
        raise nothing_to_prune(
            graph, found.reasons, "lose filters",
            "see --skip, --include-first, --include-shortcuts and --set coupling=coupled",
        )  # fmt: skip
    return found


def units(graph: Graph, request: PruneRequest, coupling: Coupling) -> Prunable:
    """As `prunable`, where there may be none."""
    check_skip_patterns(graph, request)
    reasons = {coupled.name: _set_reason(coupled, graph, request, coupling) for coupled in graph.coupled_sets}
    found, because = list[Unit](), dict[str, str]()
    for sets in _joined_channels(graph):
        unit = _unit_of(sets, graph)
        reason = next((reasons[name] for name, _ in sets if reasons[name]), "")
        if unit.layers and not reason:
            found.append(unit)
        for name, _ in (*unit.layers, *unit.followers):
            because.setdefault(name, reasons[graph.layer(name).writes] or reason)
    ends = [layer for layer in graph.layers if layer.ends_branch] if coupling == "separate" else []
    for layer in ends:
        because[layer.name] = _branch_reason(layer, request)
        if not because[layer.name]:
            found.append(Unit(((layer.name, tuple(range(layer.out_channels))),)))
    inside = {name for unit in found for name, _ in (*unit.layers, *unit.followers)}
    left_alone = {
        layer.name: layer.refusal or _skipped(layer, request) or because[layer.name]
        for layer in graph.layers
        if layer.name not in inside
    }
    order = {layer.name: place for place, layer in enumerate(graph.layers)}
    return Prunable(graph, request, tuple(sorted(found, key=lambda unit: order[unit.name])), left_alone)


# -- choosing --------------------------------------------------------------------------------------------------------
def kept_count(size: int, rate: float) -> int:
    """How many of `size` filters stay: all but floor(rate * size), as in the paper's experiments, and at least one."""
    return max(1, size - math.floor(rate * size + 1e-9))  # 0.29 * 100 is a little less than 29


def unit_rate(unit: Unit, request: PruneRequest) -> float:
    """The rate of a unit: the lowest that the request has for its layers."""
    return min(request.rate_of(name) for name, _ in unit.layers)


def kept_counts(among: Prunable) -> tuple[int, ...]:
    """How many filters of each unit stay: on the request's block, or at its rates."""
    return among.kept or tuple(kept_count(unit.size, unit_rate(unit, among.request)) for unit in among.units)


def final_rates(among: Prunable) -> tuple[float, ...]:
    """The rate of each unit at the end: the request's, or what leaves its count on the block."""
    if not among.kept:
        return tuple(unit_rate(unit, among.request) for unit in among.units)
    return tuple((unit.size - count) / unit.size for unit, count in zip(among.units, among.kept, strict=True))


def unit_scores(unit: Unit, scores: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """(size,) the sum over the unit's layers of their filters' scores; `scores` has (out_channels,) for each layer."""
    per_layer = np.stack([scores[name][list(filters)] for name, filters in unit.layers])
    summed: NDArray[np.float64] = per_layer.sum(axis=0)
    return summed


def highest(scores: NDArray[np.float64], count: int) -> Numbers:
    """The places of the `count` highest scores, ascending; of equal ones the first are taken."""
    return tuple(sorted(int(place) for place in np.argsort(-scores, kind="stable")[:count]))


def plan_of(choice: Sequence[Numbers], among: Prunable, method: str, settings: Mapping[str, Any]) -> Plan:
    """The plan that keeps, of each unit, the places `choice` gives for it, ascending (0..size - 1, at least one)."""
    dropped: dict[str, set[int]] = {}
    kept_filters: dict[str, Numbers] = {}
    notes = dict(among.reasons)
    aligned = _Aligned(among, [len(kept) for kept in choice])
    for unit, kept in zip(among.units, choice, strict=True):
        gone = sorted(set(range(unit.size)) - set(kept))
        for name, channels in unit.sets:
            dropped.setdefault(name, set()).update(channels[place] for place in gone)
        if unit.is_branch_end and gone:
            kept_filters[unit.name] = tuple(unit.layers[0][1][place] for place in kept)
            notes[unit.name] = aligned.note(unit.name, unit.size)
    for unit, kept in zip(among.units, choice, strict=True):
        for layer in map(among.graph.layer, (name for name, _ in unit.layers) if len(kept) == unit.size else ()):
            if unit.is_branch_end or not dropped.get(layer.writes):  # else another unit takes some of its filters
                takes_none = f"rate {unit_rate(unit, among.request):g} takes none of its {layer.out_channels} filters"
                key = layer.name if unit.is_branch_end else layer.writes
                notes[layer.name] = aligned.note(key, layer.out_channels) or takes_none
    thinned = [
        SetPlan(
            coupled.name,
            tuple(c for c in range(coupled.channels) if c not in dropped[coupled.name]),
            note=aligned.note(coupled.name, coupled.channels),
        )
        for coupled in among.graph.coupled_sets
        if dropped.get(coupled.name) and not coupled.parts
    ]
    layers = tuple(
        LayerPlan(layer.name, note=notes.get(layer.name, ""), kept_filters=kept_filters.get(layer.name, ()))
        for layer in among.graph.layers
    )
    return Plan(method, dict(settings), among.request.seed, layers, tuple(thinned))


class _Aligned:
    """What alignment made of each coupled set, and of each layer at the end of a branch."""

    def __init__(self, among: Prunable, counts: Sequence[int]) -> None:
        self.block = among.request.align
        self.fewer: dict[str, tuple[int, int]] = {}
        """Coupled set, or layer at the end of a branch -> filters that go (as was asked, as it is)."""
        for unit, asked, kept in zip(among.units, among.asked or counts, counts, strict=True):
            for name in [name for name, _ in unit.sets] or [unit.name]:
                before, now = self.fewer.get(name, (0, 0))
                self.fewer[name] = (before + unit.size - asked, now + unit.size - kept)

    def note(self, name: str, channels: int) -> str:
        """What was asked, in words; empty where it is what is left."""
        asked, taken = self.fewer[name]
        if asked == taken:
            return ""
        said = f"aligned to blocks of {self.block}: asked were {channels - asked} of {channels} filters"
        return said if taken else f"{said}, and all stay"


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


# -- what may be thinned ---------------------------------------------------------------------------------------------
def _joined_channels(graph: Graph) -> list[tuple[tuple[str, Numbers], ...]]:
    """The network's channels in parts that are in step: ((set, channels), ...) each, number i the same in all entries.

    Together the parts hold each channel of each coupled set once. A part has the entries of a unit.
    """
    first = {}  # coupled set -> number of its channel 0 among all channels of the network
    count = 0
    for coupled in graph.coupled_sets:
        first[coupled.name] = count
        count += coupled.channels
    links = [
        (first[padding.source], first[padding.target] + padding.lead, graph.coupled_set(padding.source).channels)
        for padding in graph.paddings
    ]
    for coupled in graph.coupled_sets:
        start = first[coupled.name]
        for part in map(graph.coupled_set, coupled.parts):
            links.append((first[part.name], start, part.channels))
            start += part.channels
    rows = [a + channel for a, _, channels in links for channel in range(channels)]
    columns = [b + channel for _, b, channels in links for channel in range(channels)]
    joins = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    _, classes = connected_components(joins, directed=False)  # (count,) which channels are one
    joined: dict[int, list[tuple[str, int]]] = {}
    for coupled in graph.coupled_sets:
        for channel in range(coupled.channels):
            joined.setdefault(int(classes[first[coupled.name] + channel]), []).append((coupled.name, channel))
    parts: dict[tuple[str, ...], list[Numbers]] = {}
    for places in joined.values():
        parts.setdefault(tuple(name for name, _ in places), []).append(tuple(channel for _, channel in places))
    return [tuple(zip(names, zip(*channels, strict=True), strict=True)) for names, channels in parts.items()]


def _unit_of(sets: tuple[tuple[str, Numbers], ...], graph: Graph) -> Unit:
    """The unit of channels that are in step, whether it may be thinned or not."""
    parts = [(name, channels) for coupled, channels in sets for name in graph.coupled_set(coupled).producers]
    order = {layer.name: place for place, layer in enumerate(graph.layers)}
    parts = sorted(parts, key=lambda part: order[part[0]])
    return Unit(
        layers=tuple(part for part in parts if not graph.layer(part[0]).is_depthwise),
        followers=tuple(part for part in parts if graph.layer(part[0]).is_depthwise),
        sets=sets,
    )


def _set_reason(coupled: CoupledSet, graph: Graph, request: PruneRequest, coupling: Coupling) -> str:
    """Why the channels of this coupled set all stay; empty if they may go."""
    producers = [graph.layer(name) for name in coupled.producers]
    choosing = [layer for layer in producers if not layer.is_depthwise]
    if coupled.pinned:
        return f"its channels cannot change: {coupled.pinned}"
    for layer in producers:
        if stays := layer.refusal or _skipped(layer, request):
            return f"{layer.name} of its coupled set stays: {stays}"
    if any(layer.kind == "linear" for layer in choosing):
        return "linear layers keep their outputs"
    if coupling == "separate" and any(layer.ends_branch for layer in choosing):
        return "writes a residual stream, which stays whole unless coupling is coupled"
    return _asked_for(choosing[0], request) if len(choosing) == 1 else ""


def _branch_reason(layer: Layer, request: PruneRequest) -> str:
    """Why a layer at the end of a branch keeps all of its filters; empty if some may go."""
    if layer.kind == "linear":
        return "linear layers keep their outputs"
    if layer.groups > 1:
        return f"already grouped ({layer.groups} groups)"
    return layer.refusal or _skipped(layer, request) or _asked_for(layer, request)


def _asked_for(layer: Layer, request: PruneRequest) -> str:
    if layer.is_first and not request.include_first:
        return "the first convolution keeps its filters unless asked (--include-first)"
    if layer.is_shortcut and not request.include_shortcuts:
        return "1x1 shortcuts keep their filters unless asked (--include-shortcuts)"
    return ""


def _skipped(layer: Layer, request: PruneRequest) -> str:
    return "skipped by request" if any(fnmatch.fnmatchcase(layer.name, p) for p in request.skip) else ""
