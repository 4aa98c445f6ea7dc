"""Channels that go from several layers at once, several at a time: against least squares by a solver without inverse."""

from __future__ import annotations

import itertools

import networks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from edgeprune.methods.base import PruneRequest
from edgeprune.methods.gkp_cal.candidates import POWERS, WIDTHS, priced, readers_of, widths_of
from edgeprune.methods.gkp_cal.elimination import Problem, columns_of, eliminate, removals, solved
from edgeprune.methods.shared.units import Unit, units
from edgeprune.tracing.trace import trace

Array = NDArray[np.float64]
SAMPLES = 200


class Reader:
    """A layer that reads `numbers` channels as `size` columns each, in an order of its own beside columns that stay."""

    def __init__(self, rng: np.random.Generator, numbers: int, size: int, others: int = 0, noise: float = 1.0) -> None:
        count = numbers * size + others
        sources = rng.normal(size=(max(2, count // 2), SAMPLES))
        self.u = rng.normal(size=(count, len(sources))) @ sources + noise * rng.normal(size=(count, SAMPLES))
        self.y = rng.normal(size=(4, count)) @ self.u + rng.normal(size=(4, SAMPLES))
        self.columns = rng.permutation(count)[: numbers * size].reshape(numbers, size)
        covariance, cross = self.u @ self.u.T / SAMPLES, self.y @ self.u.T / SAMPLES
        self.weights, self.inverse = solved(covariance, cross, np.zeros_like(cross), 0.0)

    def problem(self) -> Problem:
        return Problem(self.weights, self.inverse, self.columns)

    def least(self, gone: list[int]) -> tuple[Array, float]:
        """Weights, zero where nothing is read, and the summed mean squared error without these numbers."""
        stays = np.setdiff1d(np.arange(len(self.u)), self.columns[gone].ravel())
        full = np.zeros_like(self.weights)
        full[:, stays] = np.linalg.lstsq(self.u[stays].T, self.y.T, rcond=None)[0].T
        return full, float(np.square(self.y - full @ self.u).mean(1).sum())

    def rise(self, gone: list[int]) -> float:
        return self.least(gone)[1] - self.least([])[1]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), step=st.integers(1, 4), last=st.integers(1, 5))
def test_what_goes_from_two_readers_costs_their_joint_error(seed: int, step: int, last: int) -> None:
    rng = np.random.default_rng(seed)
    readers = [Reader(rng, 9, 4, others=3), Reader(rng, 9, 1, others=5)]
    problems, gone, error = [reader.problem() for reader in readers], list[int](), 0.0
    stops = sorted({last, 6}, reverse=True)
    counts = []
    for numbers, rise in removals(problems, 9, stops, step):
        assert len(numbers) <= step
        if len(numbers) == 1:
            alone = [sum(r.rise([*gone, n]) for r in readers) for n in range(9) if n not in gone]
            assert sum(r.rise([*gone, *numbers]) for r in readers) == pytest.approx(min(alone), rel=1e-6)
        gone, error = [*gone, *numbers], error + rise
        counts.append(9 - len(gone))
        assert error == pytest.approx(sum(reader.rise(gone) for reader in readers), rel=1e-6)
        for reader, problem in zip(readers, problems, strict=True):
            expected = reader.least(gone)[0]
            np.testing.assert_allclose(problem.solution(expected.shape[1]), expected, rtol=1e-5, atol=1e-7)
    assert set(stops) <= set(counts), "no step goes past a stop"
    assert counts[-1] == last
    assert len(set(gone)) == len(gone)


@pytest.mark.parametrize("seed", range(4))
def test_several_at_a_time_lose_little_more_than_one_at_a_time(seed: int) -> None:
    """Where channels say much the same, so that one gone makes the other worth more."""
    reader = Reader(np.random.default_rng(seed), 24, 2, noise=0.3)
    reader.columns = columns_of(24, 2)
    single, blocked = (eliminate(reader.weights, reader.inverse, 2, 8, step) for step in (1, 4))
    for found in (single, blocked):
        gone = [n for n in range(24) if n not in found.kept]
        assert found.error == pytest.approx(reader.rise(gone), rel=1e-5)
        weights = reader.least(gone)[0].reshape(4, 24, 2)[:, found.kept]
        np.testing.assert_allclose(found.weights, weights, rtol=1e-4, atol=1e-6)
    assert blocked.error <= single.error * 2  # it may be less: going one at a time is not the best, either


def test_one_at_a_time_is_near_the_best_of_all() -> None:
    reader = Reader(np.random.default_rng(3), 8, 2)
    reader.columns = columns_of(8, 2)
    best = min(reader.rise(list(gone)) for gone in itertools.combinations(range(8), 4))
    assert best <= eliminate(reader.weights, reader.inverse, 2, 4, 1).error * (1 + 1e-9) <= 2 * best


# -- prices ------------------------------------------------------------------------------------------------------------
@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    errors=st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=5, unique=True),
    scale=st.floats(1e-3, 1e3),
    power=st.floats(*POWERS),
)
def test_prices_go_through_the_trials_on_a_power_law(errors: list[float], scale: float, power: float) -> None:
    errors.sort()
    true = [scale * error**power for error in errors]
    found = priced(errors, [(errors[0], true[0]), (errors[-1], true[-1])])
    assert found == pytest.approx(true, rel=1e-4)
    assert priced(errors, [(errors[1], true[1])]) == pytest.approx([true[1] * e / errors[1] for e in errors])


def test_prices_of_trials_that_say_little() -> None:
    assert priced([], []) == []
    assert priced([0.0, 0.0], [(0.0, 0.0)]) == [0.0, 0.0]
    assert priced([1.0, 2.0], [(1.0, 5.0), (2.0, 4.0)]) == pytest.approx([2.0, 4.0])  # falls: taken as proportional
    assert priced([1.0, 2.0], [(1.0, 1e-9), (2.0, 8.0)])[0] == pytest.approx(1.0)  # no steeper than the third power
    assert priced([0.0, 1.0], [(0.0, 0.0), (1.0, 3.0)]) == [0.0, 3.0]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(size=st.integers(2, 130), block=st.sampled_from([1, 2, 4, 8, 16]))
def test_widths_are_multiples_of_the_block(size: int, block: int) -> None:
    unit = Unit((("a", tuple(range(size))),), sets=(("a", tuple(range(size))),))
    found = widths_of(unit, block)
    possible = [count for count in range(block, size, block)]
    assert set(found) <= set(possible)
    assert len(found) == min(WIDTHS, len(possible))
    assert found == sorted(found, reverse=True)
    if possible:
        assert (found[0], found[-1]) == (possible[-1], possible[0]) or len(possible) == 1


# -- who reads a unit --------------------------------------------------------------------------------------------------
def readers(model: nn.Module, number: int) -> dict[str, Array]:
    graph = trace(model.eval(), torch.zeros(1, 3, 16, 16)).graph
    unit = units(graph, PruneRequest(include_first=True), "coupled").units[number]
    return {name: np.asarray(columns) for name, columns in readers_of(unit, graph).items()}


def test_readers_of_a_concatenation_read_a_unit_where_it_stands() -> None:
    found = readers(networks.Concatenating(), 1)  # conv1: channels 16.. of what conv2 and the head read
    assert set(found) == {"conv2", "head"}
    np.testing.assert_array_equal(found["conv2"], 9 * np.arange(16, 24)[:, None] + np.arange(9))
    np.testing.assert_array_equal(found["head"], np.arange(16, 24)[:, None])
    stem = readers(networks.Concatenating(), 0)
    assert set(stem) == {"conv1", "conv2", "head"}


def test_a_linear_layer_reads_a_channel_as_all_its_places() -> None:
    found = readers(networks.Flattening(), 1)
    assert list(found) == ["hidden"]
    np.testing.assert_array_equal(found["hidden"], np.arange(40).reshape(10, 4))


def test_a_unit_that_a_grouped_layer_reads_stays_whole() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 4, 1)).eval(),
                  torch.zeros(1, 3, 4, 4)).graph  # fmt: skip
    found = units(graph, PruneRequest(include_first=True), "coupled").units
    assert found
    assert not readers_of(found[0], graph)
