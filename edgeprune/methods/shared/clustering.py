"""Clusters of equal size, solved exactly.

A grouped convolution needs the same number of filters in every group. Given what it costs to put each filter into each
group, the cheapest such division is an assignment problem: one column for every free place of a group, so each group's
column stands `size` times. It is solved to the optimum here, for any cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Labels = NDArray[np.int64]
"""Item -> its group's number."""
Clusters = tuple[tuple[int, ...], ...]
"""Per group its items, ascending; groups ordered by their smallest item."""

MAX_ITERATIONS = 100
PRICED_ITEMS = 256
"""From here on finding prices takes less time than it saves: half of all at first, five sixths with 2,048 items."""
PRICE_ROUNDS = 2


def balanced_assignment(cost: NDArray[np.floating[Any]]) -> Labels:
    """Put every item into one group, equally many in each, at the least total cost.

    `cost`: (items, groups), finite; items must be a multiple of groups (ValueError otherwise). Returns (items,) group
    numbers. The sum of cost[i, label[i]] is minimal over all equal divisions; for the greatest sum pass -cost.
    """
    items, groups = cost.shape
    if groups < 1 or items % groups:
        raise ValueError(f"{items} items cannot be divided into {groups} groups of equal size")
    size = items // groups
    exact = np.asarray(cost, dtype=np.float64)
    if items >= PRICED_ITEMS and groups > 1:
        exact = _priced(exact, size)
    places = np.repeat(exact, size, axis=1)  # (items, groups * size)
    _, place = linear_sum_assignment(places)
    return np.asarray(place // size, dtype=np.int64)


def _priced(cost: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """The same problem, easier: each group has a price, such that about `size` items want it most.

    What all items pay for a group, and what one item pays wherever it goes, is the same in every equal division, so the
    best of them stays the best. With such prices most items get what they want, and few are left to be exchanged.
    """
    prices = np.zeros(cost.shape[1])
    for _ in range(PRICE_ROUNDS):
        for group in range(len(prices)):
            priced = cost + prices
            priced[:, group] = np.inf
            worth = np.sort(priced.min(axis=1) - cost[:, group])  # to each item, over the best other group
            prices[group] = (worth[-size - 1] + worth[-size]) / 2
    priced = cost + prices
    return np.asarray(priced - priced.min(axis=1, keepdims=True))


def balanced_kmeans(points: NDArray[np.float64], centroids: NDArray[np.float64]) -> Labels:
    """k-means with clusters of equal size, from the given centroids to a fixed point.

    `points`: (items, d); `centroids`: (groups, d). Two steps alternate: the exact assignment of least total squared
    distance under equal sizes, and each group's mean as its new centroid. Neither can raise the sum of squared
    distances, so it ends; after `MAX_ITERATIONS` it is stopped.

    The paper's same-size k-means moves single points greedily, first into the nearest cluster with room, then by
    profitable swaps; for the same centroids the assignment found here is never worse, as it is the optimum.
    """
    scale = float(np.abs(points).max(initial=0.0)) or 1.0
    points, centroids = points / scale, centroids / scale  # squares stay far from overflow and underflow
    labels = balanced_assignment(_squared_distances(points, centroids))
    for _ in range(MAX_ITERATIONS):
        cost = _squared_distances(points, _means(points, labels, len(centroids)))
        improved = balanced_assignment(cost)
        items = np.arange(len(points))
        gain = cost[items, labels].sum() - cost[items, improved].sum()
        # Equal points leave several optima: without a gain the division that we hold is as good, and stays.
        if not gain > 1e-12 * cost.max():
            break
        labels = improved
    return labels


def to_clusters(labels: NDArray[np.integer[Any]]) -> Clusters:
    """The canonical form of a division: items ascending in each group, groups ordered by their smallest item."""
    members: dict[int, list[int]] = {}
    for item, label in enumerate(labels.tolist()):
        members.setdefault(label, []).append(item)  # visited in ascending order, so groups appear by smallest item
    return tuple(tuple(group) for group in members.values())


def is_equal_division(clusters: Sequence[Sequence[int]], items: int) -> bool:
    """Whether the clusters hold each of the items 0..items-1 exactly once, and all have one size."""
    held = sorted(item for group in clusters for item in group)
    return len({len(group) for group in clusters}) == 1 and held == list(range(items))


def _squared_distances(points: NDArray[np.float64], centroids: NDArray[np.float64]) -> NDArray[np.float64]:
    """(items, groups) squared distances, exact zeros for equal points."""
    # Group by group: few groups, and no (items, groups, d) array.
    columns = [((points - centroid) ** 2).sum(axis=1) for centroid in centroids]
    return np.stack(columns, axis=1)


def _means(points: NDArray[np.float64], labels: Labels, groups: int) -> NDArray[np.float64]:
    return np.stack([points[labels == group].mean(axis=0) for group in range(groups)])
