"""Operations that take one value out of many along some axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from edgeprune.onnx_import.node import OnnxNode


def reduced(
    function: Callable[..., Any], before: Callable[..., Any] | None = None, after: Callable[..., Any] | None = None
) -> Callable[[OnnxNode], fx.Node]:
    """`function(x, axes, keepdim)`, of `before` of each element, and `after` of the result."""

    def translate(node: OnnxNode) -> fx.Node:
        x, axes = node.tensor(), _axes(node)
        if axes:
            x = x if before is None else node.call(before, x)
            x = node.call(function, x, axes, bool(node.attribute("keepdims", 1)))
            x = x if after is None else node.call(after, x)
        return x

    return translate


def reduce_prod(node: OnnxNode) -> fx.Node:
    keeps, x = bool(node.attribute("keepdims", 1)), node.tensor()
    for axis in sorted(_axes(node), reverse=True):
        x = node.call(torch.prod, x, axis, keeps)
    return x


def arg(function: Callable[..., Any]) -> Callable[[OnnxNode], fx.Node]:
    def translate(node: OnnxNode) -> fx.Node:
        if node.attribute("select_last_index", 0):
            raise node.refused("torch does not take the last of equal values")
        return node.call(
            function, node.tensor(), node.axis(node.attribute("axis", 0)), bool(node.attribute("keepdims", 1))
        )

    return translate


def _axes(node: OnnxNode) -> tuple[int, ...]:
    axes = node.integers("axes", 1)
    if not axes and node.attribute("noop_with_empty_axes", 0):
        return ()
    found = tuple(node.axis(axis) for axis in axes or range(node.rank))
    if 0 in found and node.open_batch():
        raise node.refused("it mixes the images of a batch")
    return found
