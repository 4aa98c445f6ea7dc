"""Operations that move elements: other axes, in another order, several tensors as one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx

from edgeprune.onnx_import.node import OnnxNode
from edgeprune.onnx_import.ops.windows import padded

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def reshape(node: OnnxNode) -> fx.Node:
    """The result's sizes are those that the file's rule comes to at this input size, -1 for the batch."""
    before, after = node.shape(), node.output_shape()
    if before == after:
        return node.tensor()
    if len(after) == 2 and after[0] == before[0] and node.open_shape()[0] == -1:
        return node.call(torch.flatten, node.tensor(), 1)
    return node.call(torch.reshape, node.tensor(), tuple(node.open_shape()))


def flatten(node: OnnxNode) -> fx.Node:
    if node.axis(node.attribute("axis", 1), node.rank + 1) == 1:
        return node.call(torch.flatten, node.tensor(), 1)
    return reshape(node)


def squeeze(node: OnnxNode) -> fx.Node:
    axes = node.integers("axes", 1)
    sizes = enumerate(node.shape())
    taken = [axis for axis, size in sizes if size == 1] if axes is None else [node.axis(axis) for axis in axes]
    if not taken:
        return node.tensor()
    return node.call(torch.squeeze, node.tensor(), tuple(taken))


def unsqueeze(node: OnnxNode) -> fx.Node:
    x, rank = node.tensor(), node.output_rank
    for axis in sorted(node.axis(axis, rank) for axis in node.integers("axes", 1) or ()):
        x = node.call(torch.unsqueeze, x, axis)
    return x


def transpose(node: OnnxNode) -> fx.Node:
    order = tuple(node.attribute("perm", list(reversed(range(node.rank)))))
    return node.tensor() if order == tuple(range(node.rank)) else node.call(torch.permute, node.tensor(), order)


def concat(node: OnnxNode) -> fx.Node:
    axis = node.axis(node.attribute("axis", 0), node.output_rank)
    parts = [place for place in node.places() if 0 not in node.shape(place)]
    if len(parts) == 1:
        return node.tensor(parts[0])
    return node.call(torch.cat, [node.whole(place) for place in parts], axis)


def expand(node: OnnxNode) -> fx.Node:
    before, after = node.shape(), node.open_shape()
    if before == node.output_shape():
        return node.tensor()
    kept = [-1] * len(after)
    offset = len(after) - len(before)
    sizes = [kept[axis] if axis >= offset and before[axis - offset] != 1 else size for axis, size in enumerate(after)]
    return node.method(node.tensor(), "expand", *sizes)


def tile(node: OnnxNode) -> fx.Node:
    return node.method(node.tensor(), "repeat", *node.known(1, "repeats").tolist())


def pad(node: OnnxNode) -> fx.Node:
    mode, pads = node.attribute("mode", "constant"), node.integers("pads", 1) or []
    axes = node.integers("axes", 3) or list(range(node.rank))
    before, after = [0] * node.rank, [0] * node.rank
    for number, axis in enumerate(axes):
        before[node.axis(axis)], after[node.axis(axis)] = pads[number], pads[len(axes) + number]
    first = next((axis for axis in range(node.rank) if before[axis] or after[axis]), None)
    if first is None:
        return node.tensor()
    if first == 0 or mode not in _PAD_MODES:
        raise node.refused("it pads the batch" if first == 0 else f"torch has no mode {mode}")
    if mode == "constant":
        given = node.known(2, "value").item() if node.has(2) else node.attribute("value", 0.0)
        return padded(node, node.tensor(), before[first:], after[first:], given)
    if first < 2:
        raise node.refused(f"torch pads no channels in mode {mode}")
    pairs = zip(reversed(before[2:]), reversed(after[2:]), strict=True)  # such modes: of all image axes
    return node.call(F.pad, node.tensor(), tuple(size for pair in pairs for size in pair), mode=_PAD_MODES[mode])


def depth_to_space(node: OnnxNode) -> fx.Node:
    block, x = node.attribute("blocksize", 1), node.tensor()
    if node.attribute("mode", "DCR") == "CRD":
        return node.call(F.pixel_shuffle, x, block)
    _, channels, height, width = node.shape()
    apart = node.call(torch.reshape, x, (-1, block, block, channels // block**2, height, width))
    moved = node.call(torch.permute, apart, (0, 3, 4, 1, 5, 2))
    return node.call(torch.reshape, moved, (-1, *node.output_shape()[1:]))


def space_to_depth(node: OnnxNode) -> fx.Node:
    block, (_, channels, height, width) = node.attribute("blocksize", 1), node.shape()
    sizes = (-1, channels, height // block, block, width // block, block)
    moved = node.call(torch.permute, node.call(torch.reshape, node.tensor(), sizes), (0, 3, 5, 1, 2, 4))
    return node.call(torch.reshape, moved, (-1, *node.output_shape()[1:]))
