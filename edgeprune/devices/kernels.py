"""Which kernel a device multiplies a layer with, as far as its shape says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from edgeprune.devices.channel_block import is_off_block, round_up
from edgeprune.devices.figures import KernelKind


class Kernel(NamedTuple):
    """What decides how fast a node multiplies."""

    kind: KernelKind
    filters: int
    """A group, filled up to whole blocks where the kernels work on those."""
    width: int
    """Columns of the output."""
    depth: int
    """Multiply-adds of one output: inputs a group times the kernel's size."""
    fill: float = 1.0
    """Factor of the multiply-adds when channels are filled up."""


def conv_kernel(weight: Sequence[int], groups: int, width: int, block: int) -> Kernel:
    """Of a convolution with a weight (filters, inputs a group, *kernel) and so many columns of output."""
    filters, inputs, size = weight[0] // groups, weight[1], math.prod(weight[2:])
    depth = inputs * size
    off_block = is_off_block(groups, inputs, filters, block)
    if groups > 1 and inputs == filters == 1:
        return Kernel("off_block_depthwise" if off_block else "depthwise", 1, width, depth)
    if off_block:
        return Kernel("off_block_pointwise" if size == 1 else "off_block", filters, width, depth)
    # Filters, and inputs of ungrouped convolutions, are filled up to blocks; fewer inputs than a block are not.
    filled = round_up(filters, block)
    if inputs < block:
        return Kernel("image", filled, width, depth, filled / filters)
    kind: KernelKind = "pointwise" if size == 1 else "spatial"
    return Kernel(kind, filled, width, depth, filled / filters * round_up(inputs, block) / inputs)
