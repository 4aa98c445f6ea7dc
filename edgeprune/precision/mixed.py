"""Which layers stay in FP32 where INT8 costs more than one would pay: a greedy search, decided by what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Mixed:
    """What the search ended with."""

    fp32_layers: tuple[str, ...]
    """The most sensitive first."""
    drop: float
    """What the rest costs in INT8, in the unit of the search's limit."""


def fewest_in_fp32(
    sensitivity: Mapping[str, float], drop_with: Callable[[tuple[str, ...]], float], most: float
) -> Mixed:
    """Put layers back into FP32, the most sensitive first, until the rest costs no more than `most`.

    `sensitivity`: layer -> the error of the outputs where it alone is in INT8; `drop_with` measures what the network
    costs with these layers in FP32. The number of layers is doubled until they suffice, and then halved in between: it
    is measured a few times for any number of layers. Where all do not suffice, all are returned, with their drop.
    """
    ranked = sorted(sensitivity, key=lambda layer: -sensitivity[layer])

    @cache
    def drop(count: int) -> float:
        return drop_with(tuple(ranked[:count]))

    fails, holds = -1, 0
    while drop(holds) > most and holds < len(ranked):
        fails, holds = holds, min(max(2 * holds, 1), len(ranked))
    while holds - fails > 1:
        middle = (fails + holds) // 2
        if drop(middle) > most:
            fails = middle
        else:
            holds = middle
    return Mixed(tuple(ranked[:holds]), drop(holds))
