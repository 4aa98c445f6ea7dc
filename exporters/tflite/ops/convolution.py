"""Conv and ConvTranspose. A convolution in groups stays one operator: LiteRT tells the groups from the shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.exporters.tflite.ops.fusing import folded_norm, fused_activation
from edgeprune.exporters.tflite.translation import Step
from edgeprune.exporters.tflite.values import CHANNELS_LAST, Value
from edgeprune.exporters.tflite.windows import Axis, padding_of, pads_of_auto

PADDING = {"SAME": 0, "VALID": 1}
"""As the schema numbers them."""


def convolution(step: Step) -> None:
    weight = step.constant(1, "weight")  # (K, C/g, R, S)
    _require_images(step, weight)
    bias = step.constant(2, "bias") if step.has(2) else np.zeros(len(weight), weight.dtype)
    groups = int(step.attributes.get("group", 1))
    axes = window_axes(step, weight.shape[2:])
    weight, bias = folded_norm(step, weight, bias, filters=0)
    activation = fused_activation(step)
    source, padding = padded(step, axes)
    channels, shape = step.input().shape[1], step.out_shape()
    options = {
        "padding": PADDING[padding], "strideH": axes[0].stride, "strideW": axes[1].stride,
        "dilationHFactor": axes[0].dilation, "dilationWFactor": axes[1].dilation,
        "fusedActivationFunction": activation,
    }  # fmt: skip
    held = _held(shape)
    if groups == channels and weight.shape[1] == 1 and groups > 1:
        filters = step.constant_tensor(weight.transpose(1, 2, 3, 0), "weight")  # (1, R, S, K)
        inputs = [source, filters, step.constant_tensor(bias, "bias")]
        multiplier = len(weight) // channels
        result = step.add("DEPTHWISE_CONV_2D", inputs, held, depthMultiplier=multiplier, version=2, **options)
    else:
        filters = step.constant_tensor(weight.transpose(0, 2, 3, 1), "weight")  # (K, R, S, C/g)
        inputs = [source, filters, step.constant_tensor(bias, "bias")]
        result = step.add("CONV_2D", inputs, held, version=6 if groups > 1 else 2, **options)
    step.give(Value(shape, CHANNELS_LAST, result))


def transposed_convolution(step: Step) -> None:
    """As LiteRT's, which knows neither groups nor ONNX's padding: each group by itself, in full, and then cut."""
    weight = step.constant(1, "weight")  # (C, K/g, R, S)
    _require_images(step, weight)
    groups = int(step.attributes.get("group", 1))
    if any(size != 1 for size in step.attributes.get("dilations", ())):
        raise step.refuse("its kernel is dilated", expected="dilations of 1")
    filters = weight.shape[1] * groups
    bias = step.constant(2, "bias") if step.has(2) else np.zeros(filters, weight.dtype)
    if groups == 1:
        weight, bias = folded_norm(step, weight, bias, filters=1)
    activation = fused_activation(step)
    value, shape = step.ordered(step.input(), CHANNELS_LAST), step.out_shape()
    batch, height, width, channels = value.held_shape
    strides = _pair(step.attributes.get("strides"))
    full = [(size - 1) * stride + k for size, stride, k in zip((height, width), strides, weight.shape[2:], strict=True)]
    parts = _split(step, value.tensor, groups)
    results = []
    for group, part in enumerate(parts):
        rows = weight[group * channels // groups : (group + 1) * channels // groups]
        columns = slice(group * filters // groups, (group + 1) * filters // groups)
        inputs = [
            step.constant_tensor(np.asarray([batch, *full, filters // groups], np.int32), "shape"),
            step.constant_tensor(rows.transpose(1, 2, 3, 0), "weight"),  # (K/g, R, S, C/g)
            part,
            step.constant_tensor(bias[columns], "bias"),
        ]
        results.append(
            step.add(
                "TRANSPOSE_CONV", inputs, (batch, *full, filters // groups), padding=PADDING["VALID"],
                strideH=strides[0], strideW=strides[1], fusedActivationFunction=activation, version=4,
            )
        )  # fmt: skip
    result = results[0]
    if groups > 1:
        result = step.add("CONCATENATION", results, (batch, *full, filters), axis=3)
    step.give(Value(shape, CHANNELS_LAST, _cut(step, result, shape, _pads_before(step, shape, weight.shape[2:]))))


def window_axes(step: Step, kernel: tuple[int, ...]) -> tuple[Axis, ...]:
    """The windows of a convolution or a pooling along height and width."""
    strides, dilations = _pair(step.attributes.get("strides")), _pair(step.attributes.get("dilations"))
    sizes, windows = step.input().shape[2:], step.out_shape()[2:]
    pads = step.attributes.get("pads") or [0] * 2 * len(kernel)
    auto = str(step.attributes.get("auto_pad", b"NOTSET"), "ascii") if "auto_pad" in step.attributes else "NOTSET"
    axes = []
    for place, size in enumerate(kernel):
        before = pads[place]
        if auto != "NOTSET":
            reach = (size - 1) * dilations[place] + 1
            before = pads_of_auto(auto, sizes[place], reach, strides[place])[0]
        axes.append(Axis(sizes[place], windows[place], size, strides[place], dilations[place], before))
    return tuple(axes)


def padded(step: Step, axes: tuple[Axis, ...], *, fill: float = 0.0) -> tuple[int, str]:
    """The tensor (N, H, W, C) to slide over, and LiteRT's name of its padding: padded by an operator of its own where
    neither of LiteRT's ways is ONNX's."""
    value = step.ordered(step.input(), CHANNELS_LAST)
    padding = padding_of(axes)
    return (value.tensor, padding) if padding else (pad(step, value.tensor, axes, fill), "VALID")


def pad(step: Step, tensor: int, axes: tuple[Axis, ...], fill: float) -> int:
    """A tensor (N, H, W, C) with what its windows read beyond its edges."""
    around = [(0, 0), *((axis.before, axis.after) for axis in axes), (0, 0)]
    shape = [size + sum(pads) for size, pads in zip(step.file.shape(tensor), around, strict=True)]
    places = step.constant_tensor(np.asarray(around, np.int32), "pads")
    if not fill:
        return step.add("PAD", [tensor, places], shape)
    value = step.constant_tensor(np.asarray([fill], np.float32), "fill")
    return step.add("PADV2", [tensor, places, value], shape)


def _require_images(step: Step, weight: NDArray[Any]) -> None:
    if weight.ndim != 4:
        raise step.refuse(f"its weight has {weight.ndim} axes", expected="a convolution of images, in two dimensions")


def _pads_before(step: Step, shape: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, int]:
    """What ONNX cuts from a full transposed convolution, in front."""
    auto = str(step.attributes.get("auto_pad", b"NOTSET"), "ascii") if "auto_pad" in step.attributes else "NOTSET"
    if auto == "NOTSET" and "output_shape" not in step.attributes:
        pads = step.attributes.get("pads") or [0, 0, 0, 0]
        return int(pads[0]), int(pads[1])
    if auto == "VALID":
        return 0, 0
    strides, more = _pair(step.attributes.get("strides")), step.attributes.get("output_padding") or [0, 0]
    totals = [
        (size - 1) * stride + extra + k - out
        for size, stride, extra, k, out in zip(step.input().shape[2:], strides, more, kernel, shape[2:], strict=True)
    ]
    before = [max(total, 0) // 2 if auto == "SAME_UPPER" else -(-max(total, 0) // 2) for total in totals]
    return before[0], before[1]


def _cut(step: Step, tensor: int, shape: tuple[int, ...], before: tuple[int, int]) -> int:
    """The part of a full transposed convolution that ONNX gives, with zeros where that ends before."""
    full, held = step.file.shape(tensor), _held(shape)
    missing = [max(start + size - there, 0) for start, size, there in zip(before, held[1:3], full[1:3], strict=True)]
    if any(missing):
        raise step.refuse(
            "its output_padding is beyond its kernel", expected="an output_padding of at most what its pads cut behind"
        )
    if full == held:
        return tensor
    begin = step.constant_tensor(np.asarray([0, *before, 0], np.int32), "begin")
    size = step.constant_tensor(np.asarray(held, np.int32), "size")
    return step.add("SLICE", [tensor, begin, size], held)


def _split(step: Step, tensor: int, groups: int) -> list[int]:
    """The channels (the last axis) of a tensor in equal parts."""
    if groups == 1:
        return [tensor]
    *outer, channels = step.file.shape(tensor)
    axis = step.constant_tensor(np.asarray(len(outer), np.int32), "axis")
    return step.add_several("SPLIT", [axis, tensor], [[*outer, channels // groups]] * groups, numSplits=groups)


def _held(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(N, H, W, C) of (N, C, H, W)."""
    return tuple(shape[axis] for axis in CHANNELS_LAST)


def _pair(values: Any) -> tuple[int, int]:
    return (int(values[0]), int(values[1])) if values else (1, 1)
