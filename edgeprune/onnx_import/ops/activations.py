"""Functions of each element alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import fx, nn

from edgeprune.onnx_import.building import set_parameters
from edgeprune.onnx_import.node import OnnxNode

_TYPES: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32, TensorProto.FLOAT16: torch.float16, TensorProto.DOUBLE: torch.float64,
    TensorProto.INT64: torch.int64, TensorProto.INT32: torch.int32, TensorProto.BOOL: torch.bool,
    TensorProto.UINT8: torch.uint8, TensorProto.INT8: torch.int8,
}  # fmt: skip
_SIXTH = 1e-6
"""How far an alpha of 1/6 may be rounded."""


def unary(function: Callable[..., Any]) -> Callable[[OnnxNode], fx.Node]:
    """An operation that torch has as it is."""
    return lambda node: node.call(function, node.tensor())


def clip(node: OnnxNode) -> fx.Node:
    bounds = []
    for place, name in ((1, "min"), (2, "max")):
        value = node.known(place, name) if node.has(place) else None
        given = value.reshape(-1)[0].item() if value is not None else None
        bounds.append(node.attribute(name, given) if node.has_attribute(name) else given)
    low, high = bounds
    if low == 0 and high is None:
        return node.call(F.relu, node.tensor())
    if low is None and high is None:
        return node.tensor()
    return node.call(torch.clamp, node.tensor(), low, high)


def leaky_relu(node: OnnxNode) -> fx.Node:
    return node.call(F.leaky_relu, node.tensor(), node.attribute("alpha", 0.01))


def prelu(node: OnnxNode) -> fx.Node:
    slope, x = node.known(1, "slope"), node.tensor()
    sizes = (1,) * (node.rank - slope.ndim) + slope.shape
    if slope.size == 1 or (len(sizes) > 1 and sizes[1] == slope.size):
        module = nn.PReLU(slope.size)
        set_parameters(module, weight=slope.reshape(-1))
        return node.layer(module, x, weight=1)
    negative = node.call(torch.mul, node.call(torch.clamp, x, None, 0.0), node.tensor(1))
    return node.call(torch.add, node.call(F.relu, x), negative)


def hard_sigmoid(node: OnnxNode) -> fx.Node:
    alpha, beta, x = node.attribute("alpha", 0.2), node.attribute("beta", 0.5), node.tensor()
    if abs(alpha - 1 / 6) < _SIXTH and beta == 0.5:
        return node.call(F.hardsigmoid, x)
    line = node.call(torch.add, node.call(torch.mul, x, alpha), beta)
    return node.call(torch.clamp, line, 0.0, 1.0)


def elu(node: OnnxNode) -> fx.Node:
    return node.call(F.elu, node.tensor(), node.attribute("alpha", 1.0))


def celu(node: OnnxNode) -> fx.Node:
    return node.call(F.celu, node.tensor(), node.attribute("alpha", 1.0))


def selu(node: OnnxNode) -> fx.Node:
    alpha, gamma = node.attribute("alpha", 1.6732632423543772), node.attribute("gamma", 1.0507009873554805)
    return node.call(torch.mul, node.call(F.elu, node.tensor(), alpha), gamma)


def gelu(node: OnnxNode) -> fx.Node:
    return node.call(F.gelu, node.tensor(), approximate=node.attribute("approximate", "none"))


def softplus(node: OnnxNode) -> fx.Node:
    return node.call(F.softplus, node.tensor())


def thresholded_relu(node: OnnxNode) -> fx.Node:
    return node.call(F.threshold, node.tensor(), node.attribute("alpha", 1.0), 0.0)


def shrink(node: OnnxNode) -> fx.Node:
    bias, bound, x = node.attribute("bias", 0.0), node.attribute("lambd", 0.5), node.tensor()
    if bias in (0.0, bound):
        return node.call(F.hardshrink if bias == 0 else F.softshrink, x, bound)
    raise node.refused(f"its bias {bias} is neither 0 nor its lambd")


def swish(node: OnnxNode) -> fx.Node:
    alpha, x = node.attribute("alpha", 1.0), node.tensor()
    inner = x if alpha == 1 else node.call(torch.mul, x, alpha)
    return node.call(torch.mul, x, node.call(torch.sigmoid, inner))


def softmax(node: OnnxNode) -> fx.Node:
    return _over_axis(node, F.softmax)


def log_softmax(node: OnnxNode) -> fx.Node:
    return _over_axis(node, F.log_softmax)


def _over_axis(node: OnnxNode, function: Callable[..., Any]) -> fx.Node:
    axis = node.axis(node.attribute("axis", -1 if node.opset >= 13 else 1))
    x = node.tensor()
    if node.opset >= 13 or math.prod(node.shape()[axis + 1 :]) == 1:
        return node.call(function, x, axis)
    if axis == 0:
        raise node.refused("it mixes the images of a batch")
    flat = node.call(torch.flatten, x, axis)  # older opsets: over all axes from this one on
    return node.call(torch.reshape, node.call(function, flat, axis), tuple(node.open_shape()))


def cast(node: OnnxNode) -> fx.Node:
    kind = node.attribute("to", 0)
    if kind not in _TYPES:
        raise node.refused(f"torch has no {TensorProto.DataType.Name(kind)}")
    is_same = node.building.types.get(node.proto.input[0], (None, 0))[1] == kind
    return node.tensor() if is_same else node.method(node.tensor(), "to", _TYPES[kind])
