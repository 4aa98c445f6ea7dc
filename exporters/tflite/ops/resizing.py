"""Resize and Upsample: LiteRT's two operators where they read the same pixels as ONNX says, else by indices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.exporters.tflite.ops.parts import gathered
from edgeprune.exporters.tflite.translation import Step
from edgeprune.exporters.tflite.values import CHANNELS_LAST, Value

_FLAGS: tuple[dict[str, bool], ...] = (
    {"alignCorners": False, "halfPixelCenters": False},
    {"alignCorners": False, "halfPixelCenters": True},
    {"alignCorners": True, "halfPixelCenters": False},
)
"""The ways in which LiteRT places an output's pixels in the input."""


@dataclass(frozen=True)
class _Axis:
    size: int
    out: int
    scale: float
    """Output's over input's, as ONNX computes with it: not always the sizes' ratio."""


def resize(step: Step) -> None:
    value, shape = step.input(), step.out_shape()
    if len(value.shape) != 4 or shape[:2] != value.shape[:2]:
        raise step.refuse(f"it resizes {value.shape} to {shape}", expected="images whose height and width change")
    mode = str(step.attributes.get("mode", b"nearest"), "ascii")
    axes = _axes(step, value.shape, shape)
    if mode == "nearest":
        _nearest(step, value, shape, axes)
    elif mode in ("linear", "bilinear"):
        _bilinear(step, value, shape, axes)
    else:
        raise step.refuse(f"its mode is {mode}", expected="nearest or linear")


def _axes(step: Step, before: tuple[int, ...], after: tuple[int, ...]) -> list[_Axis]:
    if step.node.op_type == "Upsample" or len(step.node.input) == 2:
        scales = step.argument("scales", 1)
    else:
        scales = step.argument("scales", 2)
    ratios = [float(out / size) for size, out in zip(before, after, strict=True)]
    named = step.integers("axes", len(step.node.input)) or list(range(4))
    if scales is not None and scales.size:
        for axis, scale in zip(named, scales.reshape(-1), strict=True):
            ratios[axis] = float(scale)
    return [_Axis(before[axis], after[axis], ratios[axis]) for axis in (2, 3)]


def _transformation(step: Step) -> str:
    default = b"asymmetric" if step.node.op_type == "Upsample" or step.network.opset < 11 else b"half_pixel"
    return str(step.attributes.get("coordinate_transformation_mode", default), "ascii")


def _nearest(step: Step, value: Value, shape: tuple[int, ...], axes: list[_Axis]) -> None:
    wanted = [_nearest_pixels(step, axis) for axis in axes]
    for flags in _FLAGS:
        if all(np.array_equal(_lite_nearest(axis, flags), pixels) for axis, pixels in zip(axes, wanted, strict=True)):
            _give_resized(step, "RESIZE_NEAREST_NEIGHBOR", value, shape, flags)
            return
    for axis, pixels in zip((2, 3), wanted, strict=True):
        value = gathered(step, value, axis, pixels)
    step.give(value)


def _bilinear(step: Step, value: Value, shape: tuple[int, ...], axes: list[_Axis]) -> None:
    if step.attributes.get("antialias", 0):
        raise step.refuse("it smooths before it resizes", expected="antialias of 0")
    wanted = [np.clip(_places(step, axis), 0, axis.size - 1) for axis in axes]
    for flags in _FLAGS:
        if all(
            np.allclose(_lite_places(axis, flags), there, atol=1e-5) for axis, there in zip(axes, wanted, strict=True)
        ):
            _give_resized(step, "RESIZE_BILINEAR", value, shape, flags)
            return
    sizes = ", ".join(f"{axis.size} to {axis.out}" for axis in axes)
    raise step.refuse(
        f"LiteRT places pixels otherwise than {_transformation(step)} does, from {sizes}",
        expected="half_pixel, asymmetric or align_corners, scaled by the ratio of the sizes",
        remedy="fix the size of the result in the network, instead of a scale",
    )


def _give_resized(step: Step, operator: str, value: Value, shape: tuple[int, ...], flags: dict[str, bool]) -> None:
    source = step.ordered(value, CHANNELS_LAST)
    sizes = step.constant_tensor(np.asarray(shape[2:], np.int32), "size")
    held = [shape[axis] for axis in CHANNELS_LAST]
    step.give(Value(shape, CHANNELS_LAST, step.add(operator, [source.tensor, sizes], held, **flags)))


def _places(step: Step, axis: _Axis) -> NDArray[np.float64]:
    """Where in the input ONNX looks for each of the output's pixels."""
    out, how = np.arange(axis.out, dtype=np.float64), _transformation(step)
    if how == "asymmetric":
        return out / axis.scale
    if how == "align_corners":
        return out * (axis.size - 1) / max(axis.out - 1, 1)
    if how == "pytorch_half_pixel" and axis.out == 1:
        return np.zeros(1)
    if how in ("half_pixel", "pytorch_half_pixel"):
        return (out + 0.5) / axis.scale - 0.5
    raise step.refuse(f"its pixels are placed by {how}", expected="half_pixel, asymmetric or align_corners")


def _nearest_pixels(step: Step, axis: _Axis) -> NDArray[np.int64]:
    how = str(step.attributes.get("nearest_mode", b"round_prefer_floor"), "ascii")
    if step.node.op_type == "Upsample" or step.network.opset < 11:
        how = "floor"
    rounded: dict[str, Any] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda places: np.ceil(places - 0.5),
        "round_prefer_ceil": lambda places: np.floor(places + 0.5),
    }
    places = _places(step, axis).astype(np.float32)
    return np.clip(rounded[how](places), 0, axis.size - 1).astype(np.int64)


def _lite_places(axis: _Axis, flags: dict[str, bool]) -> NDArray[np.float64]:
    """Where LiteRT's RESIZE_BILINEAR looks."""
    out = np.arange(axis.out, dtype=np.float64)
    if flags["alignCorners"] and axis.out > 1:
        return out * (axis.size - 1) / (axis.out - 1)
    scale = axis.size / axis.out
    places = (out + 0.5) * scale - 0.5 if flags["halfPixelCenters"] else out * scale
    return np.clip(places, 0, axis.size - 1)


def _lite_nearest(axis: _Axis, flags: dict[str, bool]) -> NDArray[np.int64]:
    """Which pixels LiteRT's RESIZE_NEAREST_NEIGHBOR takes."""
    out = np.arange(axis.out, dtype=np.float32)
    if flags["alignCorners"] and axis.out > 1:
        places = np.floor(out * np.float32((axis.size - 1) / (axis.out - 1)) + np.float32(0.5))
    else:
        offset = np.float32(0.5 if flags["halfPixelCenters"] else 0.0)
        places = np.floor((out + offset) * np.float32(axis.size / axis.out))
    return np.clip(places, 0, axis.size - 1).astype(np.int64)
