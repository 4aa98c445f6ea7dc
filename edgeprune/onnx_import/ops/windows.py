"""Padding of convolutions and pools, as torch wants it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import fx

from edgeprune.onnx_import.node import OnnxNode


def window_pads(
    node: OnnxNode, kernel: list[int], strides: list[int], dilations: list[int]
) -> tuple[list[int], list[int]]:
    """Elements (before, after) each image axis, however the file says it."""
    rule, axes = node.attribute("auto_pad", "NOTSET"), len(kernel)
    if rule == "NOTSET":
        pads = list(node.attribute("pads", [0] * (2 * axes)))
        return pads[:axes], pads[axes:]
    if rule == "VALID":
        return [0] * axes, [0] * axes
    before, after = [], []
    for size, k, stride, dilation in zip(node.shape()[2:], kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + dilation * (k - 1) + 1 - size)
        half = total // 2
        before.append(half if rule == "SAME_UPPER" else total - half)
        after.append(total - half if rule == "SAME_UPPER" else half)
    return before, after


def padded(node: OnnxNode, x: fx.Node, before: list[int], after: list[int], value: float = 0.0) -> fx.Node:
    """The tensor with so many elements around its last axes; a negative number cuts them off."""
    if not any((*before, *after)):
        return x
    flat = [size for pair in zip(reversed(before), reversed(after), strict=True) for size in pair]
    return node.call(F.pad, x, tuple(flat), value=value)
