"""Which filters of each unit stay, and the plan that follows from a choice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.methods.base import PruneRequest
from edgeprune.methods.shared.units import Numbers, Prunable, Unit
from edgeprune.plans.plan import LayerPlan, Plan, SetPlan


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
                takes_none = _takes_none(unit, unit_rate(unit, among.request), layer.out_channels)
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


def _takes_none(unit: Unit, rate: float, filters: int) -> str:
    """Why a layer of the unit keeps all of its filters."""
    if unit.size == 1:
        return f"its {filters} filters are in step: none can go without all others"
    if unit.size < filters:
        return f"its {filters} filters are in step in {unit.size} parts, of which rate {rate:g} takes none"
    return f"rate {rate:g} takes none of its {filters} filters"


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
