"""Which grouped kernels go, and what the others become: backward elimination in a least-squares problem.

A layer's filters shall give what the dense ones gave: the least mean of |y - W u|^2 over the columns u of its input, of
which H = E[u u^T] and B = E[y u^T] tell all that counts. With every input channel it is W = B H^-1. Without channel c
(k k columns) the least error rises by W[:, c] P_c^-1 W[:, c]^T with P_c = (H^-1)[c, c], and the best weights of what is
left follow by a block of the inverse (optimal brain surgeon, Hassibi and Stork 1993, for blocks):

    W    <- W    - W[:, c]    P_c^-1 (H^-1)[c, :]
    H^-1 <- H^-1 - (H^-1)[:, c] P_c^-1 (H^-1)[c, :]

Both are exact, so that after any number of steps W is the least-squares solution on the channels that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Elimination:
    """What is left of one group."""

    kept: tuple[int, ...]
    """Its input channels, ascending."""
    weights: Matrix
    """(filters, kept, k * k)."""
    error: float
    """By how much the summed squared error of its filters rose."""


def solved(covariance: Matrix, cross: Matrix, weights: Matrix, added: float) -> tuple[Matrix, Matrix]:
    """The W of shape (filters, columns) with the least error, and the inverse of the H that it is the solution for.

    `covariance`: H (columns, columns); `cross`: B (filters, columns); `weights`: the dense layer's (filters, columns),
    from which W may only go as far as the images tell: `added` * |W - weights|^2 is added to the error. So
    H + added * I takes H's place, for all steps of an elimination, too.
    """
    inverse = np.linalg.inv(covariance + added * np.eye(len(covariance)))
    inverse = (inverse + inverse.T) / 2
    return (cross + added * weights) @ inverse, inverse


def blocks_of(inverse: Matrix, size: int) -> Matrix:
    """(channels, size, size) the blocks on the diagonal."""
    channels = len(inverse) // size
    return np.ascontiguousarray(np.einsum("cicj->cij", inverse.reshape(channels, size, channels, size)))


def saliency(weights: Matrix, inverse: Matrix, size: int) -> Matrix:
    """(filters, channels) by how much each filter's squared error rises if it alone loses this kernel."""
    kernels = weights.reshape(len(weights), -1, size)  # (filters, channels, size)
    prices = np.linalg.inv(blocks_of(inverse, size))
    found: Matrix = np.einsum("fci,cij,fcj->fc", kernels, prices, kernels, optimize=True)
    return np.maximum(found, 0)  # rounding may leave it below


def eliminate(weights: Matrix, inverse: Matrix, size: int, keep: int) -> Elimination:
    """Remove input channels one by one, always the one whose loss raises the error least, until `keep` are left.

    `weights`: (filters, channels * size), the least-squares solution with all channels, filters weighted as their
    errors count; `inverse`: H^-1.
    """
    weights, inverse = weights.copy(), inverse.copy()
    left, error = list(range(weights.shape[1] // size)), 0.0
    while len(left) > keep:
        kernels = weights.reshape(len(weights), -1, size)
        prices = np.linalg.inv(blocks_of(inverse, size))
        rises = np.einsum("fci,cij,fcj->c", kernels, prices, kernels, optimize=True)
        place = int(np.argmin(rises))
        error += float(rises[place])
        columns = slice(place * size, (place + 1) * size)
        scaled = prices[place] @ inverse[columns]  # (size, columns)
        weights -= weights[:, columns] @ scaled
        inverse -= inverse[:, columns] @ scaled
        others = np.delete(np.arange(weights.shape[1]), np.arange(columns.start, columns.stop))
        weights, inverse = weights[:, others], inverse[np.ix_(others, others)]
        left.pop(place)
    return Elimination(tuple(left), weights.reshape(len(weights), keep, size), error)


def errors_without(weights: Matrix, inverse: Matrix, size: int, gone: Sequence[int]) -> Matrix:
    """(filters,) by how much each filter's least squared error rises without these input channels, exactly."""
    columns = (np.asarray(gone, dtype=np.int64)[:, None] * size + np.arange(size)).ravel()
    taken = weights[:, columns]  # (filters, gone * size)
    factor = np.linalg.cholesky(inverse[np.ix_(columns, columns)])
    rows = np.linalg.solve(factor, taken.T)  # (gone * size, filters)
    rises: Matrix = np.asarray(np.square(rows).sum(0), dtype=np.float64)
    return rises
