"""Parts of tensors and their joining: Concat, Split, Slice, Gather, Pad."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgeprune.exporters.tflite.translation import Step
from edgeprune.exporters.tflite.values import Value, wide_axes

_MOST_SPLITS = 4
"""Of one SPLIT that XNNPACK takes."""
_MOST_JOINED = 5
"""By one CONCATENATION that XNNPACK takes; a longer one cuts the network in two for it."""


def concat(step: Step) -> None:
    values = [step.input(place) for place in range(len(step.node.input))]
    order = next((value.order for value in values if value.data is None), values[0].order)
    axis = Value(values[0].shape, order).place(int(step.attributes["axis"]))
    tensors = [step.tensor(value, order) for value in values]
    while len(tensors) > _MOST_JOINED:
        runs = [tensors[start : start + _MOST_JOINED] for start in range(0, len(tensors), _MOST_JOINED)]
        tensors = [run[0] if len(run) == 1 else _joined(step, run, axis) for run in runs]
    step.give(Value(step.out_shape(), order, _joined(step, tensors, axis)))


def _joined(step: Step, tensors: list[int], axis: int) -> int:
    shapes = [step.file.shape(tensor) for tensor in tensors]
    shape = [sum(sizes) if place == axis else sizes[0] for place, sizes in enumerate(zip(*shapes, strict=True))]
    return step.add("CONCATENATION", tensors, shape, dtype=step.file.dtype(tensors[0]), axis=axis)


def split(step: Step) -> None:
    value = step.in_columns(step.input())
    axis = int(step.attributes.get("axis", 0)) % len(value.shape)
    shapes = [step.out_shape(place) for place in range(len(step.node.output))]
    sizes = {shape[axis] for shape in shapes}
    held = [[shape[a] for a in value.order] for shape in shapes]
    if len(sizes) == 1 and len(shapes) <= _MOST_SPLITS:
        tensor, place = step.tensor(value), step.constant_tensor(np.asarray(value.place(axis), np.int32), "axis")
        dtype = step.file.dtype(tensor)
        parts = step.add_several("SPLIT", [place, tensor], held, dtype=dtype, numSplits=len(shapes))
        for number, (shape, part) in enumerate(zip(shapes, parts, strict=True)):
            step.give(Value(shape, value.order, part), number)
        return
    start = 0
    for number, shape in enumerate(shapes):
        if step.network.readers(step.node.output[number]) or step.node.output[number] in step.network.outputs:
            step.give(_cut(step, value, axis, start, shape[axis]), number)
        start += shape[axis]


def slice_(step: Step) -> None:
    value = step.in_columns(step.input())
    rank = len(value.shape)
    starts, ends = step.integers("starts", 1) or [], step.integers("ends", 2) or []
    axes = step.integers("axes", 3) or list(range(len(starts)))
    steps = step.integers("steps", 4) or [1] * len(starts)
    ranges = {
        axis % rank: range(*slice(start, _end(end, by), by).indices(value.shape[axis]))
        for axis, start, end, by in zip(axes, starts, ends, steps, strict=True)
    }
    for axis, indices in ranges.items():
        if indices.step < 0:
            value = gathered(step, value, axis, np.asarray(indices))
    forward = {axis: indices for axis, indices in ranges.items() if indices.step > 0}
    step.give(_strided(step, value, forward) if forward else value)


def gather(step: Step) -> None:
    """Constant indices along one axis."""
    value = step.in_columns(step.input())
    axis = int(step.attributes.get("axis", 0)) % len(value.shape)
    indices = step.constant(1, "indices")
    if indices.ndim > 1:
        raise step.refuse(f"its indices have {indices.ndim} axes", expected="a list of indices, or one index")
    found = gathered(step, value, axis, indices.reshape(-1) % value.shape[axis])
    if indices.ndim == 0:  # the axis goes
        shape = step.out_shape()
        order = tuple(a - (a > axis) for a in found.order if a != axis)
        found = Value(shape, order, step.reshaped(step.tensor(found), [shape[a] for a in order]))
    step.give(found)


def pad(step: Step) -> None:
    value = step.in_columns(step.input())
    rank = len(value.shape)
    pads, mode = step.integers("pads", 1) or [], str(step.attributes.get("mode", b"constant"), "ascii")
    given = step.argument("value", 2)
    axes = step.integers("axes", 3) or list(range(rank))
    around = {axis % rank: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    kept = {
        axis: range(max(-before, 0), value.shape[axis] - max(-after, 0))
        for axis, (before, after) in around.items()
        if before < 0 or after < 0
    }
    value = _strided(step, value, kept) if kept else value
    more = [tuple(max(size, 0) for size in around.get(axis, (0, 0))) for axis in value.order]
    held = [size + sum(pair) for size, pair in zip(value.held_shape, more, strict=True)]
    inputs = [step.tensor(value), step.constant_tensor(np.asarray(more, np.int32), "pads")]
    fill = 0.0 if given is None or not given.size else float(given.item())
    if mode == "reflect":
        result = step.add("MIRROR_PAD", inputs, held, mode=0)
    elif mode != "constant":
        raise step.refuse(f"its mode is {mode}", expected="constant or reflect")
    elif fill:
        result = step.add("PADV2", [*inputs, step.constant_tensor(np.asarray([fill], np.float32), "fill")], held)
    else:
        result = step.add("PAD", inputs, held)
    step.give(Value(step.out_shape(), value.order, result))


def gathered(step: Step, value: Value, axis: int, indices: NDArray[np.int64]) -> Value:
    """The elements along one axis at these places."""
    first, count = int(indices[0]), len(indices)
    if np.array_equal(indices, np.arange(first, first + count)):
        return _cut(step, value, axis, first, count)
    before = value.order
    if value.place(axis) == len(before) - 1 and len(wide_axes(value, before)) > 1:
        # One by one, LiteRT copies single numbers; between two transpositions it copies rows.
        value = step.ordered(value, (axis, *before[:-1]))
    shape = tuple(count if a == axis else size for a, size in enumerate(value.shape))
    result, tensor = replace(value, shape=shape), step.tensor(value)
    inputs = [tensor, step.constant_tensor(np.asarray(indices, np.int32), "indices")]
    dtype, place = step.file.dtype(tensor), value.place(axis)
    found = step.add("GATHER", inputs, result.held_shape, dtype=dtype, axis=place, batchDims=0)
    return step.ordered(replace(result, tensor=found), before)


def _cut(step: Step, value: Value, axis: int, start: int, count: int) -> Value:
    return _strided(step, value, {axis: range(start, start + count)})


def _strided(step: Step, value: Value, ranges: dict[int, range]) -> Value:
    """The elements in these ranges, by axis."""
    every = [ranges.get(axis, range(value.shape[axis])) for axis in range(len(value.shape))]
    result = replace(value, shape=tuple(len(indices) for indices in every))
    lying = [every[axis] for axis in value.order]
    tensor = step.tensor(value)
    dtype = step.file.dtype(tensor)
    begin = step.constant_tensor(np.asarray([indices.start for indices in lying], np.int32), "begin")
    if all(indices.step == 1 for indices in lying):
        size = step.constant_tensor(np.asarray([len(indices) for indices in lying], np.int32), "size")
        return replace(result, tensor=step.add("SLICE", [tensor, begin, size], result.held_shape, dtype=dtype))
    end = step.constant_tensor(np.asarray([indices.stop for indices in lying], np.int32), "end")
    by = step.constant_tensor(np.asarray([indices.step for indices in lying], np.int32), "strides")
    inputs = [tensor, begin, end, by]
    return replace(result, tensor=step.add("STRIDED_SLICE", inputs, result.held_shape, dtype=dtype))


def _end(end: int, by: int) -> int | None:
    """ONNX's ends beyond the front are Python's None for steps backwards."""
    return None if by < 0 and end <= -(2**31) else end
