"""What a network costs under a plan: multiply-adds and parameters."""

from __future__ import annotations

import math

from edgeprune.graph import Graph, Layer
from edgeprune.kept_channels import KeptChannels
from edgeprune.plan import LayerPlan, Plan


def planned_macs(plan: Plan, graph: Graph) -> dict[str, int]:
    """Multiply-adds a sample of every layer under the plan: its weights at every output position."""
    return {name: weights * graph.layer(name).positions for name, weights in planned_weights(plan, graph).items()}


def planned_weights(plan: Plan, graph: Graph) -> dict[str, int]:
    """Weights of every layer under the plan, biases left out.

    |filters| |inputs| k k for each group, over the filters and inputs that are left.
    """
    kept, grouped = KeptChannels(plan, graph), plan.grouped()
    return {
        layer.name: _kernels(layer, grouped.get(layer.name), kept)
        * math.prod(layer.kernel_size)
        * layer.features_per_channel
        for layer in graph.layers
    }


def planned_params(plan: Plan, graph: Graph) -> int:
    """Parameters of the network under the plan."""
    kept = KeptChannels(plan, graph)
    fewer = 0
    for norm in graph.norms:
        written = kept.sets[norm.coupled_set]
        fewer += 2 * norm.affine * norm.features_per_channel * (written.channels - len(written.index))
    for layer in graph.layers:
        left_out = layer.out_channels - len(kept.filters(layer).index)
        fewer += layer.has_bias * left_out
        if layer.norm and kept.sets[layer.writes].is_all:  # else its BatchNorm was counted above
            fewer += 2 * next(norm.affine for norm in graph.norms if norm.name == layer.norm) * left_out
    return sum(planned_weights(plan, graph).values()) + graph.other_params - fewer


def off_block_note(plan: Plan, block: int) -> str:
    """A sentence on the grouped layers whose channels a group miss a target's block; empty if none does, or the plan
    was aligned (to this or to another target's block)."""
    if plan.settings.get("align", 1) > 1:
        return ""
    grouped = plan.grouped()
    missed = [e.name for e in grouped.values() if e.kept % block or len(e.filters[0]) % block]
    if not missed:
        return ""
    named = ", ".join(missed[:2]) + (", ..." if len(missed) > 2 else "")
    return (
        f"{len(missed)} of {len(grouped)} grouped layers ({named}) have channels a group that are no multiple of "
        f"{block}, the block of this machine's fast kernels: they may run slower than dense. --align auto chooses "
        f"multiples; or choose --groups and --rate so that filters and kept channels a group are multiples of {block} "
        "(often --groups 2 --rate 0.5), and leave narrow layers dense with --skip."
    )


def _kernels(layer: Layer, entry: LayerPlan | None, kept: KeptChannels) -> int:
    if entry is not None:
        return sum(len(filters) * len(inputs) for filters, inputs in zip(entry.filters, entry.inputs, strict=True))
    filters = len(kept.filters(layer).index)
    if layer.is_depthwise:
        return filters
    return filters * (len(kept.inputs(layer).index) // layer.groups)  # an already grouped layer's sets are pinned
