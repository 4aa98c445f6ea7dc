"""Coupled sets that consist of others, one behind another: concatenations, splits, and what is made of both."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from edgeprune.tracing.coupling import SetForest

Leaves = list[tuple[str, int]]
"""(set that consists of no others, its first channel)."""


class PartForest:
    """Coupled sets, and the parts of those that have some. A set may be met in several ways, of which the first counts
    until `join_parts` has made them one."""

    def __init__(self) -> None:
        self.sets = SetForest()
        self.concatenations: list[tuple[str, tuple[str, ...]]] = []
        """(set, the sets that stand in it one behind another)."""

    def parts_of(self, coupled_set: str, sizes: Sequence[int], name: str) -> tuple[str, ...]:
        """The sets that a set consists of, in parts of these sizes; those that it has already are cut where needed."""
        known = self.known_parts(coupled_set)
        if known and self.sizes(known) == tuple(sizes):
            return known
        ends = (0, *itertools.accumulate(sizes))
        leaves = self.cut((coupled_set,), ends, name) if known else []
        parts = []
        for number, (start, end) in enumerate(itertools.pairwise(ends)):
            inside = tuple(leaf for leaf, place in leaves if start <= place < end)
            part = inside[0] if len(inside) == 1 else self.sets.make(f"{name}_{number}", end - start)
            if len(inside) > 1:
                self.concatenations.append((part, inside))
            parts.append(part)
        if not known:
            self.concatenations.append((coupled_set, tuple(parts)))
        return tuple(parts)

    def known_parts(self, coupled_set: str) -> tuple[str, ...]:
        """The sets that a set consists of; empty if it consists of no others."""
        root = self.sets.root(coupled_set)
        return next((parts for whole, parts in self.concatenations if self.sets.root(whole) == root), ())

    def sizes(self, parts: Sequence[str]) -> tuple[int, ...]:
        return tuple(self.sets.channels(part) for part in parts)

    def leaves(self, parts: Sequence[str], start: int = 0) -> Leaves:
        """What these sets, one behind another, consist of in the end."""
        found = Leaves()
        for part in parts:
            inner = self.known_parts(part)
            found += self.leaves(inner, start) if inner else [(self.sets.root(part), start)]
            start += self.sets.channels(part)
        return found

    def cut(self, parts: Sequence[str], ends: Sequence[int], name: str) -> Leaves:
        """Their leaves, after those were cut that go over one of these ends."""
        for count in itertools.count():
            leaves = self.leaves(parts)
            over = (
                (leaf, end - start)
                for leaf, start in leaves
                for end in ends
                if start < end < start + self.sets.channels(leaf)
            )
            leaf, first = next(over, ("", 0))
            if not leaf:
                return leaves
            sizes = (first, self.sets.channels(leaf) - first)
            halves = tuple(self.sets.make(f"{name}_cut{2 * count + half}", size) for half, size in enumerate(sizes))
            self.concatenations.append((leaf, halves))
        raise AssertionError("unreachable")

    def join_parts(self) -> None:
        """Where concatenations were added, what they consist of is in step, piece by piece."""
        is_new = True
        while is_new:
            is_new = False
            for whole, parts in list(self.concatenations):
                first = self.known_parts(whole)
                if first == parts or self.leaves(first) == self.leaves(parts):
                    continue
                is_new = True
                if self.sizes(first) == self.sizes(parts):
                    pairs = list(zip(first, parts, strict=True))
                else:
                    name = f"{self.sets.root(whole)}_joined"
                    self.cut(parts, [start for _, start in self.leaves(first)], name)
                    self.cut(first, [start for _, start in self.leaves(parts)], f"{name}_{parts[0]}")
                    pairs = [(a, b) for (a, _), (b, _) in zip(self.leaves(first), self.leaves(parts), strict=True)]
                for a, b in pairs:
                    self.sets.join(a, b)
