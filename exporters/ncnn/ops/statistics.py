"""Sums, means and other figures over axes, and what is normalised by them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeprune.exporters.ncnn.layers import Layer, Value, plain
from edgeprune.exporters.ncnn.node import Node
from edgeprune.exporters.ncnn.ops.pooling import MAX, MEAN, global_pool

REDUCTIONS: Mapping[str, int] = {
    "ReduceSum": 0,
    "ReduceSumSquare": 2,
    "ReduceMean": 3,
    "ReduceMax": 4,
    "ReduceMin": 5,
    "ReduceProd": 6,
    "ReduceL1": 7,
    "ReduceL2": 8,
    "ReduceLogSum": 9,
    "ReduceLogSumExp": 10,
}
_POOLED = {"ReduceMean": MEAN, "ReduceMax": MAX}


def reduction(node: Node) -> list[Layer]:
    """A figure over some axes; the mean or largest value of whole images by pooling, which is quicker."""
    shape = node.blob(node.inputs[0])
    rank = len(shape) + 1
    given = node.constant(1) if node.has(1) else np.asarray(node.attribute("axes") or [])
    if given is None:
        raise node.refused("its axes are computed at run time")
    if not given.size and node.attribute("noop_with_empty_axes", 0):
        return [node.layer("Noop")]
    axes = tuple(sorted(node.axis(int(axis), rank) for axis in given.reshape(-1))) or tuple(range(rank))
    if len(axes) == rank:
        raise node.refused("it works along the batch, too, which ncnn does not have")
    node.blob(node.output)
    if node.op in _POOLED and len(shape) == 3 and axes == (1, 2):
        pooled: list[Layer] = global_pool(node, _POOLED[node.op])
        return pooled
    keep = node.attribute("keepdims", 1)
    return [node.layer("Reduction", {0: REDUCTIONS[node.op], 1: 0, 3: axes, 4: keep, 5: 1})]


def softmax(node: Node) -> list[Layer]:
    """Softmax along one axis. Before opset 13 it was along all axes from one on."""
    rank = len(node.blob(node.inputs[0])) + 1
    axis = node.axis(node.attribute("axis", -1 if node.opset >= 13 else 1), rank)
    if node.opset < 13 and axis != rank - 2:
        raise node.refused(f"before opset 13 it works along all axes from {axis + 1} on at once")
    return [node.layer("Softmax", {0: axis, 1: 1})]


def batch_norm(node: Node) -> list[Layer]:
    """y = (x - mean) / sqrt(var + eps) * slope + bias, of each channel."""
    node.blob(node.inputs[0])
    if node.attribute("training_mode", 0):
        raise node.refused("it is in training")
    slope, bias, mean, variance = (node.required(place, "figures") for place in (1, 2, 3, 4))
    params: dict[int, Value] = {0: slope.size, 1: float(node.attribute("epsilon", 1e-5))}
    return [node.layer("BatchNorm", params, b"".join(map(plain, (slope, mean, variance, bias))))]


def instance_norm(node: Node) -> list[Layer]:
    """Each channel of an image by its own mean and variance."""
    if len(node.blob(node.inputs[0])) != 3:
        raise node.refused("its input is no image")
    slope, bias = node.required(1, "scales"), node.required(2, "biases")
    params: dict[int, Value] = {0: slope.size, 1: float(node.attribute("epsilon", 1e-5)), 2: 1}
    return [node.layer("InstanceNorm", params, plain(slope) + plain(bias))]


def layer_norm(node: Node) -> list[Layer]:
    """Along the last axis, or the last two of an image."""
    shape = node.blob(node.inputs[0])
    axis = node.axis(node.attribute("axis", -1), len(shape) + 1)
    if len(shape) > 3 or len(shape) - axis > 2 or len(node.outputs) > 1:
        raise node.refused("it normalises something else than the last axis, or the last two")
    slope = np.broadcast_to(node.required(1, "scales"), shape[axis:])
    bias = np.broadcast_to(node.required(2, "biases") if node.has(2) else np.float32(0), shape[axis:])
    params: dict[int, Value] = {0: slope.size, 1: float(node.attribute("epsilon", 1e-5)), 2: 1}
    return [node.layer("LayerNorm", params, plain(slope) + plain(bias))]


def local_response_norm(node: Node) -> list[Layer]:
    """y = x / (bias + alpha / size * sum of squares of `size` neighbouring channels) ** beta."""
    size = node.attribute("size")
    if len(node.blob(node.inputs[0])) != 3 or size % 2 == 0:
        raise node.refused("its input is no image, or its window of channels has no middle")
    params: dict[int, Value] = {
        0: 0, 1: size, 2: float(node.attribute("alpha", 1e-4)),
        3: float(node.attribute("beta", 0.75)), 4: float(node.attribute("bias", 1.0)),
    }  # fmt: skip
    return [node.layer("LRN", params)]
