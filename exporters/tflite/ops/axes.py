"""Transpose, Reshape and their kin. A transposition moves nothing: from then on the tensor holds its axes otherwise."""

from __future__ import annotations

from math import prod

import numpy as np

from edgeprune.exporters.tflite.translation import Step
from edgeprune.exporters.tflite.values import CHANNELS_LAST, Value, plain, wide_axes

_PASS_ON = frozenset({"Relu", "Identity", "Dropout", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish"})
"""Operations that take columns in any order."""


def transpose(step: Step) -> None:
    value = step.input()
    rank = len(value.shape)
    step.give(turned(step, value, [int(axis) for axis in step.attributes.get("perm", range(rank - 1, -1, -1))]))


def reshape(step: Step) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: to the shape that ONNX says the result has."""
    value, shape = step.input(), step.out_shape()
    if value.columns is None and (flat := _any_columns(step, value, shape)):
        step.give(flat)
        return
    step.give(reshaped(step, step.in_columns(value), shape))


def depth_to_space(step: Step) -> None:
    """(N, C b b, H, W) to (N, C, H b, W b); the block's rows and columns are in front of C, or behind it."""
    value, block = step.input(), int(step.attributes["blocksize"])
    n, c, h, w = value.shape
    inner = c // block**2
    if step.attributes.get("mode", b"DCR") == b"DCR":
        parts = reshaped(step, value, (n, block, block, inner, h, w))
        moved = turned(step, parts, [0, 3, 4, 1, 5, 2])
    else:
        parts = reshaped(step, value, (n, inner, block, block, h, w))
        moved = turned(step, parts, [0, 1, 4, 2, 5, 3])
    step.give(reshaped(step, moved, (n, inner, h * block, w * block)))


def space_to_depth(step: Step) -> None:
    value, block = step.input(), int(step.attributes["blocksize"])
    n, c, h, w = value.shape
    parts = reshaped(step, value, (n, c, h // block, block, w // block, block))
    moved = turned(step, parts, [0, 3, 5, 1, 2, 4])
    step.give(reshaped(step, moved, (n, c * block**2, h // block, w // block)))


def turned(step: Step, value: Value, permutation: list[int]) -> Value:
    """ONNX's Transpose: the same tensor, of which other axes are which."""
    value = step.in_columns(value)
    shape = tuple(value.shape[axis] for axis in permutation)
    order = tuple(permutation.index(axis) for axis in value.order)
    data = None if value.data is None else value.data.transpose(permutation)
    return Value(shape, order, value.tensor, data)


def reshaped(step: Step, value: Value, shape: tuple[int, ...]) -> Value:
    """ONNX's Reshape. Each run of axes that becomes a run of others has to lie together in the tensor, in ONNX's order:
    where it does not, it is transposed before; the runs among each other stay as they lie."""
    runs = matching_runs(value.shape, shape)
    lying = wide_axes(value, value.order)
    by_place = sorted(runs, key=lambda run: min((lying.index(axis) for axis in run[0]), default=0))
    wanted = [axis for run in by_place for axis in run[0]]
    if lying != wanted:
        units = tuple(axis for axis in range(len(value.shape)) if value.shape[axis] == 1)
        value = step.ordered(value, (*units, *wanted))
    order = _usual_order(shape, [axis for run in by_place for axis in run[1]])
    return Value(shape, order, step.reshaped(step.tensor(value), [shape[axis] for axis in order]))


def matching_runs(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of axes with equally many elements on both sides, axes of 1 left out."""
    runs: list[tuple[list[int], list[int]]] = []
    left = [axis for axis, size in enumerate(before) if size != 1]
    right = [axis for axis, size in enumerate(after) if size != 1]
    while left or right:
        run: tuple[list[int], list[int]] = ([], [])
        while not (run[0] and run[1]) or _count(before, run[0]) != _count(after, run[1]):
            side = 0 if _count(before, run[0]) <= _count(after, run[1]) else 1
            if not (left, right)[side]:
                side = 1 - side
            run[side].append((left, right)[side].pop(0))
        runs.append(run)
    return runs


def _count(shape: tuple[int, ...], axes: list[int]) -> int:
    return prod(shape[axis] for axis in axes)


def _usual_order(shape: tuple[int, ...], wide: list[int]) -> tuple[int, ...]:
    """An order in which the axes of more than one element lie so; one that is usual, if there is one."""
    usual = ([CHANNELS_LAST] if len(shape) == 4 else []) + [plain(len(shape))]
    for order in usual:
        if [axis for axis in order if shape[axis] != 1] == wide:
            return order
    return (*(axis for axis in range(len(shape)) if shape[axis] == 1), *wide)


def _any_columns(step: Step, value: Value, shape: tuple[int, ...]) -> Value | None:
    """The result (N, F) with its columns as the elements lie, where matrices alone read it: their rows are sorted in
    advance, and nothing moves. None where that cannot be, or where the columns are in ONNX's order anyway."""
    rank = len(value.shape)
    if len(shape) != 2 or rank < 3 or shape[0] != value.shape[0] or value.data is not None:
        return None
    lying = wide_axes(value, value.order)
    if (
        lying == sorted(lying)
        or (value.shape[0] != 1 and lying[0] != 0)
        or not _feeds_matrices(step, step.node.output[0])
    ):
        return None
    inner = tuple(axis - 1 for axis in value.order if axis != 0)
    columns = np.arange(shape[1]).reshape(value.shape[1:]).transpose(inner).reshape(-1)
    tensor = step.reshaped(step.tensor(value), shape)
    return Value(shape, plain(2), tensor, columns=columns)


def _feeds_matrices(step: Step, name: str) -> bool:
    """Whether a value is read by products with constant matrices alone."""
    readers = step.network.readers(name)
    if not readers or name in step.network.outputs:
        return False
    for node in readers:
        if node.op_type in _PASS_ON:
            if not _feeds_matrices(step, node.output[0]):
                return False
        elif (
            node.op_type not in ("Gemm", "MatMul")
            or node.input[0] != name
            or not step.network.is_constant(node.input[1])
        ):
            return False
    return True
