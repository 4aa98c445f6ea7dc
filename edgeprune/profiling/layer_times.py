"""The layers of two ONNX models side by side: which dense layer became which pruned one, and whose time is whose.

A layer is a node with multiply-adds and weights. To its time belong the Gathers in front of or behind it and the
reordering of data that the runtime adds for it, since without the layer nobody would need them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

from onnx import ModelProto, NodeProto

from edgeprune.lowering.forms import layer_of_node
from edgeprune.onnx_files.constants import constants
from edgeprune.onnx_files.graph import attributes, element_bytes
from edgeprune.onnx_files.macs import MacCount, count_macs
from edgeprune.onnx_files.shapes import concrete_types
from edgeprune.profiling.measurement import Measurement
from edgeprune.runners.base import NodeTime


@dataclass(frozen=True)
class LayerInfo:
    """One layer of one ONNX model. A linear layer has one group."""

    name: str
    op_type: str
    groups: int
    in_per_group: int
    out_per_group: int
    macs: int
    bytes_moved: int
    products: int = 0
    """Multiply-adds of one value of its output."""


@dataclass(frozen=True)
class ModelLayers:
    """The layers of one model at one batch size, in order."""

    layers: tuple[LayerInfo, ...]
    counted: MacCount
    owners: Mapping[str, str]
    """Node -> the layer that it belongs to, for the layers themselves and what moves data for them."""

    @staticmethod
    def of(model: ModelProto, batch: int, share_of_bytes: float = 1.0) -> ModelLayers:
        """The layers as they are in the file, or with that share of its bytes where they run in another precision.

        InputError if the batch does not fit the model, or shapes cannot be inferred.
        """
        counted = count_macs(model, batch=batch)
        types = concrete_types(model, batch)
        sizes = {
            value: math.prod(shape) * element_bytes(kind) for value, (shape, kind) in types.items() if shape is not None
        }
        nodes = {node.name: node for node in model.graph.node}
        layers = []
        for entry in counted.per_node:
            if entry.macs and entry.weight_name and entry.weight_shape and entry.name in nodes:
                node = nodes[entry.name]
                groups, inner, outer = _channels(node, entry.weight_shape)
                moved = sum(sizes.get(value, 0) for value in (*node.input, *node.output)) * share_of_bytes
                products = math.prod(entry.weight_shape) // (groups * outer)
                layers.append(
                    LayerInfo(entry.name, entry.op_type, groups, inner, outer, entry.macs, int(moved), products)
                )
        joined = _joined(layers)
        return ModelLayers(joined, counted, _owners(model, {layer.name for layer in joined}))


class LayerTime(NamedTuple):
    """Milliseconds of a layer; `total` holds those of Gathers and reordering."""

    total: float = 0.0
    gather: float = 0.0
    reorder: float = 0.0
    noise: float = 0.0
    """Interquartile range over median, where the layer was timed in several turns."""
    nodes: int = 0
    """Operations that were started for it, its Gathers and reordering not counted."""
    moves: int = 0
    """Gathers and reorderings that were started for it."""
    provider: str = ""
    """What ran it; where several did, the first that is not the target's own. Empty where the target does not tell."""


def match_layers(dense: Sequence[LayerInfo], pruned: Sequence[LayerInfo]) -> dict[str, LayerInfo]:
    """Pruned layer's name -> the dense layer it was: by name if any agree, else by order if the operations agree."""
    by_name = {layer.name: layer for layer in dense}
    matched = {layer.name: by_name[layer.name] for layer in pruned if layer.name in by_name}
    if matched:
        return matched
    if [layer.op_type for layer in dense] == [layer.op_type for layer in pruned]:
        return {after.name: before for before, after in zip(dense, pruned, strict=True)}
    return {}


def attribute_times(
    nodes: Iterable[NodeTime], original: Mapping[str, str], owned: Mapping[str, str], provider: str = ""
) -> tuple[dict[str, LayerTime], float]:
    """Times of the layers by name, and of all the rest together.

    `owned` maps a node to its layer, as `ModelLayers.owners`; `original` maps a timed node to the model's node, or to
    "" for a reordering of data. Reordering in front of a layer or its Gather is that layer's; any other is that of the
    layer before. `provider` is the one that the target stands for.
    """
    timed = list(nodes)
    owners = [owned.get(original.get(node.name, node.name), "") for node in timed]
    times: dict[str, LayerTime] = {}
    other = 0.0
    for position, node in enumerate(timed):
        is_reorder = not original.get(node.name, node.name)
        owner = _reorder_owner(owners, timed, position) if is_reorder else owners[position]
        if not owner:
            other += node.mean_ms
            continue
        known = times.get(owner, LayerTime())
        is_gather = node.op_type == "Gather"
        is_kernel = not (is_gather or is_reorder)
        own = getattr(node, "provider", "")
        foreign = known.provider not in ("", provider)
        times[owner] = LayerTime(
            known.total + node.mean_ms,
            known.gather + (node.mean_ms if is_gather else 0.0),
            known.reorder + (node.mean_ms if is_reorder else 0.0),
            nodes=known.nodes + is_kernel,
            moves=known.moves + (not is_kernel),
            provider=own if is_kernel and not foreign else known.provider,
        )
    return times, other


def median_time(turns: Sequence[LayerTime]) -> LayerTime:
    """The median of every part over several turns, and the total's spread."""
    total, gather, reorder = (median(part) for part in zip(*(turn[:3] for turn in turns), strict=True))
    noise = Measurement("layer", tuple(turn.total for turn in turns)).noise
    first = turns[0]
    return LayerTime(total, gather, reorder, noise, first.nodes, first.moves, first.provider)


def _reorder_owner(owners: Sequence[str], nodes: Sequence[NodeTime], position: int) -> str:
    following = owners[position + 1] if position + 1 < len(owners) else ""
    if following:
        return following
    if nodes[position].op_type == "ReorderInput":  # for a layer, though another operation may run in between
        return next((owner for owner in owners[position + 1 :] if owner), "")
    return next((owner for owner in reversed(owners[:position]) if owner), "")


def _channels(node: NodeProto, weight: tuple[int, ...]) -> tuple[int, int, int]:
    """Groups, input channels and output channels a group."""
    groups = attributes(node).get("group", 1)
    groups = groups if isinstance(groups, int) and groups > 0 else 1
    if node.op_type == "ConvTranspose":  # weight (C_in, C_out / groups, *kernel)
        return groups, weight[0] // groups, weight[1]
    if node.op_type in ("Gemm", "FusedGemm"):
        outer, inner = weight if attributes(node).get("transB") else weight[::-1]
        return 1, inner, outer
    if node.op_type.startswith("MatMul"):
        return 1, weight[-2] if len(weight) > 1 else weight[0], weight[-1] if len(weight) > 1 else 1
    return groups, weight[1], weight[0] // groups


def _joined(layers: Sequence[LayerInfo]) -> tuple[LayerInfo, ...]:
    """The layers with those put together again that are written as one convolution a group."""
    parts: dict[str, list[LayerInfo]] = {}
    for layer in layers:
        parts.setdefault(layer_of_node(layer.name), []).append(layer)
    return tuple(
        replace(
            same[0],
            name=name,
            groups=sum(part.groups for part in same),
            macs=sum(part.macs for part in same),
            bytes_moved=sum(part.bytes_moved for part in same),
        )
        for name, same in parts.items()
    )


def _owners(model: ModelProto, layers: set[str]) -> dict[str, str]:
    """Every node that belongs to a layer: by its name where edgeprune gave it one, a Gather else to the layer next to
    it."""
    fixed = constants(model)
    makers = {value: node for node in model.graph.node for value in node.output}
    users: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for value in node.input:
            users.setdefault(value, []).append(node)
    owners = {node.name: owner for node in model.graph.node if (owner := layer_of_node(node.name)) in layers}
    for node in model.graph.node:
        if node.name in owners or node.op_type != "Gather" or len(node.input) < 2 or node.input[1] not in fixed:
            continue
        near = [layer_of_node(user.name) for user in users.get(node.output[0], ())]
        maker = makers.get(node.input[0])
        if maker is not None and maker.op_type in ("Relu", "Clip", "Add", "BatchNormalization"):
            maker = makers.get(maker.input[0])
        near += [layer_of_node(maker.name)] if maker is not None else []
        owner = next((name for name in near if name in layers), "")
        if owner:
            owners[node.name] = owner
    return owners
