"""Clusters of filters for C-SGD (paper 001, section III-B): of each cluster one filter survives.

Filters are clustered in the units of `channel_choice`, in which the i-th channels of all layers, concatenations and
padded shortcuts are in step: the paper's pacesetter is the projection shortcut of a unit, or its first layer, and all
others follow. Where a shortcut pads zero channels, the padded channels are in the unit of their source, so that they
are clustered as those are, and the channels that the padding adds are a unit of their own: two channels of the sum are
then equal whenever the filters that write them are, which is what lossless trimming needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from edgeprune.graph import Graph
from edgeprune.io.progress import track
from edgeprune.methods.base import Weights, require_finite
from edgeprune.methods.shared.clustering import Clusters
from edgeprune.methods.shared.units import Prunable, Unit

Scheme = Literal["kmeans", "even", "imbalanced"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
KMEANS_STARTS = 4


def cluster_units(among: Prunable, weights: Weights, counts: Sequence[int], scheme: Scheme) -> tuple[Clusters, ...]:
    """For each unit, `counts` clusters of its places 0..size - 1, by the filters of its pacesetter.

    InputError if these filters are not finite.
    """
    found = []
    # One thread: sums add up in one order on every machine.
    with threadpool_limits(limits=1):
        for unit, count in track(list(zip(among.units, counts, strict=True)), "clustering filters"):
            name, numbers = pacesetter(unit, among.graph)
            require_finite([name], weights)
            filters = weights[name][list(numbers)].reshape(unit.size, -1)
            found.append(cluster_filters(filters, count, scheme, among.request.seed))
    return tuple(found)


def pacesetter(unit: Unit, graph: Graph) -> tuple[str, tuple[int, ...]]:
    """The layer (and its filters' numbers) whose clusters the others of the unit follow."""
    return next((part for part in unit.layers if graph.layer(part[0]).is_shortcut), unit.layers[0])


def cluster_filters(filters: NDArray[np.floating[Any]], count: int, scheme: Scheme, seed: int) -> Clusters:
    """Divide `filters` (n, entries) into `count` (1..n) clusters, none of them empty.

    - kmeans: by the Euclidean distance of the flattened kernels;
    - even: neighbours in sizes that differ by one at most;
    - imbalanced: the first n - count + 1 filters in one cluster, every other filter alone.
    """
    n = len(filters)
    if not 1 <= count <= n:
        raise ValueError(f"{n} filters cannot be divided into {count} clusters")
    if scheme == "even":
        labels = np.repeat(np.arange(count), [len(part) for part in np.array_split(np.arange(n), count)])
    elif scheme == "imbalanced":
        labels = np.maximum(np.arange(n) - (n - count), 0)
    else:
        labels = _kmeans(np.asarray(filters, dtype=np.float64), count, seed)
    return clusters_from(labels)


def _kmeans(points: NDArray[np.float64], count: int, seed: int) -> NDArray[np.int64]:
    from sklearn.cluster import KMeans  # slow to import

    distinct, labels = np.unique(points, axis=0, return_inverse=True)
    labels = labels.reshape(-1)
    if len(distinct) > count:
        if points.shape[1] > len(points):  # a rotation into the space that the filters span keeps all distances
            points = np.asarray(np.linalg.qr(points.T, mode="r")).T  # (n, n)
        state = np.random.RandomState(seed)
        found = KMeans(n_clusters=count, n_init=KMEANS_STARTS, random_state=state).fit(points)
        _, labels = np.unique(found.labels_, return_inverse=True)
    # Where filters are equal k-means finds fewer clusters: the largest are then parted until there are enough.
    for new in range(labels.max() + 1, count):
        labels[np.flatnonzero(labels == np.bincount(labels).argmax())[-1]] = new
    return np.asarray(labels, dtype=np.int64)


def clusters_from(labels: NDArray[np.integer[Any]]) -> Clusters:
    """The clusters of places that have the same label, ordered by their first place."""
    return tuple(sorted(tuple(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)))


def labels_from(clusters: Clusters) -> NDArray[np.int64]:
    """(places,) the number of each place's cluster: the inverse of `clusters_from`."""
    labels = np.empty(sum(map(len, clusters)), dtype=np.int64)
    for number, places in enumerate(clusters):
        labels[list(places)] = number
    return labels


def channel_clusters(among: Prunable, clusters: Sequence[Clusters]) -> Mapping[str, NDArray[np.int64]]:
    """Coupled set -> (channels,) the first channel of each channel's cluster; only sets in which any is merged."""
    firsts = {coupled.name: np.arange(coupled.channels) for coupled in among.graph.coupled_sets}
    for unit, of_unit in zip(among.units, clusters, strict=True):
        for name, channels in unit.sets:
            for places in of_unit:
                firsts[name][[channels[place] for place in places]] = channels[places[0]]
    return {name: first for name, first in firsts.items() if len(np.unique(first)) < len(first)}
