"""How many groups GConv may give a layer.

With an alignment, a group's input channels and its filters must each be a multiple of the block: a layer that cannot
have as many groups as asked gets the most below that, and one that has too few channels stays dense.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeprune.graph import Layer


@dataclass(frozen=True)
class GroupCounts:
    """The numbers of groups that one layer may have."""

    counts: tuple[int, ...] = ()
    """Ascending, 2 or more each; empty if the layer stays dense."""
    reason: str = ""
    """Why it stays dense."""
    asked: int = 0
    """The number that was asked for, where alignment took another; 0: as asked."""


def aligned_counts(layer: Layer, block: int) -> tuple[int, ...]:
    """All numbers of equal groups, 2 or more, whose input channels and filters are multiples of `block`; ascending."""
    blocks = math.gcd(layer.in_channels, layer.out_channels) // block
    if layer.in_channels % block or layer.out_channels % block:
        return ()
    return tuple(groups for groups in range(2, blocks + 1) if not blocks % groups)


def as_asked(layer: Layer, groups: int, block: int) -> GroupCounts:
    """So many groups; with a block of more than 1, the most aligned ones up to that."""
    fitting = [count for count in aligned_counts(layer, block) if count <= groups]
    if groups in fitting:
        return GroupCounts((groups,))
    if block == 1:
        return GroupCounts(reason=f"{_channels(layer)} cannot be divided into {groups} equal groups")
    if not fitting:
        numbers = "2" if groups == 2 else f"2 to {groups}"
        return GroupCounts(reason=f"{_channels(layer)} cannot be divided into {numbers} groups {_blocks(block)}")
    return GroupCounts((fitting[-1],), asked=groups)


def at_most_channels(layer: Layer, most: int, block: int) -> GroupCounts:
    """The fewest groups that leave each at most so many channels, in and out: the paper's G_M; aligned ones."""
    widest = max(layer.in_channels, layer.out_channels)
    if widest <= most:
        return GroupCounts(reason=f"it has no more than {most} channels already")
    asked, fitting = (
        [groups for groups in aligned_counts(layer, multiple) if widest <= most * groups] for multiple in (1, block)
    )
    if not fitting:
        where = "" if block == 1 else f" {_blocks(block)}"
        reason = f"no number of equal groups leaves each at most {most} of {widest} channels{where}"
        return GroupCounts(reason=reason)
    return GroupCounts((fitting[0],), asked=asked[0] if asked[0] != fitting[0] else 0)


def powers_of_two(layer: Layer, most: int, block: int) -> GroupCounts:
    """The aligned powers of two from 2 to `most`."""
    aligned = aligned_counts(layer, block)
    counts = tuple(groups for groups in aligned if groups <= most and groups.bit_count() == 1)
    where = "" if block == 1 else f" into groups {_blocks(block)}"
    return GroupCounts(counts, "" if counts else f"no power of two up to {most} divides {_channels(layer)}{where}")


def _channels(layer: Layer) -> str:
    return f"its {layer.in_channels} input channels and {layer.out_channels} filters"


def _blocks(block: int) -> str:
    return f"of whole blocks of {block} channels"
