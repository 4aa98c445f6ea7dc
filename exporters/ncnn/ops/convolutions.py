"""Layers with weights: convolutions, their transposes, and linear layers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgeprune.exporters.ncnn.layers import Layer, Value, blob_sizes, plain, tagged
from edgeprune.exporters.ncnn.node import Node
from edgeprune.exporters.ncnn.ops.windows import AXES, Two, Window, window

Floats = NDArray[np.float32]


def convolution(node: Node) -> list[Layer]:
    """Conv: Convolution, or with groups ConvolutionDepthWise, which is for any number of them."""
    weight = node.required(1, "weights")  # (filters, inputs a group, kh, kw), as ncnn has them
    groups = node.attribute("group", 1)
    params = _params(window(node, weight.shape[2:]), weight, len(weight))
    params |= {7: groups} if groups > 1 else {}
    kind = "Convolution" if groups == 1 else "ConvolutionDepthWise"
    return [_with_bias(node, kind, params, weight, bias_id=5)]


def deconvolution(node: Node) -> list[Layer]:
    """ConvTranspose: Deconvolution, or with groups DeconvolutionDepthWise."""
    weight = node.required(1, "weights")  # (inputs, filters a group, kh, kw)
    groups = node.attribute("group", 1)
    inputs, filters = weight.shape[:2]
    if len(weight.shape) != AXES + 2:
        raise node.refused(
            f"its windows slide over {len(weight.shape) - 2} axes, here they may slide over height and width"
        )
    before, after, extra = _cut(node, (weight.shape[2], weight.shape[3]))
    strides, dilations = (node.attribute(name) or (1, 1) for name in ("strides", "dilations"))
    shape = Window(weight.shape[2:], tuple(strides), tuple(dilations), before, after)
    params = _params(shape, weight, filters * groups) | {18: extra[1], 19: extra[0]}
    params |= {7: groups} if groups > 1 else {}
    kind = "Deconvolution" if groups == 1 else "DeconvolutionDepthWise"
    grouped = weight.reshape(groups, inputs // groups, filters, *weight.shape[2:])
    return [_with_bias(node, kind, params, grouped.swapaxes(1, 2), bias_id=5)]


def linear(node: Node) -> list[Layer]:
    """Gemm of a row and constant weights: InnerProduct. y = alpha (x W) + beta c."""
    row = node.blob(node.inputs[0])
    if len(row) != 1 or node.attribute("transA", 0):
        raise node.refused("it multiplies something else than one row")
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    weight = node.required(1, "weights")
    weight = alpha * (weight if node.attribute("transB", 0) else weight.T)  # (outputs, inputs)
    bias = np.broadcast_to(beta * node.required(2, "biases"), (1, len(weight)))[0] if node.has(2) else None
    return [_inner_product(node, weight, bias)]


def product(node: Node) -> list[Layer]:
    """MatMul with a constant matrix on the right: InnerProduct on every row, which in ncnn are those of two axes."""
    rows, weight = node.blob(node.inputs[0]), node.required(1, "factors")
    if len(weight.shape) != 2:
        raise node.refused(f"it multiplies {node.shape(node.inputs[0])} by {weight.shape}: here rows by one matrix")
    layer = _inner_product(node, weight.T, None)
    if len(rows) <= 2:
        return [layer]
    flat, wide, after = f"{node.output}_rows", f"{node.output}_products", node.blob(node.output)
    count = math.prod(rows[:-1])
    return [
        Layer("Reshape", f"{node.name}_rows", node.inputs[:1], (flat,), blob_sizes((count, rows[-1]))),
        replace(layer, inputs=(flat,), outputs=(wide,)),
        Layer("Reshape", f"{node.name}_shape", (wide,), (node.output,), blob_sizes(after)),
    ]


def _inner_product(node: Node, weight: Floats, bias: Floats | None) -> Layer:
    params: dict[int, Value] = {0: len(weight), 1: int(bias is not None), 2: weight.size}
    return node.layer("InnerProduct", params, tagged(weight) + (b"" if bias is None else plain(bias)))


def _params(shape: Window, weight: Floats, filters: int) -> dict[int, Value]:
    return {
        0: filters, 1: shape.kernel[1], 11: shape.kernel[0], 2: shape.dilation[1], 12: shape.dilation[0],
        3: shape.stride[1], 13: shape.stride[0], 4: shape.before[1], 14: shape.before[0],
        15: shape.after[1], 16: shape.after[0], 6: weight.size,
    }  # fmt: skip


def _with_bias(node: Node, kind: str, params: dict[int, Value], weight: Floats, bias_id: int) -> Layer:
    data = tagged(weight) + (plain(node.required(2, "biases")) if node.has(2) else b"")
    return node.layer(kind, params | {bias_id: int(node.has(2))}, data)


def _cut(node: Node, kernel: Two) -> tuple[Two, Two, Two]:
    """What is cut off in front and behind, and what is added behind, of a transposed convolution, height first."""
    sizes, wanted = node.blob(node.inputs[0])[1:], node.blob(node.output)[1:]
    steps, holes = (node.attribute(name) or (1, 1) for name in ("strides", "dilations"))
    extra = node.attribute("output_padding") or (0, 0)
    pads, mode = node.attribute("pads") or (0, 0, 0, 0), node.attribute("auto_pad", "NOTSET")
    before, after = [0, 0], [0, 0]
    for axis in range(AXES):
        full = steps[axis] * (sizes[axis] - 1) + holes[axis] * (kernel[axis] - 1) + 1 + extra[axis]
        if mode == "NOTSET" and not node.attribute("output_shape"):
            before[axis], after[axis] = pads[axis], pads[axis + AXES]
        else:
            total = full - wanted[axis]
            small, large = total // 2, total - total // 2
            before[axis], after[axis] = (small, large) if mode == "SAME_UPPER" else (large, small)
        if min(before[axis], after[axis]) < 0 or full - before[axis] - after[axis] != wanted[axis]:
            raise node.refused(f"its padding {(before[axis], after[axis])} does not lead from {sizes} to {wanted}")
    return (before[0], before[1]), (after[0], after[1]), (extra[0], extra[1])
