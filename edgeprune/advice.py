"""What to try next: the causes of a network's layers, added up. Pure functions of a result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edgeprune.profile_result import LayerResult, Result

WORTH_TRYING = 0.03
"""Share of the network's time from which on something is advised."""
LARGE_PART = 0.25
"""Share of the network's time from which on a part that was never pruned is spoken of."""
NAMED = 3
"""Layers at most that one piece of advice names."""

_TRY: Mapping[str, str] = {
    "fallback": "run on another provider than the target's: try a --target whose runtime has these operations",
    "off-block": "have channels a group off the channel block: prune with --align auto, or into fewer groups",
    "part-block": "have filters or channels off the channel block: prune with --align auto",
    "few-filters": "have few filters a group: prune into fewer --groups",
    "zeros": "compute zeros that their form fills in: prune into groups that fit the block (--align auto)",
    "gather": "wait for Gathers: methods that let neighbours agree on their groups need fewer (gconv with --set "
    "gather_share=0.02), and `edgeprune tune` measures the forms without them",
    "reorder": "wait for data that is reordered between layouts: `edgeprune tune` measures forms that keep one layout",
    "dispatch": "are too small to be worth starting: larger batches share the cost, or leave them dense (--skip)",
    "threads": "are too small to be shared: try fewer --threads, or larger batches",
    "memory-bound": "wait for memory: fewer bytes help (INT8, thinner layers instead of groups), as do larger batches, "
    "which use weights more than once",
    "kernel": "have kernels that do not use the device well: `edgeprune tune` measures their other forms, and fewer "
    "--groups leave them more work",
    "noise": "vary too much to be judged: measure on an idle machine, or with the threads pinned to cores (--pin)",
    "compute-bound": "are as fast as the device multiplies: only fewer MACs (--rate, --groups) make them faster",
}


class _Part(NamedTuple):
    """Layers with one kind of cause."""

    kind: str
    layers: Sequence[LayerResult]
    ms: float
    """What they take more than was promised."""


def advice(result: Result) -> tuple[str, ...]:
    """Sentences, the largest gain first; none where nothing is worth trying, or layers have no times."""
    layers = [layer for layer in result.layers if layer.pruned_ms]
    total = math.fsum(layer.pruned_ms or 0.0 for layer in layers) + (result.pruned_other_ms or 0.0)
    if not layers or not total:
        return ()
    kinds = dict.fromkeys(layer.cause_kind for layer in layers if layer.cause_kind in _TRY)
    parts = [_part(kind, [layer for layer in layers if layer.cause_kind == kind]) for kind in kinds]
    worth = sorted((part for part in parts if part.ms / total >= WORTH_TRYING), key=lambda part: -part.ms)
    sentences = [
        f"{_names(part.layers)} {_TRY[part.kind]} (up to {part.ms / total:.0%} of the network's time)" for part in worth
    ]
    return (*sentences, *_never_pruned(result, layers, total))


def _part(kind: str, layers: Sequence[LayerResult]) -> _Part:
    return _Part(kind, layers, math.fsum(map(_too_long, layers)))


def _too_long(layer: LayerResult) -> float:
    """Milliseconds more than was promised; without a baseline, more than the device's bound."""
    taken = layer.pruned_ms or 0.0
    if layer.dense_ms and layer.theoretical_speedup:
        return max(taken - layer.dense_ms / layer.theoretical_speedup, 0.0)
    return max(taken - layer.bound_ms, 0.0) if layer.bound_ms else 0.0


def _never_pruned(result: Result, layers: Sequence[LayerResult], total: float) -> list[str]:
    """Parts of the network that stay as they were, and by now take a large part of its time."""
    kept = [layer for layer in layers if layer.theoretical_speedup == 1]
    sentences = []
    share = math.fsum(layer.pruned_ms or 0.0 for layer in kept) / total
    if result.dense is not None and share >= LARGE_PART:
        sentences.append(f"{_names(kept)} were not pruned and take {share:.0%} of the time: prune them, too")
    share = (result.pruned_other_ms or 0.0) / total
    if share >= LARGE_PART:
        sentences.append(
            f"activations, additions and pooling take {share:.0%} of the time: no pruning of layers makes them faster, "
            "fewer channels (a method that thins layers) do"
        )
    return sentences


def _names(layers: Sequence[LayerResult]) -> str:
    """The layers with the most time first."""
    slowest = sorted(layers, key=lambda layer: -(layer.pruned_ms or 0.0))
    shown = ", ".join(layer.name for layer in slowest[:NAMED])
    return shown if len(layers) <= NAMED else f"{shown} and {len(layers) - NAMED} more layers"
