"""Convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from edgeprune.onnx_import.affine import Affine, affine_behind
from edgeprune.onnx_import.building import set_parameters
from edgeprune.onnx_import.node import OnnxNode
from edgeprune.onnx_import.ops.windows import padded, window_pads

_CONVOLUTIONS: Mapping[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: Mapping[int, Callable[..., nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


def conv(node: OnnxNode) -> fx.Node:
    weight = node.known(1, "weight")  # (out, in / groups, *kernel)
    axes, groups = weight.ndim - 2, node.attribute("group", 1)
    if axes not in _CONVOLUTIONS:
        raise node.refused(f"its weight has {weight.ndim} axes")
    kernel = list(weight.shape[2:])
    strides, dilations = list(node.attribute("strides", [1] * axes)), list(node.attribute("dilations", [1] * axes))
    before, after = window_pads(node, kernel, strides, dilations)
    x, padding = node.tensor(), before
    if before != after:
        x, padding = padded(node, x, before, after), [0] * axes
    affine = affine_behind(node.building, node.proto.output[0], len(weight), 1)
    bias = _shifted(_bias(node), affine)
    module = _CONVOLUTIONS[axes](
        weight.shape[1] * groups, len(weight), tuple(kernel), tuple(strides), tuple(padding), tuple(dilations), groups,
        bias is not None,
    )  # fmt: skip
    same = (*node.proto.input[1:3], *map(tuple, (strides, padding, dilations)), groups)
    scaled = _rows_scaled(weight, affine)
    return _layer(node, module, scaled, bias, x, affine, same)


def conv_transpose(node: OnnxNode) -> fx.Node:
    weight = node.known(1, "weight")  # (in, out / groups, *kernel)
    axes, groups = weight.ndim - 2, node.attribute("group", 1)
    if axes not in _TRANSPOSED:
        raise node.refused(f"its weight has {weight.ndim} axes")
    kernel, channels = list(weight.shape[2:]), weight.shape[1] * groups
    strides, dilations = list(node.attribute("strides", [1] * axes)), list(node.attribute("dilations", [1] * axes))
    extra = list(node.attribute("output_padding", [0] * axes))
    before, after = _transposed_pads(node, kernel, strides, dilations, extra)
    is_even = before == after
    padding = before if is_even else [0] * axes  # else all is computed, and cut afterwards
    affine = affine_behind(node.building, node.proto.output[0], channels, 1)
    bias = _shifted(_bias(node), affine)
    module = _TRANSPOSED[axes](
        len(weight), channels, tuple(kernel), tuple(strides), tuple(padding), tuple(extra), groups,
        bias is not None, tuple(dilations),
    )  # fmt: skip
    scale = affine.scale.reshape(groups, 1, -1, *[1] * axes)  # (groups, 1, out / groups, 1, 1)
    scaled = (weight.reshape(groups, -1, *weight.shape[1:]) * scale).reshape(weight.shape)
    same = (*node.proto.input[1:3], *map(tuple, (strides, padding, extra, dilations)), groups, is_even)
    y = _layer(node, module, scaled, bias, node.tensor(), affine, same)
    if is_even:
        return y
    cut = padded(node, y, [-size for size in before], [-size for size in after])
    node.building.values[affine.output] = cut
    return cut


def _bias(node: OnnxNode) -> NDArray[Any] | None:
    return node.known(2, "bias") if node.has(2) else None


def _transposed_pads(
    node: OnnxNode, kernel: list[int], strides: list[int], dilations: list[int], extra: list[int]
) -> tuple[list[int], list[int]]:
    """What is cut off (before, after) each image axis of the full result."""
    axes, rule = len(kernel), node.attribute("auto_pad", "NOTSET")
    if not node.has_attribute("output_shape") and rule in ("NOTSET", "VALID"):
        pads = list(node.attribute("pads", [0] * (2 * axes))) if rule == "NOTSET" else [0] * (2 * axes)
        return pads[:axes], pads[axes:]
    before, after = [], []
    for axis, size in enumerate(node.shape()[2:]):
        full = strides[axis] * (size - 1) + extra[axis] + dilations[axis] * (kernel[axis] - 1) + 1
        total = full - node.output_shape()[2 + axis]
        half = total // 2
        before.append(half if rule == "SAME_UPPER" else total - half)
        after.append(total - half if rule == "SAME_UPPER" else half)
    return before, after


def gemm(node: OnnxNode) -> fx.Node:
    if node.attribute("transA", 0):
        raise node.refused("it mixes the images of a batch (transA)")
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    weight = node.known(1, "weight")
    rows = weight if node.attribute("transB", 0) else weight.T  # (out, in)
    rows = rows if alpha == 1 else alpha * rows
    bias = node.constant(2)
    if not node.has(2) or (bias is not None and bias.size in (1, len(rows))):
        own = None if bias is None else np.broadcast_to(beta * bias.reshape(-1), (len(rows),))
        return _linear(node, rows, own, node.tensor())
    y = node.layer(_plain_linear(rows), node.tensor(), weight=1)
    return node.call(torch.add, y, node.call(torch.mul, node.tensor(2), beta))


def matmul(node: OnnxNode) -> fx.Node:
    weight = node.constant(1)
    if weight is not None and weight.ndim == 2 and node.rank > 1 and node.constant(0) is None:
        return _linear(node, weight.T, None, node.tensor())
    return node.call(torch.matmul, node.tensor(), node.tensor(1))


def _linear(node: OnnxNode, weight: NDArray[Any], bias: NDArray[Any] | None, x: fx.Node) -> fx.Node:
    """A linear layer over the last axis; its weight has shape (out, in)."""
    affine = affine_behind(node.building, node.proto.output[0], len(weight), node.output_rank - 1)
    shift = _shifted(bias, affine)
    module = nn.Linear(weight.shape[1], weight.shape[0], shift is not None)
    return _layer(node, module, _rows_scaled(weight, affine), shift, x, affine, tuple(node.proto.input[1:]))


def _plain_linear(weight: NDArray[Any]) -> nn.Linear:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    set_parameters(module, weight=weight)
    return module


def _rows_scaled(weight: NDArray[Any], affine: Affine) -> NDArray[Any]:
    """(out, ...) the weight with what is behind the layer."""
    return weight * affine.scale.reshape(-1, *[1] * (weight.ndim - 1)) if affine.nodes else weight


def _shifted(bias: NDArray[Any] | None, affine: Affine) -> NDArray[Any] | None:
    """The bias with what is behind the layer; None where there is none."""
    if not affine.nodes or (bias is None and not affine.shift.any()):
        return bias
    return affine.shift + (0 if bias is None else bias * affine.scale)


def _layer(
    node: OnnxNode,
    module: nn.Module,
    weight: NDArray[Any],
    bias: NDArray[Any] | None,
    x: fx.Node,
    affine: Affine,
    same: tuple[object, ...],
) -> fx.Node:
    """A call of the layer with these weights, standing for the nodes behind it as well."""
    set_parameters(module, weight=weight, bias=bias)
    y = node.layer(module, x, weight=1, same=(node.op, *same, *affine.nodes))
    node.stands_for(affine, y)
    return y
