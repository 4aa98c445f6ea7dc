"""What to try next: the causes of a network's layers, added up. Pure functions of a result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edgeprune.profiling.result import LayerResult, Result

WORTH_A_REMEDY = 0.03
"""Share of the network's time from which on something is advised."""
LARGE_PART = 0.25
"""Share of the network's time from which on a part that was never pruned is spoken of."""
NAMED = 3
"""Layers at most that one piece of advice names."""

REMEDIES: Mapping[str, str] = {
    "fallback": "try a --target whose runtime has these operations, which another provider ran",
    "off-block": "prune with --align auto, or into fewer --groups, where channels a group miss the block",
    "part-block": "prune with --align auto where filters or channels miss the block",
    "few-filters": "prune into fewer --groups, which leaves more filters in each",
    "zeros": "prune into groups that fit the block (--align auto), so that no zeros are filled in",
    "gather": "let neighbours agree on their groups (gconv with --align auto, or --set gather_share=0) where Gathers "
    "take time",
    "reorder": "prune with --align auto, or so that fewer Gathers are left (gconv with --set gather_share=0), where "
    "data is reordered",
    "dispatch": "share the cost of starting operations among larger batches, or leave small layers dense (--skip)",
    "threads": "try fewer --threads, or larger batches, where there is too little work to share",
    "memory-bound": "move fewer bytes (INT8, thinner layers instead of groups), or use weights more often (larger "
    "batches), where layers wait for memory",
    "kernel": "leave more work in a group (fewer --groups) where kernels do not use the device well",
    "noise": "measure on an idle machine, or pin the threads (--pin), where times vary too much to be judged",
    "compute-bound": "prune more (--rate, --groups) where layers multiply as fast as the device can",
}
WITHOUT_BATCH: Mapping[str, str] = {
    "dispatch": "leave small layers dense (--skip), where starting operations takes longer than what they compute",
    "threads": "try fewer --threads where there is too little work to share",
    "memory-bound": "move fewer bytes (INT8, thinner layers instead of groups), where layers wait for memory",
}
"""For a network that takes one sample a run."""
FORMS: Mapping[str, str] = {
    "gather": "measure forms without Gathers (edgeprune tune)",
    "reorder": "measure forms that keep one layout (edgeprune tune)",
    "kernel": "measure other forms (edgeprune tune)",
}
"""What to try first, where it was not done yet."""


class _Part(NamedTuple):
    """Layers with one kind of cause."""

    kind: str
    layers: Sequence[LayerResult]
    ms: float
    """What they take more than was promised."""


def advice(result: Result, *, may_tune: bool = False, may_batch: bool = True) -> tuple[str, ...]:
    """Sentences, the largest gain first; none where nothing is worth trying, or layers have no times.

    `may_tune`: whether `edgeprune tune` could still find other forms of the layers; `may_batch`: whether the network
    takes several samples a run.
    """
    layers = [layer for layer in result.layers if layer.pruned_ms]
    total = math.fsum(layer.pruned_ms or 0.0 for layer in layers) + (result.pruned_other_ms or 0.0)
    if not layers or not total:
        return ()
    kinds = dict.fromkeys(layer.cause_kind for layer in layers if layer.cause_kind in REMEDIES)
    parts = [_part(kind, [layer for layer in layers if layer.cause_kind == kind]) for kind in kinds]
    worth = sorted((part for part in parts if part.ms / total >= WORTH_A_REMEDY), key=lambda part: -part.ms)
    sentences = [
        f"{_remedy(part.kind, may_tune, may_batch)}: {_names(part.layers)} "
        f"(up to {part.ms / total:.0%} of the network's time)"
        for part in worth
    ]
    return (*sentences, *_never_pruned(result, layers, total))


def _remedy(kind: str, may_tune: bool, may_batch: bool) -> str:
    remedy = REMEDIES[kind] if may_batch else WITHOUT_BATCH.get(kind, REMEDIES[kind])
    return f"{FORMS[kind]}, or {remedy}" if may_tune and kind in FORMS else remedy


def _part(kind: str, layers: Sequence[LayerResult]) -> _Part:
    return _Part(kind, layers, math.fsum(map(_too_long, layers)))


def _too_long(layer: LayerResult) -> float:
    """Milliseconds more than was promised; without a baseline, more than the device's bound."""
    taken = layer.pruned_ms or 0.0
    if layer.dense_ms and layer.theoretical_speedup:
        return max(taken - layer.dense_ms / layer.theoretical_speedup, 0.0)
    at_bound = layer.cause_kind == "compute-bound"  # nothing but less work makes it faster
    return max(taken - layer.bound_ms, 0.0) if layer.bound_ms and not at_bound else 0.0


def _never_pruned(result: Result, layers: Sequence[LayerResult], total: float) -> list[str]:
    """Parts of the network that stay as they were, and by now take a large part of its time."""
    kept = [layer for layer in layers if layer.theoretical_speedup == 1]
    sentences = []
    share = math.fsum(layer.pruned_ms or 0.0 for layer in kept) / total
    if result.dense is not None and share >= LARGE_PART:
        sentences.append(f"prune what stayed as it was, too: {_names(kept)} ({share:.0%} of the network's time)")
    share = (result.pruned_other_ms or 0.0) / total
    if share >= LARGE_PART:
        sentences.append(
            "make layers thinner instead of grouping them: activations, additions and pooling take "
            f"{share:.0%} of the network's time, and only fewer channels make them faster"
        )
    return sentences


def _names(layers: Sequence[LayerResult]) -> str:
    """The layers with the most time first."""
    slowest = sorted(layers, key=lambda layer: -(layer.pruned_ms or 0.0))
    shown = ", ".join(layer.name for layer in slowest[:NAMED])
    return shown if len(layers) <= NAMED else f"{shown} and {len(layers) - NAMED} more layers"
