"""TMI-GKP's three clustering schemes: a layer's filters -> equal-sized clusters.

Each scheme embeds the filters, finds centroids there, and makes the clusters equal-sized by `balanced_kmeans`, which
solves each step exactly where the paper reassigns greedily. What the paper leaves open is fixed here and said at each
scheme. A layer, a scheme and a seed always give the same clusters, whatever other layers there are.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial.distance import cdist
from sklearn.cluster import DBSCAN, KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.manifold import TSNE

from edgeprune.methods.shared.clustering import Clusters, Labels, balanced_kmeans, to_clusters

Points = NDArray[np.float64]
Scheme = Literal["spectral", "kpca", "tsne"]
SCHEMES: tuple[Scheme, ...] = ("spectral", "kpca", "tsne")
"""In the order in which ties are broken. Spectral stands first because it loses least against the vote in the paper's
comparison of single schemes."""

KMEANS_STARTS = 10
# The sweep over DBSCAN's parameters, in this order: coarse clusters of many filters first.
MIN_SAMPLES = (5, 4, 3, 2)
EPS_QUANTILES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
EXACT_TSNE_FILTERS = 512  # more than 3 components need t-SNE without its tree, whose time grows with the square


@dataclass(frozen=True)
class Clustered:
    """What one scheme made of one layer."""

    clusters: Clusters
    remark: str = ""
    """What is worth knowing of how it came about; empty if nothing is."""
    is_fallback: bool = False
    """The scheme found no clusters of its own, so k-means took its place."""


def cluster_filters(
    scheme: Scheme, weight: NDArray[np.floating[Any]], groups: int, *, layer: str, seed: int
) -> Clustered:
    """Divide a layer's filters into `groups` clusters of equal size.

    `weight`: (filters, ...), finite; filters must be a multiple of groups. The random state comes from the seed, the
    layer's name and the scheme.
    """
    filters = weight.reshape(len(weight), -1).astype(np.float64)  # (filters, C_in * k * k)
    if len(filters) == groups:
        return Clustered(tuple((f,) for f in range(groups)), "one filter a group leaves nothing to cluster")
    state = layer_seed(seed, layer, scheme)
    if scheme == "tsne":
        return _tsne_dbscan(filters, groups, state)
    embedding = spectral_embedding(filters, groups) if scheme == "spectral" else kernel_pca_embedding(filters, groups)
    return Clustered(to_clusters(_kmeans(embedding, groups, state)))


def layer_seed(seed: int, layer: str, scheme: str) -> int:
    """A seed of 32 bits that differs between layers and schemes."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{layer}/{scheme}".encode()).digest()[:4], "big")


def kernel_pca_embedding(filters: Points, components: int) -> Points:
    """Kernel PCA with the paper's mixed kernel (.2): 0.5 * (x.y)^2 + 0.5 * exp(-|x - y|^2 / (2 sigma^2)).

    `filters`: (F, values) -> (F, min(components, F - 1)). Open in the paper: sigma is the median distance between two
    different filters (1 if they are all equal), and as many components are kept as there are groups.
    """
    distances = cdist(filters, filters)
    apart = distances[distances > 0.0]
    sigma = float(np.median(apart)) if len(apart) else 1.0
    kernel = 0.5 * (filters @ filters.T) ** 2 + 0.5 * np.exp(-0.5 * (distances / sigma) ** 2)
    means = kernel.mean(axis=0)
    centred = kernel - means[None, :] - means[:, None] + means.mean()
    count = len(filters)
    values, vectors = scipy.linalg.eigh(centred, subset_by_index=[max(count - components, 1), count - 1])
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


def spectral_embedding(filters: Points, components: int) -> Points:
    """Normalised spectral embedding of the mutual-kNN graph with cosine similarities.

    `filters`: (F, values) -> (F, components): the eigenvectors of the smallest eigenvalues of the symmetric normalised
    Laplacian I - D^-1/2 A D^-1/2, rows scaled to length 1. Edge weights are (1 + cosine) / 2. Open in the paper: k is
    the number of filters a group, at least log2(F) + 1. A mutual-kNN graph may fall apart, and with more parts than
    components the eigenvectors would be arbitrary; the parts are therefore joined by their heaviest links (a maximum
    spanning tree of the parts), which leaves one graph and a defined answer.
    """
    count = len(filters)
    similarity = 0.5 + 0.5 * _cosines(filters)
    np.clip(similarity, 1e-6, 1.0, out=similarity)  # no link has weight 0: it would not join anything
    neighbours = min(max(count // components, math.ceil(math.log2(count)) + 1), count - 1)
    adjacency = np.where(_joined(_mutual_neighbours(similarity, neighbours), similarity), similarity, 0.0)
    scale = 1.0 / np.sqrt(adjacency.sum(axis=1))  # every filter has a neighbour now
    laplacian = np.eye(count) - scale[:, None] * adjacency * scale[None, :]
    _, vectors = scipy.linalg.eigh(laplacian, subset_by_index=[0, components - 1])
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12))


def _cosines(filters: Points) -> Points:
    """(F, F) cosines; a filter of zeros has cosine 1 with its like and 0 with all others."""
    lengths = np.linalg.norm(filters, axis=1)
    zero = lengths == 0.0
    directions = filters / np.where(zero, 1.0, lengths)[:, None]
    cosines = directions @ directions.T
    cosines[np.ix_(zero, zero)] = 1.0
    return np.asarray(cosines)


def _mutual_neighbours(similarity: Points, neighbours: int) -> NDArray[np.bool_]:
    """(F, F) whether i is among j's `neighbours` most similar filters and j among i's; of equals the lower number."""
    ranked = similarity.copy()
    np.fill_diagonal(ranked, -np.inf)
    nearest = np.argsort(-ranked, axis=1, kind="stable")[:, :neighbours]
    near = np.zeros(similarity.shape, dtype=bool)
    np.put_along_axis(near, nearest, True, axis=1)
    return near & near.T


def _joined(edges: NDArray[np.bool_], similarity: Points) -> NDArray[np.bool_]:
    """The edges, and the heaviest links that make one part of the graph."""
    if connected_components(edges, directed=False, return_labels=False) == 1:
        return edges
    # Edges cost next to nothing, so the spanning tree takes a missing link only from one part to another.
    costs = np.triu(np.where(edges, 1e-3, 2.0 - similarity), k=1)
    tree: NDArray[np.bool_] = minimum_spanning_tree(costs).toarray() > 0.0
    return edges | tree | tree.T


def _kmeans(points: Points, groups: int, state: int) -> Labels:
    """Balanced k-means that starts from the centroids of the best of several plain k-means runs."""
    with warnings.catch_warnings():
        # Fewer different points than groups is no fault here: some centroids coincide.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(n_clusters=groups, n_init=KMEANS_STARTS, random_state=state).fit(points)
    return balanced_kmeans(points, np.asarray(found.cluster_centers_, dtype=np.float64))


def _tsne_dbscan(filters: Points, groups: int, state: int) -> Clustered:
    """t-SNE, then DBSCAN on the embedding, until some parameters give more clusters than groups.

    Perplexity is the number of filters a group. For each number of components from 2 up to groups - 1 (2 alone for two
    groups) there is one embedding, on which `MIN_SAMPLES` and, for each, `EPS_QUANTILES` are tried in order; eps is
    that quantile of the filters' distances to the neighbour that makes them a core point, as in DBSCAN's k-distance
    plot. Values of min_samples for which groups + 1 clusters would need more filters than there are, are left out;
    min_samples 1 is tried on the first embedding, after all else. The first parameters that give at least groups + 1
    clusters (noise is none) end the sweep. The centroids of the `groups` largest clusters, of equals the one found
    first, then start the balanced k-means in that embedding. If no parameters qualify, as where filters are equal,
    plain k-means gives the centroids instead.
    """
    fallback = f"no t-SNE + DBSCAN parameters gave {groups + 1} clusters, so k-means took its place"
    if len(np.unique(filters, axis=0)) <= groups:
        return Clustered(to_clusters(_kmeans(filters, groups, state)), fallback, is_fallback=True)
    feasible = [m for m in MIN_SAMPLES if m * (groups + 1) <= len(filters)]
    first: Points | None = None
    for embedding in _embeddings(filters, groups, state):
        first = embedding if first is None else first
        found = _dbscan_sweep(embedding, groups, feasible)
        if found is not None or not feasible:
            break
    assert first is not None  # 2 components are always tried
    if found is None:
        embedding, found = first, _dbscan_sweep(first, groups, [1])
    if found is None:
        return Clustered(to_clusters(_kmeans(first, groups, state)), fallback, is_fallback=True)
    labels = balanced_kmeans(embedding, _largest_centroids(embedding, found.labels, groups))
    return Clustered(to_clusters(labels), f"t-SNE with {embedding.shape[1]} components, DBSCAN with {found.parameters}")


def _embeddings(filters: Points, groups: int, state: int) -> Iterator[Points]:
    count, values = filters.shape
    for components in range(2, max(groups, 3)):
        if components > 3 and count > EXACT_TSNE_FILTERS:
            return
        tsne = TSNE(
            n_components=components,
            perplexity=float(count // groups),
            random_state=state,
            init="pca" if components <= min(count, values) else "random",
            method="barnes_hut" if components <= 3 else "exact",
        )
        yield np.asarray(tsne.fit_transform(filters), dtype=np.float64)


@dataclass(frozen=True)
class _Density:
    labels: Labels
    """Cluster of each filter, -1 for noise."""
    parameters: str


def _dbscan_sweep(embedding: Points, groups: int, min_samples: Sequence[int]) -> _Density | None:
    """The first clustering of the sweep with more clusters than groups."""
    distances = cdist(embedding, embedding)
    ordered = np.sort(distances, axis=1)  # column j: distance to the j-th neighbour, the point itself being the 0th
    for samples in min_samples:
        for eps in np.quantile(ordered[:, max(samples - 1, 1)], EPS_QUANTILES).tolist():
            if eps <= 0.0:
                continue
            labels = DBSCAN(eps=eps, min_samples=samples, metric="precomputed").fit_predict(distances)
            count = int(labels.max()) + 1
            if count > groups:
                return _Density(labels, f"eps {eps:.4g} and min_samples {samples}: {count} clusters")
    return None


def _largest_centroids(points: Points, labels: Labels, groups: int) -> Points:
    """(groups, d) means of the largest clusters; of equals the one found first."""
    largest = np.argsort(-np.bincount(labels[labels >= 0]), kind="stable")[:groups]
    return np.stack([points[labels == number].mean(axis=0) for number in largest])
