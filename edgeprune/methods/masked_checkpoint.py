"""A masked checkpoint (full shape, pruned filters set to zero by whoever trained it) as a plan without these filters.

A zero filter's channel is seldom zero for those who read it: BatchNorm makes beta - gamma * mean / std of it, a bias
adds itself, and the activation follows. It is constant, though. What becomes of it without changing the network's
output depends on that constant:

- zero: the channel goes;
- another: one constant channel of the coupled set stays and stands for the others, their readers' columns being summed
  in proportion (`SetPlan.constant`), which holds at the borders of zero padding, too;
- not constant for every reader (padding in between), or added to a stream that is not: the filter has to stay. With
  `lossy` it goes all the same, as if it had added nothing.

The filters at the end of a residual branch that add zero are left out of the add; channels that are constant for the
whole stream thin the stream itself. A plan has one or the other for each stream: the one that leaves fewer
multiply-adds.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import InputError
from edgeprune.graph import CoupledSet, Graph, Layer
from edgeprune.methods import setting
from edgeprune.methods.base import MethodInput, MethodResult
from edgeprune.methods.shared.units import units
from edgeprune.plans.costs import planned_macs
from edgeprune.plans.kept_channels import KeptChannels
from edgeprune.plans.method_record import FILE_NAME, MethodRecord, RecordTable
from edgeprune.plans.plan import LayerPlan, Plan, SetPlan

SUMMARY = "Cuts the zero filters out of a checkpoint that was masked elsewhere, without changing what it computes."
NEEDS_CONSTANTS = True

Mask = NDArray[np.bool_]
"""(filters,) or (channels,)."""


@dataclass(frozen=True)
class Settings:
    """The settings for masked checkpoints; none comes from a paper."""

    tolerance: float = setting(0.0, "a filter is zero if none of its weights is farther from 0 than this")
    lossy: bool = setting(False, "cut zero filters whose constant is not accounted for, too: the output changes")


def prune(given: MethodInput, settings: Settings) -> MethodResult:
    """The plan without the zero filters, with notes on how many went and why others stayed.

    InputError if the checkpoint has no zero filters, or none that can go.
    """
    graph = given.graph
    if given.request.align > 1:
        raise InputError(
            f"masked takes no --align {given.request.align}: the masks decide how many filters stay",
            remedy="leave it out, or --align none",
        )
    if not (math.isfinite(settings.tolerance) and settings.tolerance >= 0):
        raise InputError(f"setting tolerance is {settings.tolerance:g}", expected="0 or a small positive number")
    # What was masked elsewhere was asked for there, the first convolution and the shortcuts included.
    request = dataclasses.replace(given.request, include_first=True, include_shortcuts=True)
    streams = units(graph, request, "coupled", merging=True)
    branches = units(graph, request, "separate", merging=True)
    zero = {
        layer.name: _largest_weights(given.weights[layer.name]) <= settings.tolerance
        for layer in graph.layers
        if layer.kind == "conv" and not layer.is_depthwise
    }
    may_go = {name: np.zeros(graph.coupled_set(name).channels, bool) for u in streams.units for name, _ in u.sets}
    for name, channels in (entry for unit in streams.units for entry in unit.sets):
        may_go[name][list(channels)] = True
    sets = {
        coupled.name: _thinned_set(coupled, dead, given.constants.get(coupled.name), settings.lossy)
        for coupled in graph.coupled_sets
        if not coupled.parts and (dead := _dead(coupled, graph, zero) & may_go.get(coupled.name, False)).any()
    }
    ends = {
        unit.name: _thinned_end(given, graph.layer(unit.name), zero[unit.name], settings)
        for unit in branches.units
        if unit.is_branch_end and zero[unit.name].any()
    }
    sets, ends = _one_of_the_two(
        {name: entry for name, entry in sets.items() if len(entry.kept) < graph.coupled_set(name).channels},
        {name: entry for name, entry in ends.items() if len(entry.kept_filters) < graph.layer(name).out_channels},
        graph,
    )
    plan = Plan("masked", dataclasses.asdict(settings), given.request.seed, tuple(ends.values()), tuple(sets.values()))
    pinned = {name: reason for name, reason in streams.reasons.items() if name in branches.reasons}
    return _told(given, plan, zero, pinned)


# -- what can go -------------------------------------------------------------------------------------------------------
def _largest_weights(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """(filters,) the largest absolute weight of each."""
    largest: NDArray[np.float32] = np.abs(weight.reshape(len(weight), -1)).max(1)
    return largest


def _dead(coupled: CoupledSet, graph: Graph, zero: Mapping[str, Mask]) -> Mask:
    """(channels,) whether all layers that write a channel have a zero filter there, and no zero padding fills it from
    a channel that lives."""
    if coupled.parts:
        return np.concatenate([_dead(graph.coupled_set(part), graph, zero) for part in coupled.parts])
    writers = [zero[name] for name in coupled.producers if name in zero]
    choosing = [name for name in coupled.producers if not graph.layer(name).is_depthwise]
    if not writers or len(writers) < len(choosing):
        return np.zeros(coupled.channels, bool)
    dead: Mask = np.logical_and.reduce(writers)
    for padding in (padding for padding in graph.paddings if padding.target == coupled.name):
        source = _dead(graph.coupled_set(padding.source), graph, zero)
        dead[padding.lead : padding.lead + len(source)] &= source
    return dead


def _thinned_set(coupled: CoupledSet, dead: Mask, constants: NDArray[np.float64] | None, lossy: bool) -> SetPlan:
    values = np.full(coupled.channels, np.nan) if constants is None else constants
    gone = dead & ((values == 0) | (np.isnan(values) & lossy))
    constant = np.flatnonzero(dead & ~np.isnan(values) & (values != 0))
    gone[constant[1:]] = True
    gone[0] &= not gone.all()
    return SetPlan(coupled.name, _numbers(~gone), constant=tuple(constant.tolist()) if len(constant) > 1 else ())


def _thinned_end(given: MethodInput, layer: Layer, zero: Mask, settings: Settings) -> LayerPlan:
    """The end of a branch without the zero filters that add nothing."""
    adds = given.biases.get(layer.name, np.zeros(layer.out_channels)).astype(np.float64)
    if layer.norm:
        norm = given.norms[layer.norm]
        scale = norm.weight.astype(np.float64) / np.sqrt(norm.running_var.astype(np.float64) + norm.eps)
        adds = (adds - norm.running_mean) * scale + norm.bias
    gone = zero & ((np.abs(adds) <= settings.tolerance) | settings.lossy)
    gone[0] &= not gone.all()
    return LayerPlan(layer.name, kept_filters=_numbers(~gone))


def _one_of_the_two(
    sets: Mapping[str, SetPlan], ends: Mapping[str, LayerPlan], graph: Graph
) -> tuple[dict[str, SetPlan], dict[str, LayerPlan]]:
    """Of each stream either its thinned set or its thinned branches: what leaves fewer multiply-adds."""
    chosen_sets, chosen_ends = dict(sets), dict(ends)

    def macs(sets: tuple[SetPlan, ...], ends: tuple[LayerPlan, ...]) -> int:
        return sum(planned_macs(Plan("masked", {}, 0, ends, sets), graph).values())

    for name, entry in sets.items():
        branches = tuple(end for end in ends.values() if graph.layer(end.name).writes == name)
        if branches and macs((), branches) < macs((entry,), ()):
            del chosen_sets[name]
        else:
            for end in branches:
                del chosen_ends[end.name]
    return chosen_sets, chosen_ends


def _numbers(mask: Mask) -> tuple[int, ...]:
    return tuple(int(number) for number in np.flatnonzero(mask))


# -- what the user is told ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Zeros:
    """The zero filters of one layer."""

    layer: Layer
    zero: int
    cut: int
    stay: Mapping[str, int]
    """Why others stay -> how many."""

    @property
    def note(self) -> str:
        if not self.zero:
            return "no zero filter"
        stay = "".join(f"; {count} stay: {why}" for why, count in self.stay.items())
        return f"{self.cut} of {self.zero} zero filters cut{stay}"


def _told(given: MethodInput, plan: Plan, zero: Mapping[str, Mask], reasons: Mapping[str, str]) -> MethodResult:
    """The plan with its notes, the record, and the sentences for the user; InputError if nothing can go."""
    graph = given.graph
    found = {name: _zeros(graph.layer(name), mask, plan, graph, reasons) for name, mask in zero.items()}
    total, cut = sum(zeros.zero for zeros in found.values()), sum(zeros.cut for zeros in found.values())
    stay: Counter[str] = Counter()
    for zeros in found.values():
        stay.update(zeros.stay)
    listed = "; ".join(f"{count}: {why}" for why, count in stay.most_common())
    if not total:
        raise _no_zero_filter(given, zero)
    if not cut:
        raise InputError(
            f"none of its {total} zero filters can be cut without changing its output ({listed})",
            remedy="" if plan.settings["lossy"] else "--set lossy=true cuts them all the same; then fine-tune",
        )
    entries = {entry.name: entry for entry in plan.layers}
    layers = tuple(
        LayerPlan(
            layer.name,
            note=found[layer.name].note if layer.name in found else reasons.get(layer.name, ""),
            kept_filters=entries[layer.name].kept_filters if layer.name in entries else (),
        )
        for layer in graph.layers
    )
    merged = sum(len(entry.constant) - 1 for entry in plan.sets if entry.constant)
    notes = [f"{cut} of {total} zero filters are cut out{f', {merged} of them as equal constants' if merged else ''}."]
    if stay:
        notes.append(f"{total - cut} zero filters stay ({listed}).")
    table = RecordTable(
        "Zero filters", ("layer", "filters", "zero", "cut", "why others stay"),
        tuple((z.layer.name, z.layer.out_channels, z.zero, z.cut, "; ".join(z.stay)) for z in found.values()),
        text="Filters of the masked checkpoint whose weights are all zero, and those of them that were cut out.",
    )  # fmt: skip
    plan = Plan(plan.method, plan.settings, plan.seed, layers, plan.sets)
    return MethodResult(plan, {FILE_NAME: MethodRecord((table,)).to_json()}, notes=tuple(notes))


def _zeros(layer: Layer, zero: Mask, plan: Plan, graph: Graph, reasons: Mapping[str, str]) -> _Zeros:
    left = KeptChannels(plan, graph).filters(layer).index
    stay = [number for number in _numbers(zero) if number in left]
    is_shared = any(padding.target == layer.writes for padding in graph.paddings) or any(
        layer.writes == other.writes for other in graph.layers if other != layer
    )
    thinned = next((entry for entry in plan.sets if entry.name == layer.writes), None)
    if layer.name in reasons:
        why = reasons[layer.name]
    elif len(left) == 1:
        why = "a layer keeps one filter at least"
    elif layer.ends_branch and thinned is None:
        why = "adds a constant to a residual stream"
    elif is_shared:
        why = "others write the same channel"
    else:
        why = "its constant is not the same for all that read it"
    standing = thinned.constant[:1] if thinned is not None else ()
    counts = Counter("stands for other constants" if number in standing else why for number in stay)
    return _Zeros(layer, int(zero.sum()), int(zero.sum()) - len(stay), dict(counts))


def _no_zero_filter(given: MethodInput, zero: Mapping[str, Mask]) -> InputError:
    smallest = min((_largest_weights(given.weights[name]).min() for name in zero), default=0.0)
    return InputError(
        "no convolution has a filter whose weights are all zero",
        expected="a masked checkpoint: full shape, the pruned filters set to zero",
        remedy=f"its smallest filter has weights up to {smallest:.3g} (see --set tolerance=...); "
        "--method sfp or fpgm chooses filters by itself",
    )
