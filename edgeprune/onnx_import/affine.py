"""What scales and shifts each channel behind a node, so that it can become part of the layer in front.

Exporters other than torch's write a bias as an Add of its own. Inside the layer it follows the layer's filters when
these are pruned; on its own it would keep them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from edgeprune.onnx_files.graph import is_standard
from edgeprune.onnx_import.building import Building

Channels = NDArray[np.float64]
_STEPS = frozenset({"Add", "Sub", "Mul", "Div"})


@dataclass(frozen=True)
class Affine:
    """y[c] = scale[c] * x[c] + shift[c]."""

    scale: Channels
    shift: Channels
    output: str
    """The value that holds y."""
    nodes: tuple[str, ...]
    """The names of the nodes that it stands for."""


def affine_behind(building: Building, value: str, channels: int, axis: int) -> Affine:
    """All that scales and shifts each of the `channels` along `axis` of `value`, as long as nothing else reads what is
    between."""
    found = Affine(np.ones(channels), np.zeros(channels), value, ())
    while (reader := _only_reader(building, found.output)) is not None:
        further = affine_step(building, reader, found, axis)
        if further is None:
            break
        found = further
    return found


def affine_step(building: Building, node: NodeProto, before: Affine, axis: int) -> Affine | None:
    """`before` with one more node; None where that does not scale or shift each channel by a constant."""
    if node.op_type not in _STEPS or not is_standard(node) or len(set(node.input)) != 2:
        return None
    comes_first = node.input[0] == before.output
    rank = len(building.types.get(before.output, (None, 0))[0] or ())
    constant = building.constant(node.input[1 if comes_first else 0])
    if constant is None or not np.issubdtype(constant.dtype, np.floating):
        return None
    operand = _by_channel(constant, len(before.scale), axis, rank)
    if operand is None or (node.op_type == "Div" and (not comes_first or not operand.all())):
        return None
    scale, shift = before.scale, before.shift
    if node.op_type == "Add":
        shift = shift + operand
    elif node.op_type == "Mul":
        scale, shift = scale * operand, shift * operand
    elif node.op_type == "Div":
        scale, shift = scale / operand, shift / operand
    elif comes_first:
        shift = shift - operand
    else:
        scale, shift = -scale, operand - shift
    return Affine(scale, shift, node.output[0], (*before.nodes, node.name))


def _by_channel(constant: NDArray[Any], channels: int, axis: int, rank: int) -> Channels | None:
    """(channels,) what a constant is for each channel; None where it differs along another axis."""
    if constant.ndim > rank:
        return None
    sizes = (1,) * (rank - constant.ndim) + constant.shape
    if any(size != 1 for place, size in enumerate(sizes) if place != axis) or sizes[axis] not in (1, channels):
        return None
    return np.broadcast_to(constant.reshape(-1).astype(np.float64), (channels,))


def _only_reader(building: Building, value: str) -> NodeProto | None:
    readers = building.readers.get(value, [])
    return readers[0] if len(readers) == 1 and value not in building.outputs else None
