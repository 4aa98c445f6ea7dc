"""Algorithm 1 and equation (3.5): against plain loops, against brute force, and where kernels are degenerate."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import edgeprune.methods.tmi_gkp.grouped_kernels as grouped_kernels
from edgeprune.methods.shared.groupings import kept_count
from edgeprune.methods.tmi_gkp.grouped_kernels import (
    Selection35,
    best_set,
    greedy_sets,
    improved_by_swaps,
    inner_sums,
    kernel_distances,
    outer_sum,
    select_grouped_kernels,
    selection_for,
)

Distances = NDArray[np.float64]


def integer_distances(seed: int, nodes: int, greatest: int) -> Distances:
    """A symmetric matrix of small integers: sums are exact in float32, and ties abound."""
    upper = np.triu(np.random.default_rng(seed).integers(0, greatest + 1, (nodes, nodes)), k=1).astype(np.float64)
    upper[0, 1] = greatest  # a power of two, so that scaling by it is exact
    return upper + upper.T


def plain_algorithm_1(distances: Distances, keep: int) -> list[tuple[int, ...]]:
    """The paper's pseudocode: one restart after the other, equal sets once, in the order in which they first appear."""
    found: dict[tuple[int, ...], None] = {}
    for start in range(len(distances)):
        kept = [start]
        while len(kept) < keep:
            sums = {node: distances[kept, node].sum() for node in range(len(distances)) if node not in kept}
            kept.append(max(sums, key=lambda node: (sums[node], -node)))
        found[tuple(sorted(kept))] = None
    return list(found)


def plain_score(distances: Distances, kept: tuple[int, ...], gamma: int, beta: float) -> float:
    inner = sum(distances[u, v] for u, v in itertools.combinations(kept, 2))
    pruned = [node for node in range(len(distances)) if node not in kept]
    outer = sum(sum(sorted(distances[p, list(kept)])[:gamma]) for p in pruned)
    return float(inner - beta * outer)


def as_sets(masks: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    return [tuple(np.flatnonzero(mask).tolist()) for mask in masks]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 24), st.sampled_from([1, 4, 64]), st.data())
def test_restarts_grown_together_equal_the_pseudocode(
    seed: int, nodes: int, greatest: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, nodes - 1))
    distances = integer_distances(seed, nodes, greatest)
    assert as_sets(greedy_sets(distances, keep)) == plain_algorithm_1(distances, keep)


def test_sets_do_not_depend_on_block_size_or_merging(monkeypatch: pytest.MonkeyPatch) -> None:
    distances = integer_distances(7, 90, 64)
    expected = as_sets(greedy_sets(distances, 50))
    monkeypatch.setattr(grouped_kernels, "BLOCK_BYTES", 4 * 90 * 7)
    monkeypatch.setattr(grouped_kernels, "ROUNDS", 1)
    assert as_sets(greedy_sets(distances, 50)) == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 16), st.floats(0.0, 4.0), st.data())
def test_best_set_is_the_best_of_all_scores(seed: int, nodes: int, beta: float, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, nodes - 1))
    gamma = data.draw(st.integers(1, keep))
    distances = kernel_distances(np.random.default_rng(seed).normal(size=(nodes, 4)))
    sets = greedy_sets(distances, keep)
    scores = [plain_score(distances, kept, gamma, beta) for kept in as_sets(sets)]
    best = best_set(distances, sets, inner_sums(distances, sets), Selection35(keep, gamma, beta))
    assert scores[best] == pytest.approx(max(scores), rel=1e-9, abs=1e-9)


def test_terms_of_the_score_equal_plain_sums() -> None:
    distances = kernel_distances(np.random.default_rng(1).normal(size=(9, 5)))
    kept = (0, 2, 3, 7)
    mask = np.isin(np.arange(9), kept)
    inner, outer = float(inner_sums(distances, mask[None])[0]), outer_sum(distances, mask, 2)
    assert inner == pytest.approx(plain_score(distances, kept, 2, 0.0))
    assert inner - 1.5 * outer == pytest.approx(plain_score(distances, kept, 2, 1.5))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(4, 11), st.sampled_from([2, 3, 9, 18]), st.data())
def test_without_the_second_term_the_choice_is_within_half_a_per_cent_of_the_optimum(
    seed: int, channels: int, values: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(2, channels - 1))
    rng = np.random.default_rng(seed)
    kernels = rng.normal(size=(channels, values)) * rng.lognormal(0.0, 0.5, size=(channels, 1))
    distances = kernel_distances(kernels)
    chosen = select_grouped_kernels(kernels, selection_for(channels, keep, 0.2, 0.0))
    optimum = max(plain_score(distances, kept, 1, 0.0) for kept in itertools.combinations(range(channels), keep))
    assert plain_score(distances, chosen, 1, 0.0) >= 0.995 * optimum


def test_swaps_only_ever_raise_the_inner_sum() -> None:
    distances = kernel_distances(np.random.default_rng(2).normal(size=(12, 2)))
    kept = np.arange(12) < 5
    swapped = improved_by_swaps(distances, kept)
    assert swapped.sum() == 5
    assert inner_sums(distances, swapped[None])[0] > inner_sums(distances, kept[None])[0]
    assert np.array_equal(improved_by_swaps(distances, swapped), swapped)


def test_a_kernel_that_stands_alone_is_kept_and_copies_go() -> None:
    kernels = np.zeros((6, 4))
    kernels[4], kernels[1] = 5.0, -5.0
    assert {1, 4} <= set(select_grouped_kernels(kernels, selection_for(6, 3, 0.2, "auto")))


def test_large_beta_prefers_kept_kernels_near_the_pruned_ones() -> None:
    kernels = np.array([[0.0], [0.1], [10.0], [10.1], [30.0]])
    assert select_grouped_kernels(kernels, Selection35(keep=2, gamma=1, beta=0.0)) == (0, 4)
    near = select_grouped_kernels(kernels, Selection35(keep=2, gamma=1, beta=50.0))
    assert near != (0, 4)
    assert len(near) == 2


@pytest.mark.parametrize("beta", [0.0, 1.0, "auto"])
@pytest.mark.parametrize("kernels", [np.zeros((8, 3)), np.ones((8, 3)), np.full((8, 3), 1e-30), np.full((8, 3), 1e30)])
def test_equal_kernels_keep_the_lowest_channels(kernels: Distances, beta: float) -> None:
    assert select_grouped_kernels(kernels, selection_for(8, 4, 0.2, beta)) == (0, 1, 2, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", [1, 15])
def test_the_smallest_and_the_largest_share_work(keep: int) -> None:
    kernels = np.random.default_rng(0).normal(size=(16, 9)).astype(np.float32)
    chosen = select_grouped_kernels(kernels, selection_for(16, keep, 0.2, "auto"))
    assert len(set(chosen)) == keep
    assert list(chosen) == sorted(chosen)


def test_distances_are_symmetric_and_zero_for_equal_rows() -> None:
    kernels = np.random.default_rng(0).normal(size=(70, 9)).astype(np.float32)
    kernels[65] = kernels[3]
    distances = kernel_distances(kernels)
    assert np.array_equal(distances, distances.T)
    assert distances[65, 3] == 0.0
    assert np.count_nonzero(distances == 0.0) == 70 + 2
    np.testing.assert_allclose(distances[0, 1], np.linalg.norm(kernels[0].astype(float) - kernels[1]), rtol=1e-12)


@pytest.mark.parametrize(
    ("channels", "rate", "kept"),
    [(16, 0.4375, 9), (64, 0.4375, 36), (5, 0.5, 3), (5, 0.9, 1), (3, 0.9, 0), (25, 0.9, 3)],
)
def test_kept_count_rounds_half_up(channels: int, rate: float, kept: int) -> None:
    assert kept_count(channels, rate) == kept


def test_gamma_and_automatic_beta_follow_the_paper() -> None:
    assert selection_for(64, 36, 0.2, "auto") == Selection35(36, 13, math.comb(36, 2) / (28 * 13))
    assert selection_for(3, 2, 0.1, 1.0) == Selection35(2, 1, 1.0)  # gamma is at least 1
    assert selection_for(16, 2, 1.0, 0.0).gamma == 2  # and at most the number kept
