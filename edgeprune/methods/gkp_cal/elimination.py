"""Which input channels go, and what the others' weights become: backward elimination in a least-squares problem.

A layer's filters shall give what the dense ones gave: the least mean of |y - W u|^2 over the columns u of its input, of
which H = E[u u^T] and B = E[y u^T] tell all that counts. With every input channel it is W = B H^-1. Without the columns
c of one channel (k k of them), or of several, the least error rises by W[:, c] P_c^-1 W[:, c]^T with
P_c = (H^-1)[c, c], and the best weights of what is left follow by a block of the inverse (optimal brain surgeon,
Hassibi and Stork 1993, for blocks):

    W    <- W    - W[:, c]    P_c^-1 (H^-1)[c, :]
    H^-1 <- H^-1 - (H^-1)[:, c] P_c^-1 (H^-1)[c, :]

Both are exact, so that after any number of steps W is the least-squares solution on the channels that are left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dgemm

Matrix = NDArray[np.float64]
Columns = NDArray[np.int64]
"""(numbers, width) the columns of each number that can go: of a channel, or of several that go together."""
ONE_BY_ONE = 1024
"""Below twice so many columns channels go one at a time. Of more, `at_once` go, those that alone would cost least:
which ones is then approximate, what it costs and the weights that are left stay exact."""


THROWN_OUT = 0.125
"""Share of the columns from which on those that are gone are thrown out."""


@dataclass(frozen=True)
class Elimination:
    """What is left of one group."""

    kept: tuple[int, ...]
    """Its input channels, ascending."""
    weights: Matrix
    """(filters, kept, k * k)."""
    error: float
    """By how much the summed squared error of its filters rose."""


class Problem:
    """The least-squares problem of one layer, on the columns that are left."""

    def __init__(self, weights: Matrix, inverse: Matrix, columns: Columns) -> None:
        """`weights`: (filters, all columns), the solution with all of them, filters weighted as their errors count;
        `inverse`: H^-1; both are copied."""
        self._weights, self._inverse = weights.copy(), inverse.copy(order="F")
        self._places = columns.copy()
        """Columns of each number among those that are held; -1 where it is gone."""
        self._held = np.arange(weights.shape[1])
        self._gone = np.zeros(weights.shape[1], dtype=bool)
        """Which of the columns held are gone: they are thrown out a few at a time."""

    def rises(self, numbers: Columns) -> Matrix:
        """(numbers,) by how much the summed squared error rises if this one alone goes."""
        places = self._places[numbers]
        kernels = self._weights[:, places].transpose(1, 0, 2)  # (numbers, filters, width)
        blocks = self._inverse[places[:, :, None], places[:, None, :]]  # (numbers, width, width)
        found: Matrix = (kernels.transpose(0, 2, 1) * np.linalg.solve(blocks, kernels.transpose(0, 2, 1))).sum((1, 2))
        return found

    def remove(self, numbers: Columns) -> float:
        """Without these numbers; by how much the error rises."""
        gone = self._places[numbers].ravel()
        taken, rows = self._weights[:, gone], self._inverse[gone]
        both = np.linalg.solve(rows[:, gone], np.concatenate([rows, taken.T], axis=1))
        scaled, solved_for = both[:, : rows.shape[1]], both[:, rows.shape[1] :]
        self._weights -= taken @ scaled
        # In place: a product and a difference of this size cost several times as much.
        self._inverse = dgemm(-1.0, rows, scaled, beta=1.0, c=self._inverse, trans_a=True, overwrite_c=True)
        self._places[numbers] = -1
        self._gone[gone] = True
        if self._gone.mean() > THROWN_OUT:
            self._throw_out()
        return float((taken.T * solved_for).sum())

    def _throw_out(self) -> None:
        stays = np.flatnonzero(~self._gone)
        moved = np.full(len(self._gone), -1)
        moved[stays] = np.arange(len(stays))
        self._places = np.where(self._places >= 0, moved[self._places], -1)
        self._weights = self._weights[:, stays]
        self._inverse = np.asfortranarray(self._inverse[np.ix_(stays, stays)])
        self._held, self._gone = self._held[stays], np.zeros(len(stays), dtype=bool)

    def solution(self, columns: int) -> Matrix:
        """(filters, all columns) with zeros where a column is gone."""
        full = np.zeros((len(self._weights), columns))
        full[:, self._held] = np.where(self._gone, 0.0, self._weights)
        return full


def removals(
    problems: Sequence[Problem], numbers: int, stops: Sequence[int], step: int
) -> Iterator[tuple[list[int], float]]:
    """Remove numbers from all problems together, `step` at a time, always those whose loss raises the error least.

    Yields which numbers went and the error's rise by it, until the last of `stops`, falling, are left; no step goes
    past one of them.
    """
    left = np.arange(numbers)
    while next_stop := max((stop for stop in stops if stop < len(left)), default=0):
        rises = np.sum([problem.rises(left) for problem in problems], axis=0)
        places = np.argsort(rises, kind="stable")[: min(step, len(left) - next_stop)]
        gone = np.sort(left[places])
        yield gone.tolist(), sum(problem.remove(gone) for problem in problems)
        left = np.delete(left, places)


def at_once(columns: int) -> int:
    """How many channels go at a time in a problem of so many columns."""
    thousands = columns // ONE_BY_ONE
    return 2 * thousands**2 if thousands > 1 else 1


def solved(covariance: Matrix, cross: Matrix, weights: Matrix, added: float) -> tuple[Matrix, Matrix]:
    """The W of shape (filters, columns) with the least error, and the inverse of the H that it is the solution for.

    `covariance`: H (columns, columns); `cross`: B (filters, columns); `weights`: the dense layer's (filters, columns),
    from which W may only go as far as the images tell: `added` * |W - weights|^2 is added to the error. So
    H + added * I takes H's place, for all steps of an elimination, too.
    """
    inverse = np.linalg.inv(covariance + added * np.eye(len(covariance)))
    inverse = (inverse + inverse.T) / 2
    return (cross + added * weights) @ inverse, inverse


def columns_of(channels: int, size: int) -> Columns:
    """(channels, size) of each channel of a layer."""
    return np.arange(channels * size).reshape(channels, size)


def saliency(weights: Matrix, inverse: Matrix, size: int) -> Matrix:
    """(filters, channels) by how much each filter's squared error rises if it alone loses this kernel."""
    places = columns_of(weights.shape[1] // size, size)
    blocks = inverse[places[:, :, None], places[:, None, :]]  # (channels, size, size)
    kernels = weights[:, places].transpose(1, 0, 2)  # (channels, filters, size)
    found: Matrix = np.einsum("cfi,cif->fc", kernels, np.linalg.solve(blocks, kernels.transpose(0, 2, 1)))
    return np.maximum(found, 0)  # rounding may leave it below


def eliminate(weights: Matrix, inverse: Matrix, size: int, keep: int, step: int = 0) -> Elimination:
    """Remove input channels, always those whose loss raises the error least, until `keep` are left.

    `weights`: (filters, channels * size), the least-squares solution with all channels, filters weighted as their
    errors count; `inverse`: H^-1; `step`: how many go at a time, by default `at_once`.
    """
    channels = weights.shape[1] // size
    problem, left, error = Problem(weights, inverse, columns_of(channels, size)), set(range(channels)), 0.0
    for gone, rise in removals([problem], channels, (keep,), step or at_once(weights.shape[1])):
        left -= set(gone)
        error += rise
    kept = tuple(sorted(left))
    full = problem.solution(weights.shape[1]).reshape(len(weights), channels, size)
    return Elimination(kept, full[:, kept], error)


def without(weights: Matrix, inverse: Matrix, size: int, gone: Sequence[int]) -> tuple[Matrix, Matrix, float]:
    """The solution and the inverse on the columns of the other channels, and by how much the summed squared error
    rises, exactly, if these channels go."""
    columns = columns_of(weights.shape[1] // size, size)
    leaves = columns[np.asarray(gone, dtype=np.int64)].ravel()
    stays = np.delete(columns, np.asarray(gone, dtype=np.int64), axis=0).ravel()
    taken, rows = weights[:, leaves], inverse[leaves]
    both = np.linalg.solve(rows[:, leaves], np.concatenate([rows[:, stays], taken.T], axis=1))
    scaled, solved_for = both[:, : len(stays)], both[:, len(stays) :]
    left = inverse[np.ix_(stays, stays)] - rows[:, stays].T @ scaled
    return weights[:, stays] - taken @ scaled, (left + left.T) / 2, float((taken.T * solved_for).sum())


def errors_without(weights: Matrix, inverse: Matrix, size: int, gone: Sequence[int]) -> Matrix:
    """(filters,) by how much each filter's least squared error rises without these input channels, exactly."""
    columns = columns_of(weights.shape[1] // size, size)[np.asarray(gone, dtype=np.int64)].ravel()
    taken = weights[:, columns]  # (filters, gone * size)
    factor = np.linalg.cholesky(inverse[np.ix_(columns, columns)])
    rows = np.linalg.solve(factor, taken.T)  # (gone * size, filters)
    rises: Matrix = np.asarray(np.square(rows).sum(0), dtype=np.float64)
    return rises
