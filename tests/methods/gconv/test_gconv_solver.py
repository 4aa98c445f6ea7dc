"""GConv's solvers against brute force, the paper's heuristic, and what divisions must be."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.checkpoints.checkpoint import read_state_dict
from edgeprune.methods.gconv.divider import Divider, LayerDivision
from edgeprune.methods.gconv.importance import kernel_importance
from edgeprune.methods.gconv.solver import Problem, Solver, kept_importance, solve, sorted_division
from edgeprune.methods.shared.clustering import is_equal_division, to_clusters

DEFAULT, PAPER = Solver(), Solver("paper")


def importance(filters: int, inputs: int, seed: int) -> np.ndarray:
    """Lognormal values: a few kernels matter much, as in trained layers."""
    return np.exp(np.random.default_rng([seed, filters, inputs]).standard_normal((filters, inputs)))


def kept(problem: Problem, groups: int, solver: Solver = DEFAULT) -> float:
    (division,) = solve([problem], groups, solver)
    pairs = zip(problem, division.columns, strict=True)
    return sum(kept_importance(matrix, division.rows, columns) for matrix, columns in pairs)


def equal_divisions(items: int, groups: int) -> Iterator[np.ndarray]:
    """Every way to put items into equal groups, each once for each naming of the groups."""
    for labels in itertools.product(range(groups), repeat=items):
        if all(labels.count(group) == items // groups for group in range(groups)):
            yield np.array(labels)


def optimum(problem: Problem, groups: int) -> float:
    """The best of all divisions of filters and inputs, by trying them."""
    members = [
        np.stack([np.eye(groups)[own] for own in equal_divisions(matrix.shape[1], groups)]) for matrix in problem
    ]
    best = 0.0
    for rows in equal_divisions(len(problem[0]), groups):
        score = [matrix.T @ np.eye(groups)[rows] for matrix in problem]  # (inputs, groups)
        best = max(best, sum((member * own).sum(axis=(1, 2)).max() for member, own in zip(members, score, strict=True)))
    return best


@pytest.mark.parametrize(("filters", "inputs", "groups"), [(4, 6, 2), (8, 8, 2), (6, 6, 3), (6, 3, 3), (8, 4, 4)])
def test_tiny_layers_are_within_half_a_per_cent_of_the_optimum(filters: int, inputs: int, groups: int) -> None:
    for seed in range(8):
        problem = (importance(filters, inputs, seed),)
        best = optimum(problem, groups)
        found = kept(problem, groups)
        assert best * 0.995 <= found <= best * (1 + 1e-12)
        assert kept(problem, groups, PAPER) <= found * (1 + 1e-12)


def test_layers_that_share_their_filters_are_solved_together() -> None:
    for seed in range(6):
        problem = (importance(6, 4, seed), importance(6, 6, seed + 50), 3 * importance(6, 2, seed + 90))
        best = optimum(problem, 2)
        assert best * 0.995 <= kept(problem, 2) <= best * (1 + 1e-12)
        assert kept(problem, 2, PAPER) <= kept(problem, 2) * (1 + 1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.sampled_from([2, 3, 4, 8]),
    st.integers(0, 99), st.sampled_from([Solver(), Solver(effort=2, seed=5), PAPER, Solver("paper", rounds=0)]),
)  # fmt: skip
def test_every_division_is_equal_and_the_same_each_time(
    rows: int, inputs: list[int], groups: int, seed: int, solver: Solver
) -> None:
    problem = tuple(importance(rows * groups, count * groups, seed + number) for number, count in enumerate(inputs))
    (division,) = solve([problem], groups, solver)
    for labels, matrix in zip(division.columns, problem, strict=True):
        assert is_equal_division(to_clusters(labels), matrix.shape[1])
        assert len(set(labels.tolist())) == groups
    assert is_equal_division(to_clusters(division.rows), rows * groups)
    other = (importance(rows * groups, groups, seed + 7),)
    again = solve([other, problem, problem], groups, solver)[1]
    assert (again.rows == division.rows).all()  # whatever is solved beside it
    assert all((a == b).all() for a, b in zip(again.columns, division.columns, strict=True))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(2, 6), st.sampled_from([2, 4]), st.integers(0, 99))
def test_no_swap_of_two_filters_or_two_inputs_gains(rows: int, columns: int, groups: int, seed: int) -> None:
    matrix = importance(rows * groups, columns * groups, seed)
    (division,) = solve([(matrix,)], groups, Solver())
    found = kept_importance(matrix, division.rows, division.columns[0])
    for labels, axis in ((division.rows, 0), (division.columns[0], 1)):
        for a, b in itertools.combinations(range(len(labels)), 2):
            swapped = labels.copy()
            swapped[[a, b]] = labels[[b, a]]
            pair = (swapped, division.columns[0]) if axis == 0 else (division.rows, swapped)
            assert kept_importance(matrix, *pair) <= found * (1 + 1e-9)


@pytest.mark.parametrize("solver", [Solver(), PAPER], ids=["alternating", "paper"])
@pytest.mark.parametrize(("filters", "inputs", "groups"), [(64, 64, 4), (32, 64, 8)])
def test_a_permuted_block_diagonal_is_recovered(solver: Solver, filters: int, inputs: int, groups: int) -> None:
    """The paper's own check of its heuristic (section 3.2)."""
    rng = np.random.default_rng(0)
    blocks = np.kron(np.eye(groups), np.ones((filters // groups, inputs // groups)))
    matrix = (blocks * (0.1 + rng.random(blocks.shape)))[rng.permutation(filters)][:, rng.permutation(inputs)]
    assert kept((matrix,), groups, solver) == pytest.approx(matrix.sum())


@pytest.mark.parametrize(("groups", "gain"), [(2, 1.02), (4, 1.04), (8, 1.06)])
def test_a_trained_network_keeps_more_than_by_sorting(data_dir: Path, groups: int, gain: float) -> None:
    state = read_state_dict(data_dir / "checkpoints" / "resnet20-12fca82f.th")
    weights = [tensor.numpy() for tensor in state.tensors.values() if tensor.dim() == 4 and tensor.shape[1] > 3]
    problems = [(kernel_importance("l2", weight),) for weight in weights]
    alternating, paper = solve(problems, groups, Solver()), solve(problems, groups, PAPER)
    ratios = []
    for (matrix,), better, sorted_ in zip(problems, alternating, paper, strict=True):
        ours = kept_importance(matrix, better.rows, better.columns[0])
        theirs = kept_importance(matrix, sorted_.rows, sorted_.columns[0])
        assert ours >= theirs
        ratios.append(ours / theirs)
    assert np.mean(ratios) > gain


def test_the_papers_heuristic_by_hand() -> None:
    # The inputs are sorted by the last row's sums, then the filters by the last column; the rest is left over.
    matrix = np.array([[1.0, 9.0], [8.0, 2.0]])
    division = sorted_division((matrix,), 2, 1)
    assert kept_importance(matrix, division.rows, division.columns[0]) == 17
    # Without rounds nothing is sorted: the diagonal stays.
    plain = sorted_division((matrix,), 2, 0)
    assert kept_importance(matrix, plain.rows, plain.columns[0]) == 3


def test_equal_importance_is_divided_too() -> None:
    assert kept((np.ones((8, 8)),), 4) == 16
    assert kept((np.zeros((8, 8)),), 4) == 0


def test_importance_is_a_kernels_norm_or_what_it_does_to_the_loss() -> None:
    weight, gradient = np.random.default_rng(0).standard_normal((2, 4, 3, 2, 2)).astype(np.float32)
    for kind, expected in {
        "l2": lambda w, g: float(np.sqrt((w.astype(np.float64) ** 2).sum())),
        "l1": lambda w, g: float(np.abs(w.astype(np.float64)).sum()),
        "taylor": lambda w, g: float(np.abs(w.astype(np.float64) * g).sum()),
    }.items():
        found = kernel_importance(kind, weight, gradient)  # type: ignore[arg-type]
        assert found.shape == (4, 3)
        assert found[2, 1] == pytest.approx(expected(weight[2, 1], gradient[2, 1]))


def test_a_layer_that_joins_takes_over_the_filters_and_who_is_held_keeps_all() -> None:
    matrices = {"a": importance(8, 8, 1), "b": importance(8, 8, 2), "c": importance(8, 8, 3)}
    divider = Divider(matrices, {"a": "stream", "b": "stream", "c": "other"}, Solver())
    held = {"a": LayerDivision(2, np.repeat([0, 1], 4), np.tile([0, 1], 4))}
    found = divider.divide({"a": 2, "b": 2, "c": 2}, held)
    assert found["a"] is held["a"]
    assert (found["b"].rows == held["a"].rows).all()
    assert (divider.divide({"a": 4, "b": 2, "c": 2}, held)["c"].rows == found["c"].rows).all()
    together = divider.divide({"a": 2, "b": 2})
    assert (together["a"].rows == together["b"].rows).all()
