"""Resize and Upsample: ncnn's Interp, where it takes the same values from the same places.

Both sides are computed: for each row and column of the result, the place in the input that ONNX's formula reads, and
the place that ncnn reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from edgeprune.exporters.ncnn.layers import Layer, Value
from edgeprune.exporters.ncnn.node import Node

NEAREST, LINEAR = 1, 2
Places = NDArray[np.float64]
_ROUNDED: Mapping[str, Callable[[Places], Places]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
_SAME = 1e-4
"""Of a pixel: places nearer than that are one."""


def resize(node: Node) -> list[Layer]:
    """Nearest or linear, over height and width, to a size that is known beforehand."""
    before, after = node.blob(node.inputs[0]), node.blob(node.output)
    mode = node.attribute("mode", "nearest")
    if len(before) != 3 or before[0] != after[0] or mode not in ("nearest", "linear", "bilinear"):
        raise node.refused(f"it resizes {before} to {after} in mode {mode}: here height and width, nearest or linear")
    if node.attribute("antialias", 0) or node.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.refused("it smooths what it shrinks, or keeps the ratio of the sides")
    way = _way(node)
    if before[1:] == (1, 1):
        mode = "nearest"  # whatever is between pixels: there is one
    params: dict[int, Value] = {3: after[1], 4: after[2]}
    if mode == "nearest":
        _require_same(node, [_nearest(node, way, axis) for axis in (1, 2)])
        return [node.layer("Interp", {0: NEAREST, **params})]
    corners = way == "align_corners"
    _require_same(node, [_linear(node, way, axis) for axis in (1, 2)])
    return [node.layer("Interp", {0: LINEAR, **params, 6: int(corners)})]


def _way(node: Node) -> str:
    """How ONNX finds the place that a row of the result comes from. Before opset 11 there was one way."""
    way: str = node.attribute("coordinate_transformation_mode", "half_pixel" if node.opset > 10 else "asymmetric")
    return way


def _sizes(node: Node, axis: int) -> tuple[int, int]:
    return node.blob(node.inputs[0])[axis], node.blob(node.output)[axis]


def _onnx_places(node: Node, way: str, axis: int) -> Places:
    """Places in the input, in pixels, of every place of the result along an axis of the blob."""
    size, wanted = _sizes(node, axis)
    scale, x = _scale(node, axis), np.arange(wanted, dtype=np.float64)
    if way == "align_corners":
        return x * (size - 1) / (wanted - 1) if wanted > 1 else x
    if way == "asymmetric":
        return x / scale
    if way == "half_pixel" or (way == "pytorch_half_pixel" and wanted > 1):
        return (x + 0.5) / scale - 0.5
    if way == "pytorch_half_pixel":
        return x
    raise node.refused(f"its places are found by {way}")


def _scale(node: Node, axis: int) -> float:
    """As ONNX counts with it: what the file states, which need not be the ratio of the two sizes."""
    size, wanted = _sizes(node, axis)
    given = node.constant(1 if len(node.inputs) == 2 else 2)
    if node.op == "Resize" and node.attribute("axes"):
        raise node.refused("it names the axes that it resizes")
    return float(given.reshape(-1)[axis + 1]) if given is not None and given.size else wanted / size


def _nearest(node: Node, way: str, axis: int) -> tuple[Places, Places]:
    size, wanted = _sizes(node, axis)
    rounding = node.attribute("nearest_mode", "round_prefer_floor" if node.opset > 10 else "floor")
    theirs = _ROUNDED[rounding](_onnx_places(node, way, axis))
    ours = np.floor(np.arange(wanted, dtype=np.float32) * np.float32(size / wanted))
    return np.clip(theirs, 0, size - 1), np.clip(ours, 0, size - 1).astype(np.float64)


def _linear(node: Node, way: str, axis: int) -> tuple[Places, Places]:
    size, wanted = _sizes(node, axis)
    if size == 1 and wanted > 1:
        raise node.refused("it enlarges one single row or column: ncnn reads a second one there")
    x = np.arange(wanted, dtype=np.float64)
    if way == "align_corners":
        ours = x * (size - 1) / (wanted - 1) if wanted > 1 else x
    else:
        ours = (x + 0.5) * size / wanted - 0.5
    return np.clip(_onnx_places(node, way, axis), 0, size - 1), np.clip(ours, 0, size - 1)


def _require_same(node: Node, pairs: list[tuple[Places, Places]]) -> None:
    worst = max(float(np.abs(theirs - ours).max(initial=0.0)) for theirs, ours in pairs)
    if worst > _SAME:
        raise node.refused(f"ncnn would read up to {worst:.2g} pixels away from where ONNX does")
