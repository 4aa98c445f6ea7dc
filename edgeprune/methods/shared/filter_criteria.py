"""How important the filters of a layer are: by their norm, or by their distance to the other filters.

In a unit of several layers (see `channel_choice`) the layers' values are summed, channel by channel. Everything is
computed in float64; of equally important filters the first ones stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from edgeprune.methods.shared.channel_choice import highest
from edgeprune.methods.shared.units import Numbers

Filters = NDArray[np.float64]
"""(filters, weights of each): the filters of one layer that belong to a unit."""
Choose = Callable[[Sequence[Filters], int], Numbers]
"""(the filters of each layer of a unit, how many stay) -> the places that stay, ascending."""
Order = Literal["l2", "l1"]
Distance = Literal["l2", "l1", "cosine"]


def norms(filters: Filters, order: Order) -> NDArray[np.float64]:
    """(filters,) the L1 or L2 norm of each (paper 004, eq. 3.2)."""
    found: NDArray[np.float64] = np.linalg.norm(filters, ord=1 if order == "l1" else 2, axis=1)
    return found


def distance_sums(filters: Filters, distance: Distance) -> NDArray[np.float64]:
    """(filters,) the sum of each one's distances to all others (paper 004, eq. 5.4).

    The smallest belongs to the filter nearest to the geometric median: the others can stand in for it best. The cosine
    distance of a zero filter to any other is 1.
    """
    itself = np.zeros(len(filters))
    if distance == "cosine":
        lengths = norms(filters, "l2")[:, None]
        directions = np.divide(filters, lengths, out=np.zeros_like(filters), where=lengths > 0)
        # 1 - cos of unit vectors is |a - b|^2 / 2, which for equal filters is exactly 0, and 1 - a b only roughly.
        zeros = (lengths == 0).astype(np.float64)
        between = (cdist(directions, directions, "sqeuclidean") + zeros + zeros.T) / 2
        itself = zeros[:, 0]
    else:
        between = cdist(filters, filters, "cityblock" if distance == "l1" else "euclidean")
    # Taken off at the end: so equal filters have equal rows, and exactly equal sums.
    sums: NDArray[np.float64] = between.sum(1) - itself
    return sums


def by_norm(order: Order) -> Choose:
    """The filters with the largest norms stay: SFP, ASFP."""
    return lambda layers, count: highest(_summed([norms(filters, order) for filters in layers]), count)


def by_distance(distance: Distance) -> Choose:
    """The filters farthest from all others stay: FPGM."""
    return lambda layers, count: highest(_summed([distance_sums(filters, distance) for filters in layers]), count)


def by_both(order: Order, distance: Distance, norm_share: float) -> Choose:
    """FPGM-mix: of the filters that go, `norm_share` (rounded down) have the smallest norms; of what is left then, the
    rest are those nearest to all others that are left."""

    def choose(layers: Sequence[Filters], count: int) -> Numbers:
        size = len(layers[0])
        by_norm_gone = math.floor(norm_share * (size - count) + 1e-9)
        left = by_norm(order)(layers, size - by_norm_gone)
        chosen = by_distance(distance)([filters[list(left)] for filters in layers], count)
        return tuple(left[place] for place in chosen)

    return choose


def _summed(per_layer: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    summed: NDArray[np.float64] = np.sum(np.stack(per_layer), axis=0)
    return summed
