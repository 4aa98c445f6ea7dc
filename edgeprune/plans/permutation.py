"""Channel selections: the one type for permutations, layouts and Gather indices, with one direction.

A selection `s` takes a sequence `x` of `s.source` channels to `y[i] = x[s[i]]`. A permutation is a selection that
holds every source channel exactly once; where groups overlap, a selection may repeat or leave out channels.
Selections are composed and inverted here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Selection:
    """`y[i] = x[index[i]]`, from `source` channels to `len(index)` channels."""

    index: tuple[int, ...]
    source: int

    def __post_init__(self) -> None:
        if self.index and not (min(self.index) >= 0 and max(self.index) < self.source):
            raise ValueError(
                f"selection indices must lie in [0, {self.source}), got {min(self.index)}..{max(self.index)}"
            )

    @staticmethod
    def identity(channels: int) -> Selection:
        return Selection(tuple(range(channels)), channels)

    @staticmethod
    def permutation(index: Iterable[int]) -> Selection:
        """The permutation with this index; ValueError if it is none."""
        values = tuple(int(i) for i in index)
        selection = Selection(values, len(values))
        if not selection.is_permutation:
            raise ValueError("not a permutation: an index is repeated")
        return selection

    @staticmethod
    def concatenated(groups: Iterable[Sequence[int]], source: int) -> Selection:
        """Group 1's channels, then group 2's, ..., out of `source` channels."""
        return Selection(tuple(int(i) for group in groups for i in group), source)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def is_permutation(self) -> bool:
        return len(self.index) == self.source and len(set(self.index)) == self.source

    @property
    def is_identity(self) -> bool:
        return len(self.index) == self.source and all(i == v for i, v in enumerate(self.index))

    def then(self, after: Selection) -> Selection:
        """First self, then `after`: z[i] = y[after[i]] = x[self[after[i]]]."""
        if after.source != len(self):
            raise ValueError(f"cannot compose: {len(self)} channels out, {after.source} expected in")
        return Selection(tuple(self.index[i] for i in after.index), self.source)

    def inverse(self) -> Selection:
        """The permutation with self.then(self.inverse()) the identity; ValueError if self is no permutation."""
        if not self.is_permutation:
            raise ValueError("only a permutation has an inverse")
        inverted = [0] * self.source
        for position, channel in enumerate(self.index):
            inverted[channel] = position
        return Selection(tuple(inverted), self.source)

    def repeated_blocks(self, block: int) -> Selection:
        """The same selection where each channel is `block` consecutive features (a flattened C x H x W tensor)."""
        return Selection(tuple(i * block + k for i in self.index for k in range(block)), self.source * block)

    def array(self) -> NDArray[np.int64]:
        return np.asarray(self.index, dtype=np.int64)


def gather_between(held: Selection, wanted: Selection) -> Selection:
    """The Gather that turns a tensor in layout `held` into the sequence `wanted`.

    Both count original channels: position i of the tensor holds channel held[i], and the result's position j must
    hold channel wanted[j], so the index is held^-1[wanted[j]].
    """
    return held.inverse().then(wanted)
