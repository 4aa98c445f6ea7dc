"""Channel layouts: in which order each coupled set holds its channels, so that the cheapest Gathers remain.

A dense layer reads and writes any layout for free (its weight's columns or rows are permuted). A grouped convolution
writes only layouts in which each group's filters stand together, and reads only group 1's inputs, then group 2's, ...
A Gather is needed exactly where a set's layout differs from such a sequence. The choice is separate for each set:
of the sequences that its grouped layers write and read, the one whose Gathers move the fewest bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeprune.plans.permutation import Selection


@dataclass(frozen=True)
class Demand:
    """A grouped layer that writes or reads a coupled set in blocks, one a group."""

    coupled_set: str
    blocks: tuple[tuple[int, ...], ...]
    """Per group, original channels; the order inside a block is free."""
    elements: int
    """Elements that a Gather would move here, a sample."""


@dataclass(frozen=True)
class Padding:
    """Zero channels put before and after those of `source` (a parameter-free shortcut); the result is in `target`."""

    source: str
    target: str
    lead: int
    trail: int
    elements: int


@dataclass(frozen=True)
class LayoutProblem:
    """All that decides the layouts of one network; sets in forward order."""

    channels: Mapping[str, int]
    in_order: frozenset[str]
    """Those that keep the original order."""
    demands: Sequence[Demand] = ()
    paddings: Sequence[Padding] = ()
    concatenations: Mapping[str, tuple[str, ...]] | None = None


def in_layout(blocks: Sequence[Sequence[int]], layout: Selection) -> tuple[tuple[int, ...], ...]:
    """The blocks with the channels inside each in the order in which `layout` holds them."""
    position = layout.inverse().index
    return tuple(tuple(sorted(block, key=lambda channel: position[channel])) for block in blocks)


def needs_gather(demand: Demand, layout: Selection) -> bool:
    """Whether a Gather has to stand between a tensor in `layout` and the demand's sequence of blocks."""
    return tuple(c for block in in_layout(demand.blocks, layout) for c in block) != layout.index


def padded_sources(padding: Padding, source: Selection, target: Selection) -> tuple[int | None, ...]:
    """For each channel position of `target`, the position in the `source` tensor to take it from; None for a zero."""
    position = source.inverse().index
    channels = len(source)
    return tuple(
        position[channel - padding.lead] if padding.lead <= channel < padding.lead + channels else None
        for channel in target.index
    )


def padding_needs_gather(padding: Padding, source: Selection, target: Selection) -> bool:
    """Whether plain zero padding of the source tensor does not already give the target's layout."""
    plain = (*(None,) * padding.lead, *range(len(source)), *(None,) * padding.trail)
    return padded_sources(padding, source, target) != plain


def choose_layouts(problem: LayoutProblem) -> dict[str, Selection]:
    """A layout for every coupled set."""
    layouts: dict[str, Selection] = {}
    concatenations = problem.concatenations or {}
    for name, channels in problem.channels.items():
        if name in problem.in_order:
            layouts[name] = Selection.identity(channels)
        elif name in concatenations:
            layouts[name] = _concatenated([layouts[part] for part in concatenations[name]])
        else:
            layouts[name] = _cheapest(name, channels, problem, layouts)
    return layouts


def _concatenated(parts: Sequence[Selection]) -> Selection:
    index: list[int] = []
    for part in parts:
        offset = len(index)
        index.extend(offset + channel for channel in part.index)
    return Selection.permutation(index)


def _cheapest(name: str, channels: int, problem: LayoutProblem, decided: Mapping[str, Selection]) -> Selection:
    demands = [d for d in problem.demands if d.coupled_set == name]
    incoming = [p for p in problem.paddings if p.target == name and p.source in decided]
    candidates = [Selection.identity(channels)]
    for demand in demands:
        flat = Selection.concatenated(demand.blocks, channels)
        if flat.is_permutation and flat not in candidates:
            candidates.append(flat)

    candidates += [_padded(p, decided[p.source], channels) for p in incoming]

    def moved(layout: Selection) -> int:
        return sum(d.elements for d in demands if needs_gather(d, layout)) + sum(
            p.elements for p in incoming if padding_needs_gather(p, decided[p.source], layout)
        )

    return min(candidates, key=moved)  # the first of equals: identity, then forward order


def _padded(padding: Padding, source: Selection, channels: int) -> Selection:
    """The layout that plain zero padding of the source tensor gives."""
    middle = [padding.lead + channel for channel in source.index]
    return Selection.permutation([*range(padding.lead), *middle, *range(padding.lead + len(middle), channels)])
