"""Counts of channels on a device's channel block."""

from __future__ import annotations


def round_up(channels: int, block: int) -> int:
    """The least multiple of the block that is no less than this number of channels."""
    return -(-channels // block) * block
