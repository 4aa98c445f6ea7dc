"""Pooling over windows and over whole images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeprune.exporters.tflite.ops.convolution import PADDING, pad, padded, window_axes
from edgeprune.exporters.tflite.translation import Step
from edgeprune.exporters.tflite.values import CHANNELS_LAST, Value
from edgeprune.exporters.tflite.windows import Axis, padding_of

_LOWEST = float(np.finfo(np.float32).min)


def max_pool(step: Step) -> None:
    if len(step.node.output) > 1 and step.node.output[1] and step.network.readers(step.node.output[1]):
        raise step.refuse("its indices are read", expected="a pooling of which the values are read alone")
    axes = _axes(step)
    # Where nothing is below 0, zeros around it change no maximum, and XNNPACK knows no other padding.
    fill = 0.0 if step.network.is_not_negative(step.node.input[0]) else _LOWEST
    source, padding = padded(step, axes, fill=fill)
    _give_pooled(step, _pooled(step, "MAX_POOL_2D", source, padding, axes))


def average_pool(step: Step) -> None:
    """LiteRT does not count what it pads itself, and counts what was padded before: where ONNX does otherwise, the
    result is corrected by a factor for each window."""
    axes = _axes(step)
    counts_padding = bool(step.attributes.get("count_include_pad", 0))
    is_padded = any(axis.before or axis.after for axis in axes)
    value = step.ordered(step.input(), CHANNELS_LAST)
    padding = padding_of(axes)
    if padding is not None and not (is_padded and counts_padding):
        _give_pooled(step, _pooled(step, "AVERAGE_POOL_2D", value.tensor, padding, axes))
        return
    source = pad(step, value.tensor, axes, 0.0) if is_padded else value.tensor
    result = _pooled(step, "AVERAGE_POOL_2D", source, "VALID", axes)
    factor = _correction(step, axes, counts_padding=counts_padding)
    if factor is not None:
        result = step.add("MUL", [result, step.constant_tensor(factor, "counts")], step.file.shape(result))
    _give_pooled(step, result)


def global_average_pool(step: Step) -> None:
    value = step.input()
    if len(value.shape) == 4:
        value = step.ordered(value, CHANNELS_LAST)
    axes = sorted(value.place(axis) for axis in range(2, len(value.shape)))
    places = step.constant_tensor(np.asarray(axes, np.int32), "axes")
    shape = (*value.shape[:2], *(1 for _ in value.shape[2:]))
    held = [shape[axis] for axis in value.order]
    step.give(Value(shape, value.order, step.add("MEAN", [value.tensor, places], held, keepDims=True)))


def global_max_pool(step: Step) -> None:
    value = step.input()
    if len(value.shape) != 4:
        raise step.refuse(f"its input has {len(value.shape)} axes", expected="images, in two dimensions")
    axes = tuple(Axis(size, 1, size, 1, 1, 0) for size in value.shape[2:])
    held = step.ordered(value, CHANNELS_LAST)
    _give_pooled(step, _pooled(step, "MAX_POOL_2D", held.tensor, "VALID", axes))


def _axes(step: Step) -> tuple[Axis, ...]:
    kernel = tuple(step.attributes["kernel_shape"])
    if len(kernel) != 2:
        raise step.refuse(f"its window has {len(kernel)} axes", expected="images, in two dimensions")
    axes = window_axes(step, kernel)
    if any(axis.dilation != 1 for axis in axes):
        raise step.refuse("its window is dilated", expected="dilations of 1")
    return axes


def _pooled(step: Step, operator: str, source: int, padding: str, axes: tuple[Axis, ...]) -> int:
    batch, channels = step.file.shape(source)[0], step.file.shape(source)[3]
    shape = (batch, axes[0].windows, axes[1].windows, channels)
    return step.add(
        operator, [source], shape, padding=PADDING[padding], filterHeight=axes[0].kernel, filterWidth=axes[1].kernel,
        strideH=axes[0].stride, strideW=axes[1].stride,
    )  # fmt: skip


def _give_pooled(step: Step, result: int) -> None:
    step.give(Value(step.out_shape(), CHANNELS_LAST, result))


def _correction(step: Step, axes: tuple[Axis, ...], *, counts_padding: bool) -> NDArray[np.float32] | None:
    """Elements of a window over those that ONNX counts, for each window: (1, H, W, 1); None where all are 1."""
    pads = step.attributes.get("pads") or [0, 0, 0, 0]
    counted = []
    for place, axis in enumerate(axes):
        first = np.arange(axis.windows) * axis.stride - axis.before  # of each window, in the image's elements
        low, high = (-axis.before, axis.size + pads[place + 2]) if counts_padding else (0, axis.size)
        counted.append(np.minimum(first + axis.kernel, high) - np.maximum(first, low))
    factor = axes[0].kernel * axes[1].kernel / np.outer(counted[0], counted[1])
    if np.all(factor == 1):
        return None
    return factor.astype(np.float32).reshape(1, axes[0].windows, axes[1].windows, 1)
