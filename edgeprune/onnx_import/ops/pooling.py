"""Pools: windows over the image axes, and over all of them."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx

from edgeprune.onnx_import.node import OnnxNode
from edgeprune.onnx_import.ops.windows import padded, window_pads

_MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_ADAPTIVE = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def max_pool(node: OnnxNode) -> fx.Node:
    kernel, strides, dilations, before, after = _window(node)
    if any(node.proto.output[1:]):
        raise node.refused("it also gives where each maximum was")
    x, reach = node.tensor(), _reach(node, kernel, strides, dilations, before, after)
    padding = before
    if before != reach or any(2 * p > k for p, k in zip(before, kernel, strict=True)):
        x, padding = padded(node, x, before, reach, -math.inf), [0] * len(kernel)
    return node.call(
        _MAX_POOLS[len(kernel)], x, tuple(kernel), tuple(strides), tuple(padding), tuple(dilations)
    )  # fmt: skip


def average_pool(node: OnnxNode) -> fx.Node:
    kernel, strides, dilations, before, after = _window(node)
    if any(dilation != 1 for dilation in dilations):
        raise node.refused("torch has no average pool with dilation")
    reach, pool = _reach(node, kernel, strides, dilations, before, after), _AVERAGE_POOLS[len(kernel)]
    sizes, counts_pads = tuple(map(tuple, (kernel, strides))), bool(node.attribute("count_include_pad", 0))
    if before == reach == after and all(2 * p <= k for p, k in zip(before, kernel, strict=True)):
        return node.call(pool, node.tensor(), *sizes, tuple(before), False, counts_pads)
    x = padded(node, node.tensor(), before, reach)
    counted = _counted(node, kernel, strides, before, after if counts_pads else None)
    factor = float(math.prod(kernel)) / counted  # (1, 1, H_out, W_out): elements of a window, over those that count
    y = node.call(pool, x, *sizes)
    return y if (factor == 1).all() else node.call(torch.mul, y, node.buffer("window", factor))


def global_average_pool(node: OnnxNode) -> fx.Node:
    return node.call(_ADAPTIVE[node.rank - 2], node.tensor(), 1)


def global_max_pool(node: OnnxNode) -> fx.Node:
    return node.call(torch.amax, node.tensor(), tuple(range(2, node.rank)), True)


def _window(node: OnnxNode) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Kernel, strides, dilations, and what is padded before and after each axis."""
    kernel = list(node.attribute("kernel_shape", list[int]()))
    if len(kernel) not in _MAX_POOLS or node.rank != len(kernel) + 2:
        raise node.refused(f"its window has {len(kernel)} axes, its input {node.rank}")
    strides = list(node.attribute("strides", [1] * len(kernel)))
    dilations = list(node.attribute("dilations", [1] * len(kernel)))
    before, after = window_pads(node, kernel, strides, dilations)
    return kernel, strides, dilations, before, after


def _reach(
    node: OnnxNode,
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    before: list[int],
    after: list[int],
) -> list[int]:
    """Elements behind each axis, so that the last window fits: with ceil_mode more than the padding."""
    if not node.attribute("ceil_mode", 0):
        return after
    given = zip(kernel, strides, dilations, node.shape()[2:], node.output_shape()[2:], before, strict=True)
    return [(out - 1) * s + d * (k - 1) + 1 - size - b for k, s, d, size, out, b in given]


def _counted(
    node: OnnxNode, kernel: list[int], strides: list[int], before: list[int], after: list[int] | None
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """(1, 1, H_out, W_out) how many elements of each window count: those of the image, and of the padding where the
    padding `after` is given."""
    counts = np.ones((1, 1))
    for axis, (size, out) in enumerate(zip(node.shape()[2:], node.output_shape()[2:], strict=True)):
        starts = np.arange(out) * strides[axis] - before[axis]
        first, last = (0, size) if after is None else (-before[axis], size + after[axis])
        along = np.minimum(starts + kernel[axis], last) - np.maximum(starts, first)
        counts = counts[..., None] * along
    return np.asarray(counts, np.float64)
