"""Why a layer is not as fast as its MACs promise, in words. Rules of thumb on figures of the layer; pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

LOW_EFFICIENCY = 0.85
"""Below this share of a layer's theoretical speed-up, a cause is looked for."""
TINY_MS = 0.05
"""Below this, starting an operation and its threads is a large part of its time."""
NOTABLE_SHARE = 0.15
"""Share of a layer's time above which one of its parts is worth naming."""


@dataclass(frozen=True)
class LayerFacts:
    """What is known of one layer of the pruned model."""

    groups: int
    in_per_group: int
    out_per_group: int
    macs: int
    executed_macs: int
    bytes_moved: int
    """Input, weights and output, each once."""
    dense_ms: float
    pruned_ms: float
    gather_ms: float
    reorder_ms: float
    theoretical: float
    """MACs of the dense layer / MACs that the plan leaves."""
    noise: float = 0.0
    """Spread of the layer's times, dense or pruned, between turns: interquartile range over median."""
    note: str = ""
    """The plan's, for a layer that stays dense."""
    is_pruned: bool = True
    """False where the dense model has the layer in the same form: nothing was pruned."""
    lowering: str = "grouped"
    """The form in which it is written."""
    is_conv: bool = True

    @property
    def efficiency(self) -> float:
        return self.dense_ms / self.pruned_ms / self.theoretical

    @property
    def flops_per_byte(self) -> float:
        """Arithmetic intensity: 2 x executed MACs over the bytes that must be moved at least."""
        return 2 * self.executed_macs / self.bytes_moved if self.bytes_moved else float("inf")


@dataclass(frozen=True)
class MachineFacts:
    """What the rules need to know of the target."""

    channel_block: int
    """Channels a group that its fast kernels want a multiple of; 0 if unknown."""
    threads: int = 1
    off_block: str = "the runtime falls back to slower kernels"
    """What happens to a grouped convolution off the block."""
    full_filters: int = 0
    """Filters that its fast kernels work on at a time: with fewer a group, inputs are read more often for less work;
    0 if unknown."""
    balance_flops_per_byte: float = 8.0
    """FLOPs a core can do while memory brings one byte: with fewer a byte, a layer waits for memory."""


def cause_of(layer: LayerFacts, machine: MachineFacts) -> str:
    """One cause for a layer whose efficiency is below `LOW_EFFICIENCY`; empty if there is nothing to explain.

    A layer that the plan left as it was is always explained by the plan's note. Otherwise the first rule that holds,
    the largest effect first: Gathers and reordering where the layer would be efficient without them; zeros that are
    computed; channels off the block; whole blocks of which a part is nothing; few filters a group; Gathers and
    reordering; too little work; memory; noise.
    """
    if layer.note and not layer.is_pruned:
        return dense_cause(layer.note)
    if layer.efficiency >= LOW_EFFICIENCY or not layer.is_pruned:
        return ""
    moving = (layer.gather_ms + layer.reorder_ms) / layer.pruned_ms
    if moving > NOTABLE_SHARE and layer.efficiency / max(1 - moving, 1e-9) >= LOW_EFFICIENCY:
        return _moving_words(layer)
    excess = layer.executed_macs / layer.macs if layer.macs else 1.0
    if excess > 1 + NOTABLE_SHARE:
        return f"written as {layer.lowering}, {excess:.1f}x the planned MACs: chosen as its fastest form"
    if layer.lowering != "split" and is_off_block(layer, machine.channel_block):
        return (
            f"{layer.in_per_group} channels a group in, {layer.out_per_group} out: off the block of "
            f"{machine.channel_block}, {machine.off_block}"
        )
    whole = block_excess(layer, machine.channel_block)
    if whole > 1 + NOTABLE_SHARE:
        return (
            f"{layer.out_per_group} filters on {layer.in_per_group} channels: the fast kernels work on whole blocks of "
            f"{machine.channel_block}, which is {whole:.1f}x the work"
        )
    if layer.groups > 1 and 1 < layer.out_per_group < machine.full_filters:
        return (
            f"{layer.out_per_group} filters a group: the fast kernels work on {machine.full_filters} at a time, "
            "so part of them idles"
        )
    if moving > NOTABLE_SHARE:
        return _moving_words(layer)
    if layer.pruned_ms < TINY_MS:
        shared = f" for {machine.threads} threads" if machine.threads > 1 else ""
        return f"too little work{shared} ({layer.pruned_ms:.2g} ms): starting the operation costs as much"
    if layer.flops_per_byte < machine.balance_flops_per_byte:
        return f"memory-bound: too little work a byte ({layer.flops_per_byte:.1f} FLOPs)"
    if layer.noise > NOTABLE_SHARE:
        return f"too noisy to explain: its times vary by {layer.noise:.0%}"
    return "not explained by its shape, its gathers or memory"


def dense_cause(note: str) -> str:
    """The plan's note on a layer that it left as it was, as a cause."""
    return note if "dense" in note else f"not pruned: {note}"


def is_off_block(layer: LayerFacts, block: int) -> bool:
    """Whether channels a group miss the block. Depthwise convolutions have kernels of their own."""
    if block <= 1 or layer.groups == 1 or (layer.in_per_group == 1 and layer.out_per_group == 1):
        return False
    return bool(layer.in_per_group % block or layer.out_per_group % block)


def block_excess(layer: LayerFacts, block: int) -> float:
    """How many times its MACs an ungrouped convolution computes in whole blocks of filters and input channels. Fewer
    input channels than a block are read as they are."""
    if block <= 1 or layer.groups > 1 or not layer.is_conv:
        return 1.0
    outer, inner = layer.out_per_group, layer.in_per_group
    read = math.ceil(inner / block) * block if inner > block else inner
    return math.ceil(outer / block) * block * read / (outer * inner)


def _moving_words(layer: LayerFacts) -> str:
    """Data that is only moved. A Gather also costs the way out of the runtime's blocked layout and back."""
    gather, reorder = layer.gather_ms / layer.pruned_ms, layer.reorder_ms / layer.pruned_ms
    if gather >= 0.01 and reorder >= 0.01:
        return f"gather takes {gather:.0%} of the layer, the reordering of data around it {reorder:.0%}"
    if gather > reorder:
        return f"gather takes {gather:.0%} of the layer"
    return f"reordering data between layouts takes {reorder:.0%} of the layer"
