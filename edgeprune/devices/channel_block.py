"""Counts of channels on a device's channel block."""

from __future__ import annotations

LAYOUT_CHANNELS = 4
"""ONNX Runtime's fast kernels on x86 hold tensors in blocks of channels; those whose channels are no multiple of this
are left as they are."""


def round_up(channels: int, block: int) -> int:
    """The least multiple of the block that is no less than this number of channels."""
    return -(-channels // block) * block


def is_off_block(groups: int, inputs: int, filters: int, block: int, layout: int = LAYOUT_CHANNELS) -> bool:
    """Whether a convolution with so many inputs and filters a group gets slower kernels, for its channels alone.

    Grouped ones want whole blocks in every group; depthwise ones only what `layout` says of all channels together (1:
    nothing). Ungrouped ones are filled up to blocks. As measured with ONNX Runtime's CPU provider.
    """
    if block <= 1 or groups == 1:
        return False
    if inputs == filters == 1:
        return groups % layout > 0
    return inputs % block > 0 or filters % block > 0


def reads_blocks(groups: int, inputs: int, filters: int, block: int) -> bool:
    """Whether ONNX Runtime runs such a convolution on tensors in blocks of channels: the data is reordered for it, and
    behind it, if its neighbours are run otherwise. Inputs fewer than a block are read as they are, whatever their
    number."""
    is_whole = groups > 1 or inputs < block or not inputs % LAYOUT_CHANNELS
    return block > 1 and is_whole and not is_off_block(groups, inputs, filters, block)
