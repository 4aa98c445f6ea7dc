"""Counts of channels on a target's blocks, at the multiply-adds that were asked for.

Fast convolutions work on blocks of channels: where channels a group, in or out, are no multiple of the block, they fall
back to slow ones. So a count is rounded to a multiple of the block, or everything stays:

1. All counts are rounded down, but never below one block. What has no more than one block stays whole, and so does
   what was asked whole.
2. If that needs more than was asked (narrow layers stay whole), counts go down block by block, always where a step
   loses the least share of importance for the multiply-adds it saves; none below a quarter of what was asked.
3. What is left of the multiply-adds is spent on rounding up instead of down, where a step keeps the largest share of
   importance for the multiply-adds it costs.

Importance is the sum of squared weights. A method may choose by something else; here it only weighs layers against each
other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeprune.devices.channel_block import round_up
from edgeprune.devices.prices import DevicePrices

FLOOR = 4
"""At least one in so many of the channels that were asked for stays."""


@dataclass(frozen=True)
class Part:
    """Channels of which some stay: a layer's input channels for each of its groups, or the filters of a unit."""

    size: int
    asked: int
    """How many shall stay, 1..size."""
    importance: NDArray[np.float64]
    """(size + 1,) the share of the importance that the n most important hold, from 0 to 1."""
    price: float
    """Multiply-adds that one channel costs."""
    least: int = 0
    """At least so many stay, a multiple of the block or `size`; 0 for what `FLOOR` says."""
    width: int = 1
    """Neighbouring channels that each of what is counted here is: those of a group that goes as a whole."""
    whole_if_nearer: bool = False
    """Only where more than half a step would go is what was asked rounded up to `size`: it then gains nothing."""


def kept_importance(squares: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(n,) squared norms -> (n + 1,) the share of their sum that the 0, 1, ... n largest hold."""
    values = np.sort(np.asarray(squares, dtype=np.float64))[::-1]
    if not values.sum() > 0:
        values = np.ones_like(values)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(sums / sums[-1])


def counted_block(block: int, width: int) -> int:
    """The block of channels, counted in what is `width` of them."""
    return block // math.gcd(block, width)


def nearest_on_block(count: int, size: int, block: int) -> int:
    """The multiple of the block nearest to a count of 1..size, at least one block; `size` where there is no other."""
    if count >= size or size <= block:
        return size
    return min(max((count + block // 2) // block, 1) * block, size)


def counts_on_blocks(parts: Sequence[Part], block: int, holds: Callable[[tuple[int, ...]], bool]) -> tuple[int, ...]:
    """How many channels of each part stay: multiples of the block, or all, as the module's docstring says.

    `holds` tells whether counts are within what was asked; fewer channels never need more. Where even the smallest
    counts are not, these are given back. Of equal steps the first part's is taken.
    """
    blocks = [counted_block(block, part.width) for part in parts]
    choices = [_choices(part, own) for part, own in zip(parts, blocks, strict=True)]
    places = [choice.index(_down(part, own)) for part, own, choice in zip(parts, blocks, choices, strict=True)]

    def counts() -> tuple[int, ...]:
        return tuple(choice[place] for choice, place in zip(choices, places, strict=True))

    def worth(number: int, low: int) -> float:
        """Importance a multiply-add of the step between the places `low` and `low` + 1."""
        part, (fewer, more) = parts[number], choices[number][low : low + 2]
        gain = float(part.importance[more] - part.importance[fewer])
        return gain / (part.price * (more - fewer)) if part.price > 0 else gain

    while not holds(counts()):
        lower = [number for number, place in enumerate(places) if place > 0]
        if not lower:
            return counts()
        places[min(lower, key=lambda number: worth(number, places[number] - 1))] -= 1
    closed: set[int] = set()
    while True:
        open_parts = [n for n, choice in enumerate(choices) if places[n] + 1 < len(choice) and n not in closed]
        if not open_parts:
            return counts()
        number = max(open_parts, key=lambda number: worth(number, places[number]))
        places[number] += 1
        if not holds(counts()):
            places[number] -= 1
            closed.add(number)  # it will not hold later either: counts only grow from here


def over_asked_note(block: int, needed: float, asked: float) -> str:
    """The sentence for blocks that need more than was asked, both as shares of the dense network's multiply-adds."""
    return (
        f"Blocks of {block} leave {needed:.1%} of the multiply-adds where {asked:.1%} were asked: narrow layers stay "
        "whole, and the others are as thin as they may get (a quarter of what was asked, a block at least)."
    )


def _down(part: Part, block: int) -> int:
    """What was asked, rounded down."""
    if part.asked >= part.size or part.size <= block:
        return part.size
    return max(part.asked // block * block, block, part.least)


def _choices(part: Part, block: int) -> tuple[int, ...]:
    """The counts that a part may have, ascending."""
    down = _down(part, block)
    if down == part.size:
        return (down,)
    least = part.least or min(round_up(-(-part.asked // FLOOR), block), down)
    up = max(min(round_up(part.asked, block), part.size), down)
    if up == part.size and part.whole_if_nearer and part.asked - down <= up - part.asked:
        up = down
    return (*range(least, down, block), down, *((up,) if up > down else ()))


# -- groups ------------------------------------------------------------------------------------------------------------
class Grouping(NamedTuple):
    """The groups of a convolution, and the input channels that each of them reads; 1 and all for a dense one."""

    groups: int
    kept: int


@dataclass(frozen=True)
class AskedGrouping:
    """A convolution and how it shall be grouped."""

    in_channels: int
    out_channels: int
    kernel_macs: int
    """Multiply-adds of one kernel at all output positions."""
    asked: Grouping
    importance: NDArray[np.float64]
    """(in_channels + 1,) as in `Part`."""
    input_positions: int = 0
    """Elements that one input channel has."""

    @property
    def channel_macs(self) -> int:
        """What one kept input channel a group costs, whatever the number of groups."""
        return self.out_channels * self.kernel_macs

    @property
    def dense_macs(self) -> int:
        return self.channel_macs * self.in_channels


def aligned_groups(layer: AskedGrouping, block: int, prices: DevicePrices | None = None) -> int:
    """How many groups of equally many whole blocks of filters the layer gets, as many as asked or fewer; 1 if there
    are not even two.

    The most, unless prices tell that fewer are faster: narrow groups may run at a fraction of the rate, and more of
    them have more channels gathered. 1 where a device runs none of them faster than the dense layer.
    """
    asked, kept = layer.asked, max(layer.asked.kept // block * block, min(block, layer.asked.kept))
    fitting = [g for g in range(asked.groups, 1, -1) if layer.out_channels % (g * block) == 0]
    if not prices or not fitting:
        return fitting[0] if fitting else 1

    def price(groups: int) -> float:
        filters = layer.out_channels // groups
        moved = groups * kept * layer.input_positions * prices.macs_per_element
        return prices.convolution(layer.channel_macs * kept, filters) + moved

    fastest = min(fitting, key=price)
    return fastest if price(fastest) < prices.convolution(layer.dense_macs, layer.out_channels) else 1


def aligned_groupings(
    layers: Mapping[str, AskedGrouping], block: int, prices: DevicePrices | None = None
) -> dict[str, Grouping]:
    """Layer -> its groups and the kept input channels of each, both on the block.

    In all they need no more multiply-adds than was asked, where that can be: `asked_macs` and `macs_of` tell. A layer
    that has no two groups of whole blocks of filters, or no more than a block of input channels, becomes dense; so may
    one of which all input channels are nearer to what was asked than the block below, and with `prices` one that no
    groups make faster. Block 1 without prices gives what was asked.
    """
    groups = {name: aligned_groups(layer, block, prices) for name, layer in layers.items()}
    parts = [
        Part(
            layer.in_channels,
            layer.asked.kept if groups[name] > 1 else layer.in_channels,
            layer.importance,
            layer.channel_macs,
            whole_if_nearer=True,
        )
        for name, layer in layers.items()
    ]
    limit = asked_macs(layers)
    macs = [layer.channel_macs for layer in layers.values()]
    counts = counts_on_blocks(
        parts, block, lambda counts: sum(each * count for each, count in zip(macs, counts, strict=True)) <= limit
    )
    return {
        name: Grouping(groups[name], count) if count < layer.in_channels else Grouping(1, count)
        for (name, layer), count in zip(layers.items(), counts, strict=True)
    }


def asked_macs(layers: Mapping[str, AskedGrouping]) -> int:
    """Multiply-adds of the layers as they were asked for."""
    return sum(layer.channel_macs * layer.asked.kept for layer in layers.values())


def macs_of(layers: Mapping[str, AskedGrouping], taken: Mapping[str, Grouping]) -> int:
    """Multiply-adds of the layers with these groupings."""
    return sum(layer.channel_macs * taken[name].kept for name, layer in layers.items())


def grouping_note(layer: AskedGrouping, taken: Grouping, block: int, prices: DevicePrices | None = None) -> str:
    """What was asked and why something else was taken, in words; empty where it is what was asked."""
    asked = layer.asked
    if taken == asked:
        return ""
    said = f"aligned to blocks of {block}: asked were {asked.groups} groups of {asked.kept}"
    most = aligned_groups(layer, block)
    if taken.groups > 1:
        if prices and taken.groups < most:
            said = f"{said}, but groups of {layer.out_channels // taken.groups} filters are faster on {prices.device}"
        lowered = taken.kept < max(asked.kept // block * block, block)
        return f"{said}{', lowered since other layers stay dense' if lowered else ''}"
    if most == 1:
        return f"{said}, but {layer.out_channels} filters make no 2 to {asked.groups} groups of whole blocks"
    if layer.in_channels <= block:
        return f"{said}, but {layer.in_channels} input channels are no more than a block"
    if prices and aligned_groups(layer, block, prices) == 1:
        return f"{said}, but no groups of whole blocks are faster than the dense layer on {prices.device}"
    return f"{said}, rounded up to all {layer.in_channels} input channels"
