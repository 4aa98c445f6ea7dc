"""Filters to groups and channels to groups, by what it costs: balanced, alternating, then with exact errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeprune.methods.gkp_cal.elimination import Elimination, Matrix, eliminate, errors_without, saliency
from edgeprune.methods.shared.clustering import Labels, balanced_assignment, balanced_kmeans
from edgeprune.plans.plan import LayerPlan

ROUNDS = 20
"""Of alternating by saliency, which ends before."""
STARTS = 4


@dataclass(frozen=True)
class Grouped:
    """A layer in groups."""

    labels: Labels
    """(filters,) group of each."""
    groups: tuple[Elimination, ...]
    in_order: bool = False
    """Whether the groups stand as they are numbered, device by device, not by their smallest filter."""

    @property
    def error(self) -> float:
        return sum(group.error for group in self.groups)

    @property
    def filters(self) -> list[tuple[int, ...]]:
        """Of each group, ascending."""
        return [tuple(np.flatnonzero(self.labels == number).tolist()) for number in range(len(self.groups))]

    def entry(self, name: str, note: str = "") -> LayerPlan:
        """The layer's part of a plan."""
        parts = list(zip(self.filters, (part.kept for part in self.groups), strict=True))
        if not self.in_order:
            parts.sort()
        return LayerPlan(name, tuple(rows for rows, _ in parts), tuple(kept for _, kept in parts), note)


def group(
    weights: Matrix,
    inverse: Matrix,
    size: int,
    groups: int,
    keep: int,
    rng: np.random.Generator,
    refine: int = 3,
    step: int = 0,
) -> Grouped:
    """Divide filters into `groups` groups of one size that read `keep` input channels each.

    `weights`: (filters, channels * size), the least-squares solution, filters weighted as their errors count.
    First by the saliency of single kernels; then, `refine` times at most, by the exact errors of each filter with the
    channels of each group, for as long as that lowers the error. `step`: how many channels go at a time.
    """
    kernels = saliency(weights, inverse, size)  # (filters, channels)
    labels = by_saliency(kernels, groups, keep, rng)
    best = _eliminated(weights, inverse, size, labels, keep, step)
    channels = range(kernels.shape[1])
    for _ in range(refine):
        errors = np.stack(
            [errors_without(weights, inverse, size, sorted(set(channels) - set(g.kept))) for g in best.groups], axis=1
        )  # (filters, groups)
        labels = balanced_assignment(errors)
        if (labels == best.labels).all():
            break
        found = _eliminated(weights, inverse, size, labels, keep, step)
        if found.error >= best.error * (1 - 1e-9):
            break
        best = found
    return best


def by_saliency(kernels: Matrix, groups: int, keep: int, rng: np.random.Generator) -> Labels:
    """The division, of those found from several starts, whose groups keep most saliency."""
    total = kernels.sum(1, keepdims=True)
    points = np.sqrt(kernels / np.where(total > 0, total, 1))
    found: list[tuple[float, Labels]] = []
    for _ in range(STARTS):
        seeds = rng.choice(len(points), groups, replace=False)
        labels = balanced_kmeans(points, points[seeds])
        found.append(_alternated(kernels, labels, groups, keep))
    return max(found, key=lambda pair: pair[0])[1]


def _alternated(kernels: Matrix, labels: Labels, groups: int, keep: int) -> tuple[float, Labels]:
    held = -np.inf
    for _ in range(ROUNDS):
        sums = np.stack([kernels[labels == number].sum(0) for number in range(groups)])  # (groups, channels)
        chosen = np.argsort(-sums, axis=1, kind="stable")[:, :keep]
        gain = np.stack([kernels[:, row].sum(1) for row in chosen], axis=1)  # (filters, groups)
        better = balanced_assignment(-gain)
        now = float(gain[np.arange(len(gain)), better].sum())
        if now <= held * (1 + 1e-12):
            break
        held, labels = now, better
    return held, labels


def _eliminated(weights: Matrix, inverse: Matrix, size: int, labels: Labels, keep: int, step: int) -> Grouped:
    groups = int(labels.max()) + 1
    return Grouped(
        labels, tuple(eliminate(weights[labels == number], inverse, size, keep, step) for number in range(groups))
    )
