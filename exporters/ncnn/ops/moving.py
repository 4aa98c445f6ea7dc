"""What only moves values: joining, cutting, padding, other shapes, other orders of axes or channels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgeprune.exporters.ncnn.layers import Layer, Value, blob_sizes
from edgeprune.exporters.ncnn.node import Node, refused
from edgeprune.exporters.ncnn.ops.pooling import MAX, VALID

ORDERS = {
    2: ("WH", "HW"),
    3: ("WHC", "HWC", "WCH", "CWH", "HCW", "CHW"),
    4: (
        "WHDC", "HWDC", "WDHC", "DWHC", "HDWC", "DHWC", "WHCD", "HWCD", "WCHD", "CWHD", "HCWD", "CHWD",
        "WDCH", "DWCH", "WCDH", "CWDH", "DCWH", "CDWH", "HDCW", "DHCW", "HCDW", "CHDW", "DCHW", "CDHW",
    ),
}  # fmt: skip
"""Axes of a blob -> Permute's orders by number: what the result's axes were, innermost first."""
_AXES = {2: "HW", 3: "CHW", 4: "CDHW"}
IMAGE_AXES = 4
"""Batch, channels, height, width."""
_PAD_KINDS = {"constant": 0, "edge": 1, "reflect": 2}


def concat(node: Node) -> list[Layer]:
    """Concat; constants among its inputs become blobs."""
    axis = node.axis(node.attribute("axis"), len(node.shape(node.output)))
    layers, blobs = [], []
    for place, value in enumerate(node.inputs):
        values = node.constant(place)
        if values is None:
            node.blob(value)
            blobs.append(value)
        else:
            layers.append(node.memory(values[0], f"constant{place}"))
            blobs.append(layers[-1].outputs[0])
    return [*layers, Layer("Concat", node.name, tuple(blobs), (node.output,), {0: axis})]


def split(node: Node) -> list[Layer]:
    """Split: ncnn's Slice, which gives all parts."""
    axis = node.axis(node.attribute("axis", 0), len(node.shape(node.inputs[0])))
    sizes = tuple(node.blob(value)[axis] for value in node.outputs)
    return [Layer("Slice", node.name, node.inputs[:1], node.outputs, {0: sizes, 1: axis})]


def cut(node: Node) -> list[Layer]:
    """Slice: ncnn's Crop; every n-th row or column of an image by a window of one place that moves n places on."""
    shape = node.shape(node.inputs[0])
    starts, ends = _indices(node, 1, "starts"), _indices(node, 2, "ends")
    axes = _indices(node, 3, "axes") or list(range(len(starts)))
    steps = _indices(node, 4, "steps") or [1] * len(starts)
    spans = _spans(node, shape, list(zip(axes, starts, ends, strict=True)))
    strides = {axis % len(shape): step for axis, step in zip(axes, steps, strict=True) if step != 1}
    if not strides:
        return _cropped(node, spans)
    if len(shape) != IMAGE_AXES or not set(strides) <= {2, 3} or min(strides.values()) < 1:
        raise node.refused(f"it takes places {strides} apart, by axes: here that may be rows or columns, forwards")
    part = f"{node.output}_part"
    (crop,) = _cropped(node, spans)
    stride = {0: MAX, 1: 1, 2: strides.get(3, 1), 12: strides.get(2, 1), 5: VALID}
    return [
        replace(crop, name=f"{node.name}_part", outputs=(part,)),
        Layer("Pooling", node.name, (part,), (node.output,), stride),
    ]


def _spans(node: Node, shape: tuple[int, ...], cuts: list[tuple[int, int, int]]) -> dict[int, tuple[int, int]]:
    """Axis of the blob -> first place and the place behind the last."""
    spans = {}
    for axis, start, end in cuts:
        size = shape[axis]
        first, last, _ = slice(start, end).indices(size)
        if (first, last) != (0, size):
            spans[node.axis(axis, len(shape))] = (first, last)
    return spans


def _cropped(node: Node, spans: dict[int, tuple[int, int]]) -> list[Layer]:
    node.blob(node.inputs[0])
    if not spans:
        return [node.layer("Noop")]
    axes = tuple(sorted(spans))
    params: dict[int, Value] = {
        9: tuple(spans[axis][0] for axis in axes), 10: tuple(spans[axis][1] for axis in axes), 11: axes,
    }  # fmt: skip
    return [node.layer("Crop", params)]


def _indices(node: Node, place: int, attribute: str) -> list[int]:
    """Integers that are an input, or in older files an attribute."""
    if node.has(place):
        values = node.constant(place)
        if values is None:
            raise node.refused(f"its {attribute} are computed at run time")
        return [int(value) for value in values.reshape(-1)]
    return [int(value) for value in node.attribute(attribute) or ()]


def gather(node: Node) -> list[Layer]:
    """Gather with a constant index, as far as ncnn has something like it: a part without gaps, or channels shuffled in
    groups."""
    shape, index = node.blob(node.inputs[0]), node.constant(1)
    axis = node.axis(node.attribute("axis", 0), len(shape) + 1)
    if index is None:
        raise node.refused("its index is computed at run time, and ncnn has no Gather")
    places = np.where(index < 0, index + shape[axis], index).astype(np.int64)
    if places.ndim == 1 and (np.diff(places) == 1).all():
        first = int(places[0])
        span = {} if len(places) == shape[axis] else {axis: (first, first + len(places))}
        return _cropped(node, span)
    if axis == 0 and len(shape) == 3 and (groups := _shuffle_groups(places, shape[0])):
        return [node.layer("ShuffleChannel", {0: groups})]
    raise refused(
        node.proto,
        f"ncnn has no Gather, and this one takes {places.size} of {shape[axis]} places in another order",
        "a plan without Gathers has none: edgeprune prune --method gconv --gathers none",
    )


def _shuffle_groups(places: NDArray[np.int64], channels: int) -> int:
    """The number of groups from which channels are dealt in turn, if that is their order; else 0."""
    for groups in range(2, channels):
        if channels % groups == 0:
            dealt = np.arange(channels).reshape(groups, -1).T.reshape(-1)
            if np.array_equal(places, dealt):
                return groups
    return 0


def transpose(node: Node) -> list[Layer]:
    """Transpose that leaves the batch where it is."""
    rank = len(node.blob(node.inputs[0])) + 1
    order = node.attribute("perm") or list(range(rank))[::-1]
    if order[0] != 0:
        raise node.refused("it moves the batch, which ncnn does not have")
    if list(order) == list(range(rank)):
        return [node.layer("Noop")]
    names = "".join(_AXES[rank - 1][axis - 1] for axis in order[1:])
    return [node.layer("Permute", {0: ORDERS[rank - 1].index(names[::-1])})]


def reshape(node: Node) -> list[Layer]:
    """Whatever gives the same values in the same order another shape."""
    before, after = node.blob(node.inputs[0]), node.blob(node.output)
    if before == after:
        return [node.layer("Noop")]
    return [node.layer("Reshape", blob_sizes(after))]


def pad(node: Node) -> list[Layer]:
    """Pad by constants, and of height and width by the edge or its reflection."""
    shape, mode = node.blob(node.inputs[0]), node.attribute("mode", "constant")
    rank, given = len(shape) + 1, _indices(node, 1, "pads")
    axes = [axis % rank for axis in _indices(node, 3, "axes")] or list(range(rank))
    sides = {axis: (given[place], given[place + len(axes)]) for place, axis in enumerate(axes)}
    wanted = {axis: both for axis, both in sides.items() if both != (0, 0)}
    if not wanted:
        return [node.layer("Noop")]
    if mode not in _PAD_KINDS or min(side for both in wanted.values() for side in both) < 0:
        raise node.refused(f"its mode is {mode} with {given}: ncnn pads by constants, the edge or its reflection")
    ids = {rank - 1: (2, 3), rank - 2: (0, 1), rank - 3: (7, 8)}  # width; height; channels, or depth where there is one
    outer = [axis for axis in wanted if axis not in ids or axis == 0 or (ids[axis] == (7, 8) and mode != "constant")]
    if outer or rank > IMAGE_AXES:
        raise node.refused(f"it pads axis {(outer or list(wanted))[0]} of {rank}")
    params: dict[int, Value] = {4: _PAD_KINDS[mode]}
    for axis, both in wanted.items():
        params |= dict(zip(ids[axis], both, strict=True))
    value = node.required(2, "value").item() if node.has(2) else node.attribute("value", 0.0)
    return [node.layer("Padding", params | ({5: float(value)} if mode == "constant" else {}))]


def pixel_shuffle(node: Node) -> list[Layer]:
    """DepthToSpace, in either order of channels."""
    node.blob(node.inputs[0])
    mode = {"CRD": 0, "DCR": 1}[node.attribute("mode", "DCR")]
    return [node.layer("PixelShuffle", {0: node.attribute("blocksize"), 1: mode})]


def reorg(node: Node) -> list[Layer]:
    """SpaceToDepth."""
    node.blob(node.inputs[0])
    return [node.layer("Reorg", {0: node.attribute("blocksize"), 1: 1})]
