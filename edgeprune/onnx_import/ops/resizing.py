"""Resize and Upsample: images of another size.

ONNX says how a coordinate of the result becomes one of the input in more ways than torch has; what torch computes is
compared with the file's rule, index by index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import fx

from edgeprune.onnx_import.node import OnnxNode

_ROUNDINGS: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
_SMOOTH = {"linear": {1: "linear", 2: "bilinear", 3: "trilinear"}, "cubic": {2: "bicubic"}}


def resize(node: OnnxNode) -> fx.Node:
    rule = node.attribute("coordinate_transformation_mode", "half_pixel" if node.opset >= 11 else "asymmetric")
    return _resized(node, node.attribute("mode", "nearest"), rule, scales_at=2 if node.opset >= 11 else 1)


def upsample(node: OnnxNode) -> fx.Node:
    return _resized(node, node.attribute("mode", "nearest"), "asymmetric", scales_at=1)


def _resized(node: OnnxNode, mode: str, rule: str, scales_at: int) -> fx.Node:
    before, after = node.shape(), node.output_shape()
    if before == after:
        return node.tensor()
    if before[:2] != after[:2]:
        raise node.refused("it changes the number of channels or images")
    if node.attribute("antialias", 0):
        raise node.refused("torch's antialias weighs pixels in another way")
    if node.attribute("exclude_outside", 0) or node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.refused("torch has no exclude_outside or keep_aspect_ratio_policy")
    sizes, scales = after[2:], _scales(node, scales_at)
    if mode == "nearest":
        return _nearest(node, rule, scales)
    names, aligned = _SMOOTH.get(mode, {}), rule == "align_corners"
    is_pixel = rule == "half_pixel" or (rule == "pytorch_half_pixel" and min(sizes) > 1)
    if len(sizes) not in names or not (aligned or is_pixel):
        raise node.refused(f"torch has no mode {mode} with coordinates {rule}")
    if mode == "cubic" and node.attribute("cubic_coeff_a", -0.75) != -0.75:
        raise node.refused("torch's cubic_coeff_a is -0.75")
    is_whole = [round(size * scale, 6) == out for size, scale, out in zip(before[2:], scales, sizes, strict=True)]
    how = {"size": sizes} if all(is_whole) or aligned else {"scale_factor": tuple(scales)}
    return node.call(F.interpolate, node.tensor(), mode=names[len(sizes)], align_corners=aligned, **how)


def _nearest(node: OnnxNode, rule: str, scales: list[float]) -> fx.Node:
    before, after, x = node.shape()[2:], node.output_shape()[2:], node.tensor()
    rounding = (
        node.attribute("nearest_mode", "round_prefer_floor") if node.opset >= 11 and node.op == "Resize" else "floor"
    )
    if rule not in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "tf_half_pixel_for_nn"):
        raise node.refused(f"torch has no coordinates {rule}")
    wanted = [
        _sources(rule, rounding, size, out, scale) for size, out, scale in zip(before, after, scales, strict=True)
    ]
    pairs = list(zip(before, after, strict=True))
    for mode, offset in (("nearest", 0.0), ("nearest-exact", 0.5)):
        given = [np.floor((np.arange(out) + offset) * (size / out)) for size, out in pairs]
        if all(np.array_equal(a, b) for a, b in zip(wanted, given, strict=True)):
            return node.call(F.interpolate, x, size=after, mode=mode)
    for axis, numbers in enumerate(wanted):
        x = node.call(torch.index_select, x, 2 + axis, node.buffer("rows", numbers.astype(np.int64)))
    return x


def _scales(node: OnnxNode, place: int) -> list[float]:
    """Of each image axis, as the file says them; where it says sizes, what these come to."""
    before, after = node.shape()[2:], node.output_shape()[2:]
    given = node.attribute("scales", list[float]()) or (node.known(place, "scales").tolist() if node.has(place) else [])
    axes = [node.axis(axis) for axis in node.attribute("axes", list(range(node.rank)))]
    said = dict(zip(axes, given, strict=False))
    ratios = [out / size for size, out in zip(before, after, strict=True)]
    return [float(said.get(2 + axis, ratio if not given else 1.0)) for axis, ratio in enumerate(ratios)]


def _sources(rule: str, rounding: str, size: int, out: int, scale: float) -> NDArray[np.float64]:
    """(out,) from which element each element of the result comes."""
    x = np.arange(out, dtype=np.float64)
    if rule == "align_corners":
        place = x * (size - 1) / (out - 1) if out > 1 else np.zeros(1)
    elif rule == "asymmetric":
        place = x / scale
    elif rule == "tf_half_pixel_for_nn":
        place = (x + 0.5) / scale
    else:
        place = (x + 0.5) / scale - 0.5 if rule == "half_pixel" or out > 1 else np.zeros(1)
    return np.clip(_ROUNDINGS[rounding](place), 0, size - 1)
