"""The three clustering schemes: equal sizes whatever the filters, repeatable, and sensible where there are clusters."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

import edgeprune.methods.tmi_gkp.clusterings as tmi_clusterings
from edgeprune.methods.shared.clustering import is_equal_division
from edgeprune.methods.tmi_gkp.clusterings import SCHEMES, Scheme, cluster_filters, layer_seed, spectral_embedding

Weight = NDArray[np.float32]


def random_weight(filters: int, channels: int = 4, seed: int = 0) -> Weight:
    return np.random.default_rng(seed).normal(scale=0.1, size=(filters, channels, 3, 3)).astype(np.float32)


def separated_weight(groups: int, size: int) -> tuple[Weight, tuple[tuple[int, ...], ...]]:
    """Filters around `groups` orthogonal directions, interleaved, and their true clusters."""
    rng = np.random.default_rng(1)
    truth = np.tile(np.arange(groups), size)
    directions = np.eye(groups, 36)[truth].reshape(-1, 4, 3, 3)
    weight = (directions + 0.01 * rng.normal(size=directions.shape)).astype(np.float32)
    return weight, tuple(tuple(range(group, groups * size, groups)) for group in range(groups))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("filters", "groups"), [(4, 2), (8, 2), (8, 4), (8, 8), (9, 3), (16, 8), (32, 8)])
def test_every_division_is_equal_and_repeatable(scheme: Scheme, filters: int, groups: int) -> None:
    weight = random_weight(filters)
    found = cluster_filters(scheme, weight, groups, layer="a", seed=3)
    assert len(found.clusters) == groups
    assert is_equal_division(found.clusters, filters)
    assert found == cluster_filters(scheme, weight, groups, layer="a", seed=3)


def degenerate(name: str, filters: int) -> Weight:
    weight = random_weight(filters)
    match name:
        case "zero":
            weight[:] = 0.0
        case "identical":
            weight[:] = weight[0]
        case "mostly zero":
            weight[3:] = 0.0
        case "pairs of copies":
            weight[1::2] = weight[::2]
        case "opposites":
            weight[1::2] = -weight[::2]
        case "one value a filter":
            weight = weight[:, :1, :1, :1]
        case "huge":
            weight *= np.float32(1e15)
        case "tiny":
            weight *= np.float32(1e-20)
    return weight


NAMES = ["zero", "identical", "mostly zero", "pairs of copies", "opposites", "one value a filter", "huge", "tiny"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("error")
def test_degenerate_filters_are_still_divided(scheme: Scheme, name: str) -> None:
    for filters, groups in ((8, 2), (8, 4), (12, 3)):
        found = cluster_filters(scheme, degenerate(name, filters), groups, layer="a", seed=0)
        assert is_equal_division(found.clusters, filters)
        assert len(found.clusters) == groups


@pytest.mark.parametrize("scheme", SCHEMES)
def test_clusters_that_are_far_apart_are_found(scheme: Scheme) -> None:
    weight, truth = separated_weight(groups=4, size=8)
    found = cluster_filters(scheme, weight, 4, layer="a", seed=0).clusters
    if scheme == "tsne":  # it asks DBSCAN for one cluster more than there are, so some filters may end elsewhere
        together = {pair for group in truth for pair in combinations(group, 2)}
        kept = sum(pair in together for group in found for pair in combinations(group, 2))
        assert kept >= 0.5 * len(together)
    else:
        assert found == truth


def test_scheme_and_layer_have_random_states_of_their_own() -> None:
    seeds = {layer_seed(seed, layer, scheme) for seed in (0, 1) for layer in ("a", "b") for scheme in SCHEMES}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_spectral_embedding_is_defined_where_the_graph_falls_apart() -> None:
    """More parts than components: the joined graph still keeps each tight pair together."""
    rng = np.random.default_rng(0)
    filters = np.repeat(np.eye(12), 6, axis=0) + 0.001 * rng.normal(size=(72, 12))  # 12 parts, 2 components
    neighbours = tmi_clusterings._mutual_neighbours(0.5 + 0.5 * (filters @ filters.T), 5)
    assert connected_components(neighbours, directed=False)[0] >= 12
    embedding = spectral_embedding(filters, 2)
    assert np.isfinite(embedding).all()
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1.0)
    found = cluster_filters("spectral", filters.reshape(72, 12, 1, 1), 2, layer="a", seed=0).clusters
    split = sum(len({any(f in group for f in range(6 * p, 6 * p + 6)) for group in found[:1]}) for p in range(12))
    assert split == 12


def test_joining_adds_the_heaviest_links_only() -> None:
    similarity = np.full((4, 4), 0.1)
    similarity[1, 2] = similarity[2, 1] = 0.4
    edges = np.zeros((4, 4), dtype=bool)
    edges[0, 1] = edges[1, 0] = edges[2, 3] = edges[3, 2] = True
    joined = tmi_clusterings._joined(edges, similarity)
    added = np.argwhere(joined & ~edges).tolist()
    assert added == [[1, 2], [2, 1]]
    assert tmi_clusterings._joined(joined, similarity) is joined


def test_kernel_pca_embedding_reproduces_the_centred_kernel() -> None:
    filters = np.random.default_rng(0).normal(size=(7, 5))
    embedding = tmi_clusterings.kernel_pca_embedding(filters, 6)  # all components: nothing is lost
    squares = ((filters[:, None] - filters) ** 2).sum(axis=-1)
    sigma = np.median(np.sqrt(squares[squares > 0]))
    kernel = 0.5 * (filters @ filters.T) ** 2 + 0.5 * np.exp(-squares / (2 * sigma**2))
    centring = np.eye(7) - 1 / 7
    np.testing.assert_allclose(embedding @ embedding.T, centring @ kernel @ centring, atol=1e-9)


def test_tsne_says_what_it_found_and_when_it_fell_back() -> None:
    found = cluster_filters("tsne", random_weight(32), 4, layer="a", seed=0)
    assert "DBSCAN with eps" in found.remark
    assert not found.is_fallback
    fallback = cluster_filters("tsne", degenerate("identical", 32), 4, layer="a", seed=0)
    assert fallback.is_fallback
    assert "k-means took its place" in fallback.remark


def test_tsne_tries_higher_dimensions_and_falls_back_on_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def sweep(embedding: NDArray[np.float64], groups: int, min_samples: list[int]) -> None:
        tried.append((embedding.shape[1], min_samples))

    monkeypatch.setattr(tmi_clusterings, "_dbscan_sweep", sweep)
    found = cluster_filters("tsne", random_weight(18), 6, layer="a", seed=0)
    assert tried == [(2, [2]), (3, [2]), (4, [2]), (5, [2]), (2, [1])]
    assert found.is_fallback
    assert is_equal_division(found.clusters, 18)
