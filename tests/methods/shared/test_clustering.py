"""Clusters of equal size: always equal, and really the cheapest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from edgeprune.methods.shared.clustering import (
    PRICED_ITEMS,
    balanced_assignment,
    balanced_kmeans,
    is_equal_division,
    to_clusters,
)

SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 3)).filter(lambda shape: shape[0] * shape[1] <= 8)
COSTS = st.floats(-1e3, 1e3, allow_nan=False, width=32) | st.sampled_from([0.0, 1.0])


@st.composite
def cost_matrices(draw: st.DrawFn) -> NDArray[np.float64]:
    groups, size = draw(SHAPES)
    values = draw(st.lists(COSTS, min_size=groups * groups * size, max_size=groups * groups * size))
    return np.array(values).reshape(groups * size, groups)


@settings(max_examples=60, deadline=None)
@given(cost_matrices())
def test_assignment_is_equal_sized_and_no_division_is_cheaper(cost: NDArray[np.float64]) -> None:
    items, groups = cost.shape
    labels = balanced_assignment(cost)
    assert np.bincount(labels, minlength=groups).tolist() == [items // groups] * groups
    cheapest = (
        min(
            sum(cost[item, group] for item, group in enumerate(division))
            for division in set(itertools.permutations(np.repeat(np.arange(groups), items // groups).tolist()))
        )
        if items <= 6
        else -np.inf
    )
    assert cost[np.arange(items), labels].sum() <= cheapest + 1e-6 or items > 6


@pytest.mark.parametrize("groups", [2, 4, 8])
@pytest.mark.parametrize("kind", ["normal", "one group is best for all", "ties"])
def test_prices_do_not_change_what_is_cheapest(groups: int, kind: str) -> None:
    rng = np.random.default_rng(groups)
    items = max(PRICED_ITEMS, 64 * groups)
    cost = rng.integers(0, 3, (items, groups)).astype(float) if kind == "ties" else rng.normal(size=(items, groups))
    if kind.startswith("one"):
        cost[:, 0] -= 100
    labels = balanced_assignment(cost)
    assert np.bincount(labels, minlength=groups).tolist() == [items // groups] * groups
    rows, places = linear_sum_assignment(np.repeat(cost, items // groups, axis=1))
    cheapest = places[np.argsort(rows)] // (items // groups)
    chosen = np.arange(items)
    assert cost[chosen, labels].sum() == pytest.approx(cost[chosen, cheapest].sum(), rel=1e-12)
    if kind == "normal":  # then there is one cheapest division alone
        assert labels.tolist() == cheapest.tolist()


def test_assignment_needs_a_multiple_of_the_groups() -> None:
    with pytest.raises(ValueError, match="7 items cannot be divided into 2 groups"):
        balanced_assignment(np.zeros((7, 2)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 5), st.integers(1, 6), st.sampled_from([0.0, 1e-12, 1.0, 1e9]))
def test_kmeans_gives_equal_sizes_and_never_loses_to_its_start(seed: int, groups: int, size: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    points = scale * rng.normal(size=(groups * size, 3))
    start = points[rng.choice(len(points), groups, replace=False)]
    labels = balanced_kmeans(points, start)
    assert is_equal_division(to_clusters(labels), len(points))
    first = balanced_assignment(((points[:, None] - start) ** 2).sum(axis=2))
    assert _spread(points, labels) <= _spread(points, first) + 1e-9 * scale**2


def _spread(points: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    return sum(float(((points[labels == g] - points[labels == g].mean(axis=0)) ** 2).sum()) for g in np.unique(labels))


def test_kmeans_finds_clusters_that_are_far_apart() -> None:
    rng = np.random.default_rng(3)
    truth = np.array([0, 1, 2, 3] * 5)
    points = 100.0 * np.eye(4)[truth] + rng.normal(size=(20, 4))
    labels = balanced_kmeans(points, points[[0, 1, 2, 3]] + 5.0)
    assert to_clusters(labels) == to_clusters(truth)


def test_kmeans_result_is_a_fixed_point() -> None:
    points = np.random.default_rng(5).normal(size=(24, 2))
    labels = balanced_kmeans(points, points[:4])
    means = np.stack([points[labels == group].mean(axis=0) for group in range(4)])
    assert to_clusters(balanced_kmeans(points, means)) == to_clusters(labels)


def test_clusters_are_ordered_by_their_smallest_item() -> None:
    assert to_clusters(np.array([2, 0, 2, 1, 0, 1])) == ((0, 2), (1, 4), (3, 5))


@pytest.mark.parametrize(
    ("clusters", "items", "is_division"),
    [
        (((0, 1), (2, 3)), 4, True),
        (((0, 1), (2,)), 3, False),
        (((0, 1), (1, 2)), 4, False),
        (((0, 1), (2, 3)), 5, False),
        ((), 0, False),
    ],
)
def test_equal_divisions_are_told_from_others(
    clusters: tuple[tuple[int, ...], ...], items: int, is_division: bool
) -> None:
    assert is_equal_division(clusters, items) == is_division
