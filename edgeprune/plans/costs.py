"""What a network costs under a plan: multiply-adds and parameters."""

from __future__ import annotations

import math
from collections.abc import Collection

from edgeprune.graph import Graph, Layer
from edgeprune.plans.kept_channels import KeptChannels
from edgeprune.plans.plan import LayerPlan, Plan


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
        written = kept.norm(norm, graph)
        fewer += 2 * norm.affine * norm.features_per_channel * (written.channels - len(written.index))
    for slopes in graph.slopes:
        written = kept.slopes(slopes)
        fewer += slopes.features_per_channel * (written.channels - len(written.index))
    for layer in graph.layers:
        left_out = layer.out_channels - len(kept.filters(layer).index)
        fewer += layer.has_bias * left_out
    return sum(planned_weights(plan, graph).values()) + graph.other_params - fewer


def off_block_note(plan: Plan, graph: Graph, block: int, flags: Collection[str], device: str = "this machine") -> str:
    """A sentence or two on convolutions whose channels miss a target's block: a group's, and those that are left of
    thinner layers; empty if none does, or the plan was aligned (to this or to another target's block).

    `flags`: those of --groups and --rate that choose these channels; `device`: whose block it is.
    """
    if plan.settings.get("align", 1) > 1:
        return ""
    grouped, kept = plan.grouped(), KeptChannels(plan, graph)
    missed = [e.name for e in grouped.values() if e.kept % block or len(e.filters[0]) % block]
    left = {
        layer.name: len(kept.filters(layer).index)
        for layer in graph.layers
        if layer.kind == "conv" and not layer.is_depthwise and layer.name not in grouped | dict.fromkeys(kept.gone)
        if not kept.filters(layer).is_all
    }
    uneven = [name for name, filters in left.items() if filters % block]
    sentences = []
    if missed:
        sentences.append(
            f"{len(missed)} of {len(grouped)} grouped layers ({_some(missed)}) have channels a group that are no "
            f"multiple of {block}, the block of {device}'s fast kernels: they may run no faster than dense."
        )
    if uneven:
        sentences.append(
            f"{len(uneven)} of {len(left)} thinner layers ({_some(uneven)}) keep filters that are no multiple of "
            f"{block}, the block of {device}'s fast kernels: they gain less than their MACs say, or nothing."
        )
    if sentences and flags:
        often = " (often --groups 2 --rate 0.5)" if missed and len(flags) > 1 else ""
        which = "filters and kept channels a group" if missed else "the filters that are kept"
        sentences.append(
            f"--align auto chooses multiples; or choose {' and '.join(flags)} so that {which} are multiples of "
            f"{block}{often}, or leave narrow layers as they are with --skip."
        )
    return " ".join(sentences)


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")


def _kernels(layer: Layer, entry: LayerPlan | None, kept: KeptChannels) -> int:
    if entry is not None:
        return sum(len(filters) * len(inputs) for filters, inputs in zip(entry.filters, entry.inputs, strict=True))
    if layer.groups > 1:
        return sum(len(group.filters) * len(group.inputs) for group in kept.groups(layer))
    return len(kept.filters(layer).index) * len(kept.inputs(layer).index)
