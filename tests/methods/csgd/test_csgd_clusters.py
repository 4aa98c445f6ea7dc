"""Clusters of filters: the paper's examples, planted clusters, and what follows them in a network."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import Concatenating, Residual
from torch import nn, randn

from edgeprune.errors import InputError
from edgeprune.graph import Graph
from edgeprune.methods.base import PruneRequest
from edgeprune.methods.csgd.clusters import (
    SCHEMES,
    channel_clusters,
    cluster_filters,
    cluster_units,
    clusters_from,
    labels_from,
    pacesetter,
)
from edgeprune.methods.shared.units import Prunable, prunable
from edgeprune.pruning.network import layer_weights
from edgeprune.tracing.trace import trace
from edgeprune.zoo import build


def units_of(model: nn.Module, shape: tuple[int, int, int] = (3, 32, 32)) -> Prunable:
    return prunable(graph_of(model, shape), PruneRequest(include_first=True), "coupled")


def graph_of(model: nn.Module, shape: tuple[int, int, int] = (3, 32, 32)) -> Graph:
    return trace(model.eval(), randn(1, *shape)).graph


def test_even_and_imbalanced_clusters_are_those_of_the_papers_example() -> None:
    filters = np.zeros((6, 9))
    assert cluster_filters(filters, 4, "even", 0) == ((0, 1), (2, 3), (4,), (5,))
    assert cluster_filters(filters, 4, "imbalanced", 0) == ((0, 1, 2), (3,), (4,), (5,))


def test_kmeans_finds_planted_clusters() -> None:
    rng = np.random.default_rng(0)
    centres, member_of = rng.standard_normal((5, 27)), rng.permutation(np.arange(20) % 5)
    filters = centres[member_of] + 0.05 * rng.standard_normal((20, 27))
    found = cluster_filters(filters.astype(np.float32), 5, "kmeans", 0)
    assert found == clusters_from(member_of)


@given(st.data())
def test_any_filters_are_divided_into_as_many_clusters_as_asked_none_empty(data: st.DataObject) -> None:
    values = data.draw(st.lists(st.sampled_from([0.0, 1.0, 1.0 + 1e-12, -3.0]), min_size=1, max_size=12))
    count = data.draw(st.integers(1, len(values)))
    scheme = data.draw(st.sampled_from(SCHEMES))
    clusters = cluster_filters(np.array(values)[:, None], count, scheme, seed=1)
    assert len(clusters) == count
    assert all(clusters)
    assert sorted(place for cluster in clusters for place in cluster) == list(range(len(values)))
    assert list(clusters) == sorted(tuple(sorted(cluster)) for cluster in clusters)
    assert clusters_from(labels_from(clusters)) == clusters


def test_kmeans_puts_equal_filters_together_while_there_are_few_clusters() -> None:
    assert cluster_filters(np.array([[1.0], [2.0], [1.0], [2.0]]), 2, "kmeans", 0) == ((0, 2), (1, 3))


def test_the_same_seed_gives_the_same_clusters() -> None:
    filters = np.random.default_rng(0).standard_normal((48, 60)).astype(np.float32)
    assert cluster_filters(filters, 20, "kmeans", 3) == cluster_filters(filters, 20, "kmeans", 3)


def test_the_pacesetter_is_the_projection_shortcut_or_the_first_layer() -> None:
    graph = graph_of(build("resnet8-b").model)
    units = {unit.name: unit for unit in prunable(graph, PruneRequest(), "coupled").units}
    leaders = {name: pacesetter(unit, graph)[0] for name, unit in units.items()}
    assert leaders["conv1"] == "conv1"
    assert leaders["layer2.0.conv2"] == "layer2.0.shortcut.0"


@pytest.mark.parametrize("arch", ["resnet8", "resnet8-stage"])
def test_channels_are_one_behind_a_zero_padding_only_where_they_are_in_front_of_it(arch: str) -> None:
    model = build(arch).model
    among = units_of(model)
    counts = [unit.size * 5 // 8 for unit in among.units]
    firsts = channel_clusters(among, cluster_units(among, layer_weights(model), counts, "kmeans"))
    assert len(among.graph.paddings) == 2
    for padding in among.graph.paddings:
        source, target = firsts[padding.source], firsts[padding.target]
        # The source's cluster of each channel behind the padding; -1 for a zero.
        read = [-1] * padding.lead + source.tolist() + [-1] * padding.trail
        assert all(read[channel] == read[first] for channel, first in enumerate(target))
        assert len(set(target.tolist())) == among.graph.coupled_set(padding.target).channels * 5 // 8


def test_a_concatenation_has_the_clusters_of_its_parts_at_their_places() -> None:
    model = Concatenating()
    among = units_of(model, (3, 16, 16))
    firsts = channel_clusters(among, cluster_units(among, layer_weights(model), [8, 4, 4], "even"))
    widest = next(c for c in among.graph.coupled_sets if c.channels == 32)
    expected = [i - i % 2 for i in range(32)]
    assert firsts[widest.name].tolist() == expected


def test_filters_that_are_not_finite_are_refused_by_name() -> None:
    model = Residual()
    weights = layer_weights(model)
    among = units_of(model, (3, 16, 16))
    name, _ = pacesetter(among.units[0], among.graph)
    weights[name] = np.full_like(weights[name], np.nan)
    with pytest.raises(InputError, match=f"{name}.*NaN"):
        cluster_units(among, weights, [1] * len(among.units), "kmeans")
