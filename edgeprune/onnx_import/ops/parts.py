"""Operations that take a tensor to pieces."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import fx

from edgeprune.onnx_import.node import OnnxNode

_END = 2**31
"""Slice ends beyond any size, as exporters write them for the last element."""


def split(node: OnnxNode) -> tuple[fx.Node, ...]:
    axis, parts = node.axis(node.attribute("axis", 0)), len(node.proto.output)
    sizes = node.integers("split", 1)
    if sizes is None:
        each = -(-node.shape()[axis] // node.attribute("num_outputs", parts))
        sizes = [min(each, node.shape()[axis] - each * number) for number in range(parts)]
    whole = node.call(torch.split, node.tensor(), sizes, axis)
    return tuple(node.call(operator.getitem, whole, number) for number in range(parts))


def slice_(node: OnnxNode) -> fx.Node:
    starts, ends = node.integers("starts", 1) or [], node.integers("ends", 2) or []
    axes = node.integers("axes", 3) or list(range(len(starts)))
    steps = (node.integers("steps", 4) if node.opset >= 10 else None) or [1] * len(starts)
    taken, x = [slice(None)] * node.rank, node.tensor()
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        place = node.axis(axis)
        if step < 0:  # torch takes no negative steps
            size = node.shape()[place]
            wanted = range(size)[_clamped(start) : None if end < -size else _clamped(end) : step]
            x = _selected(node, x, place, list(wanted))
        else:
            part = slice(*_bounds(start, end, node.shape()[place]), step if step > 1 else None)
            taken[place] = slice(None) if part == slice(0, node.shape()[place], None) else part
    last = max((axis for axis, part in enumerate(taken) if part != slice(None)), default=None)
    return x if last is None else node.call(operator.getitem, x, tuple(taken[: last + 1]))


def gather(node: OnnxNode) -> fx.Node:
    index, axis = node.known(1, "index"), node.axis(node.attribute("axis", 0))
    size = node.shape()[axis]
    numbers = np.where(index < 0, index + size, index)
    if index.ndim == 0:
        if axis == 0:
            raise node.refused("it takes one image of a batch")
        return node.call(torch.select, node.tensor(), axis, int(numbers))
    taken = _selected(node, node.tensor(), axis, numbers.reshape(-1).tolist())
    return taken if index.ndim == 1 else node.call(torch.reshape, taken, tuple(node.open_shape()))


def top_k(node: OnnxNode) -> tuple[fx.Node, ...]:
    most = node.integers("k", 1) or [1]
    both = node.call(
        torch.topk, node.tensor(), most[0], node.attribute("axis", -1), bool(node.attribute("largest", 1)),
        bool(node.attribute("sorted", 1)),
    )  # fmt: skip
    return tuple(node.call(operator.getitem, both, number) for number in range(2))


def _selected(node: OnnxNode, x: fx.Node, axis: int, numbers: Sequence[int]) -> fx.Node:
    """Some of the elements along an axis: neighbours as a slice, which pruning sees through."""
    first = numbers[0] if numbers else 0
    if list(numbers) == list(range(first, first + len(numbers))):
        return node.call(operator.getitem, x, (*[slice(None)] * axis, slice(first, first + len(numbers))))
    return node.call(torch.index_select, x, axis, node.buffer("index", np.asarray(numbers, np.int64)))


def _bounds(start: int, end: int, size: int) -> tuple[int, int]:
    """Counted from the front, within the axis."""
    first, last = (number + size if number < 0 else number for number in (start, end))
    return max(0, min(first, size)), max(0, min(last, size))


def _clamped(number: int) -> int:
    return max(-_END, min(number, _END))
