"""Operations of two tensors or more, element by element."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from edgeprune.onnx_import.affine import Affine, affine_behind, affine_step
from edgeprune.onnx_import.building import set_parameters
from edgeprune.onnx_import.node import OnnxNode


def binary(function: Callable[..., Any]) -> Callable[[OnnxNode], fx.Node]:
    """An operation that Python's operators or torch have as it is; numbers stay numbers."""
    return lambda node: node.call(function, node.operand(0), node.operand(1))


def arithmetic(function: Callable[..., Any]) -> Callable[[OnnxNode], fx.Node]:
    """The same; a constant for each channel becomes a depthwise layer, which is pruned with the channels."""

    def translate(node: OnnxNode) -> fx.Node:
        affine = _each_channel(node)
        return node.call(function, node.operand(0), node.operand(1)) if affine is None else _scaled(node, affine)

    return translate


def div(node: OnnxNode) -> fx.Node:
    if not node.is_float():
        return node.call(torch.div, node.operand(0), node.operand(1), rounding_mode="trunc")
    return arithmetic(operator.truediv)(node)


def mod(node: OnnxNode) -> fx.Node:
    return node.call(torch.fmod if node.attribute("fmod", 0) else torch.remainder, node.tensor(0), node.operand(1))


def folded(function: Callable[..., Any]) -> Callable[[OnnxNode], fx.Node]:
    """An operation of any number of tensors, two at a time."""
    return lambda node: reduce(lambda x, y: node.call(function, x, y), [node.tensor(place) for place in node.places()])


def mean_of(node: OnnxNode) -> fx.Node:
    return node.call(torch.mul, folded(torch.add)(node), 1 / len(node.places()))


def where(node: OnnxNode) -> fx.Node:
    return node.call(torch.where, node.tensor(0), node.operand(1), node.operand(2))


def _each_channel(node: OnnxNode) -> Affine | None:
    """What this node, and those behind it, do to each channel of (N, C, H, W); None if a number does for it."""
    places = [place for place in (0, 1) if node.constant(place) is None]
    if node.output_rank != 4 or len(places) != 1 or node.constant(1 - places[0]).size == 1:  # type: ignore[union-attr]
        return None
    shape = node.shape(places[0])
    if shape != node.output_shape():
        return None
    nothing = Affine(np.ones(shape[1]), np.zeros(shape[1]), node.proto.input[places[0]], ())
    first = affine_step(node.building, node.proto, nothing, 1)
    if first is None:
        return None
    behind = affine_behind(node.building, first.output, shape[1], 1)
    shift = first.shift * behind.scale + behind.shift
    return Affine(first.scale * behind.scale, shift, behind.output, (*first.nodes, *behind.nodes))


def _scaled(node: OnnxNode, affine: Affine) -> fx.Node:
    channels, has_shift = len(affine.scale), bool(affine.shift.any())
    module = nn.Conv2d(channels, channels, 1, groups=channels, bias=has_shift)
    shift = affine.shift if has_shift else None
    set_parameters(module, weight=affine.scale.reshape(-1, 1, 1, 1), bias=shift)
    y = node.layer(module, node.tensor(0 if node.constant(0) is None else 1))
    node.stands_for(affine, y)
    return y
