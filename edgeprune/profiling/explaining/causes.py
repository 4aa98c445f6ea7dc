"""Why a layer is not as fast as its MACs promise, in words. Rules of thumb on figures of the layer; pure functions.

Every cause that may hold says which part of the layer's time would go without it; the largest part is named. What is
measured (Gathers, reordering, another provider) and what is counted (zeros, blocks, nodes) comes out of the layer
itself; what a slower kernel costs, out of the device profile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edgeprune.devices.channel_block import is_off_block, round_up
from edgeprune.devices.roofline import Roofline
from edgeprune.profiling.explaining.facts import LayerFacts, MachineFacts

LOW_EFFICIENCY = 0.85
"""Below this share of a layer's theoretical speed-up, a cause is looked for."""
AT_BOUND, AT_NOMINAL_BOUND = 0.5, 0.4
"""From this share of the device's bound on, a layer is as fast as the device: few kernels reach more of its peaks, or
of what its data sheet says, where nobody measured them."""
NOTABLE_SHARE = 0.15
"""Share of a layer's time from which on one of its parts is worth naming, where half of what is missing is more."""
SHORT_SUM = 64
"""Products in a sum below which a kernel spends a good part of its time beside multiplying."""
MERELY_STARTED = 0.7
"""Share of the time of data movements that starting them takes, from which on they are just that: started."""
NEAR_MEMORY = 0.1
"""Share of a layer's time that its memory traffic takes at least, at the device's bandwidth, if it waits for memory:
one core alone reaches but a part of that."""

Kind = Literal[
    "kept",
    "fallback",
    "gather",
    "reorder",
    "zeros",
    "off-block",
    "part-block",
    "few-filters",
    "dispatch",
    "threads",
    "memory-bound",
    "compute-bound",
    "noise",
    "kernel",
]


@dataclass(frozen=True)
class Cause:
    """Why a layer is slower than promised."""

    kind: Kind
    words: str
    share: float = 0.0
    """Share of the layer's time that would go without it."""


def explain(layer: LayerFacts, machine: MachineFacts) -> Cause | None:
    """The one cause of a layer that is slower than promised; None if there is nothing to explain.

    A layer that the plan left as it was is always explained by the plan's note. Otherwise there is something to explain
    below `LOW_EFFICIENCY`, and the cause without which most time would go is named. If none of them counts, the layer
    is at the device's bound, or its times vary too much, or its kernel does not use the device well. Without a baseline
    nothing was promised: it is told what bounds the layer, or what keeps it from the device's bound.
    """
    if layer.provider and layer.wanted_provider and layer.provider != layer.wanted_provider:
        return Cause("fallback", f"fallback: {layer.provider} ran it, not {layer.wanted_provider}", 1.0)
    if layer.note and not layer.is_pruned:
        return Cause("kept", dense_words(layer.note))
    missing = _missing(layer, machine)
    if missing is None:
        return None
    largest = max(_candidates(layer, machine), key=lambda cause: cause.share, default=None)
    if layer.efficiency is None and machine.roofline and missing <= 1 - bound_threshold(machine.roofline):
        return _at_bound(layer, machine)
    if largest and largest.share >= min(NOTABLE_SHARE, missing / 2):
        return largest
    return _of_the_rest(layer, machine, missing)


def dense_words(note: str) -> str:
    """The plan's note on a layer that it left as it was, as a cause."""
    return note if "dense" in note else f"not pruned: {note}"


def block_excess(layer: LayerFacts, block: int) -> float:
    """How many times its MACs an ungrouped convolution computes in whole blocks of filters and input channels. Fewer
    input channels than a block are read as they are."""
    if block <= 1 or layer.groups > 1 or not layer.is_conv:
        return 1.0
    outer, inner = layer.out_per_group, layer.in_per_group
    read = round_up(inner, block) if inner > block else inner
    return round_up(outer, block) * read / (outer * inner)


def bound_threshold(roofline: Roofline) -> float:
    """The share of a device's bound from which on a layer counts as bound by it."""
    return AT_BOUND if roofline.is_measured else AT_NOMINAL_BOUND


def fitting_groups(layer: LayerFacts, block: int) -> int:
    """The most groups, fewer than now, that leave the same channels on the block; 0 if there are none."""
    inner, outer = layer.groups * layer.in_per_group, layer.groups * layer.out_per_group
    most = math.gcd(inner // block, outer // block) if inner % block == outer % block == 0 else 0
    return max((count for count in range(2, min(most, layer.groups - 1) + 1) if most % count == 0), default=0)


def bound_share(layer: LayerFacts, roofline: Roofline | None) -> float | None:
    """What the device's bound is of the layer's time; 1 is all that the device can do."""
    return roofline.bound_ms(layer.executed_macs, layer.bytes_moved) / layer.pruned_ms if roofline else None


def _missing(layer: LayerFacts, machine: MachineFacts) -> float | None:
    """Share of the layer's time that should not be there; None where there is nothing to explain."""
    if layer.efficiency is not None:
        return 1 - layer.efficiency if layer.efficiency < LOW_EFFICIENCY and layer.is_pruned else None
    share = bound_share(layer, machine.roofline)
    return None if share is None else max(1 - share, 0.0)


def _candidates(layer: LayerFacts, machine: MachineFacts) -> Iterator[Cause]:
    """Every cause that may hold, with the share of the time that would go without it."""
    kernel = max(1 - layer.moving - layer.nodes * machine.dispatch_ms / layer.pruned_ms, 0.0)
    # Movements that take little more than being started are a matter of their number, not of their bytes.
    are_starts = layer.moves * machine.dispatch_ms >= MERELY_STARTED * (layer.gather_ms + layer.reorder_ms)
    started = layer.nodes + (layer.moves if are_starts else 0)
    starting = started * machine.dispatch_ms
    if not are_starts:
        yield _moving(layer)
    excess = layer.executed_macs / layer.macs if layer.macs else 1.0
    if excess > 1:
        words = f"written as {layer.lowering}, {excess:.1f}x the planned MACs: chosen as its fastest form"
        yield Cause("zeros", words, kernel * (1 - 1 / excess))
    yield from _off_block(layer, machine, kernel)
    whole = block_excess(layer, machine.channel_block)
    if whole > 1:
        words = (
            f"{layer.out_per_group} filters on {layer.in_per_group} channels: the fast kernels work on whole blocks of "
            f"{machine.channel_block}, which is {whole:.1f}x the work; {_nearest(layer, machine.channel_block)} would "
            "fit"
        )
        yield Cause("part-block", words, kernel * (1 - 1 / whole))
    if layer.is_conv and layer.out_per_group > 1 and machine.filter_rates:
        full, each = max(machine.filter_rates), " a group" if layer.groups > 1 else ""
        words = f"{layer.out_per_group} filters{each}: the fast kernels work on {full} at a time, so part of them "
        yield Cause("few-filters", words + "idles", kernel * (1 - _filter_rate(layer.out_per_group, machine)))
    yield from _waiting(layer, machine, kernel)
    words = f"dispatch-bound: starting {_counted(started)} takes a large part of {layer.pruned_ms:.2g} ms"
    yield Cause("dispatch", words, min(starting / layer.pruned_ms, 1.0))
    if machine.threads > 1:
        words = f"too little work for {machine.threads} threads ({layer.pruned_ms:.2g} ms): waking them costs as much"
        waking = layer.nodes * machine.wake_ms
        yield Cause("threads", words, min((starting + waking) / layer.pruned_ms, 1.0))


def _waiting(layer: LayerFacts, machine: MachineFacts, kernel: float) -> Iterator[Cause]:
    """Memory-bound: the kernel could multiply faster than its operands come."""
    if machine.roofline is None:
        share = 1 - layer.flops_per_byte / machine.balance_flops_per_byte
    else:
        compute = machine.roofline.compute_ms(layer.executed_macs)
        memory = machine.roofline.memory_ms(layer.bytes_moved)
        share = 1 - compute / memory if memory > NEAR_MEMORY * kernel * layer.pruned_ms else 0.0
    if share > 0:
        words = f"memory-bound: too little work a byte ({layer.flops_per_byte:.1f} FLOPs)"
        yield Cause("memory-bound", words, kernel * share)


def _of_the_rest(layer: LayerFacts, machine: MachineFacts, missing: float) -> Cause:
    """A layer that none of the causes explains, though this share of its time should not be there."""
    share = bound_share(layer, machine.roofline)
    if layer.efficiency is not None and layer.efficiency * (1 + layer.noise) >= LOW_EFFICIENCY:
        return Cause("noise", f"within its noise: its times vary by {layer.noise:.0%}")
    if share is not None and machine.roofline and share >= bound_threshold(machine.roofline):
        return _at_bound(layer, machine)
    if layer.noise > max(NOTABLE_SHARE, missing / 2):
        return Cause("noise", f"too noisy to explain: its times vary by {layer.noise:.0%}")
    reached = f"at {share:.0%} of the device's bound" if share is not None else "slower than in the dense layer"
    sums = f": sums of {layer.products} products are short for it" if 0 < layer.products < SHORT_SUM else ""
    return Cause("kernel", f"its kernel works {reached}{sums}")


def _at_bound(layer: LayerFacts, machine: MachineFacts) -> Cause:
    """A layer as fast as the device can be expected to be."""
    assert machine.roofline is not None
    compute = machine.roofline.compute_ms(layer.executed_macs) / layer.pruned_ms
    memory = machine.roofline.memory_ms(layer.bytes_moved) / layer.pruned_ms
    if memory > compute:
        return Cause("memory-bound", f"memory-bound: at {memory:.0%} of the device's bandwidth")
    return Cause("compute-bound", f"compute-bound: at {compute:.0%} of the device's peak")


def _moving(layer: LayerFacts) -> Cause:
    """Data that is only moved. A Gather also costs the way out of the runtime's blocked layout and back."""
    gather, reorder = layer.gather_ms / layer.pruned_ms, layer.reorder_ms / layer.pruned_ms
    if gather >= 0.01 and reorder >= 0.01:
        words = f"gather takes {gather:.0%} of the layer, the reordering of data around it {reorder:.0%}"
        return Cause("gather", words, gather + reorder)
    if gather > reorder:
        return Cause("gather", f"gather takes {gather:.0%} of the layer", gather)
    return Cause("reorder", f"reordering data between layouts takes {reorder:.0%} of the layer", reorder)


def _off_block(layer: LayerFacts, machine: MachineFacts, kernel: float) -> Iterator[Cause]:
    """Channels for which the runtime has no fast kernel."""
    groups, inner, outer, block = layer.groups, layer.in_per_group, layer.out_per_group, machine.channel_block
    if not layer.is_conv or layer.lowering == "split":
        return
    if not is_off_block(groups, inner, outer, block, machine.layout_channels):
        return
    if inner == outer == 1:
        multiple = machine.layout_channels
        fits = f"{groups // multiple * multiple} or {round_up(groups, multiple)}"
        words = f"{groups} channels are no multiple of {multiple}: {machine.off_block}; {fits} would fit"
        yield Cause("off-block", words, kernel * (1 - machine.off_block_depthwise_rate))
    else:
        yield Cause("off-block", _off_block_words(layer, machine), kernel * (1 - machine.off_block_rate))


def _off_block_words(layer: LayerFacts, machine: MachineFacts) -> str:
    block, inner, outer = machine.channel_block, layer.in_per_group, layer.out_per_group
    fits = [f"{round_up(inner, block)} in and {round_up(outer, block)} out"]
    groups = fitting_groups(layer, block)
    if groups:
        fits.insert(0, f"{groups} groups")
    return (
        f"{inner} channels a group in, {outer} out: off the block of {block}, {machine.off_block}; "
        f"{' or '.join(fits)} would fit"
    )


def _nearest(layer: LayerFacts, block: int) -> str:
    """Numbers of filters and channels on the block next to a layer's, fewer and more."""

    def around(count: int) -> str:
        below, above = count // block * block, round_up(count, block)
        return f"{below} or {above}" if 0 < below < above else str(above)

    filters, channels = layer.out_per_group, layer.in_per_group
    parts = [f"{around(filters)} filters"] if filters % block else []
    if channels > block and channels % block:
        parts.append(f"{around(channels)} channels")
    return " on ".join(parts)


def _filter_rate(filters: int, machine: MachineFacts) -> float:
    known = [rate for count, rate in sorted(machine.filter_rates.items()) if count <= filters]
    return known[-1] if known else min(machine.filter_rates.values())


def _counted(nodes: int) -> str:
    return f"{nodes} operations" if nodes > 1 else "one operation"
