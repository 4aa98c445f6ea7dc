"""Dividing the filters and input channels of layers into groups so that the blocks hold most importance: GConv's (6).

A problem is one layer's importance matrix (filters, inputs), or those of several layers that share their filters'
division. Wanted are equal groups of filters and, for each layer, equal groups of input channels, with

    sum over layers and groups of the importance of (filters of the group) x (inputs of the group)

as great as can be.

For a given division of the filters the best division of each layer's inputs is an assignment problem, solved exactly
by `balanced_assignment`, and the other way round. To alternate between the two ends where neither side can gain, and so
no swap of two filters or of two inputs gains either; how good that end is depends on the start. `alternating` starts
from annealed divisions: filters and inputs belong to groups by shares that answer each other as

    P <- balanced(exp(t Z Q)),   Q <- balanced(exp(t Z' P)),        Z the importance with row and column means removed,

(removing them changes every division's sum by the same constant) while t rises from where the uniform shares become
unstable until each share is near 0 or 1. `balanced` scales shares to 1 a filter and C / G a group (Sinkhorn). One
annealed start finds about what eight random ones find. Problems of one shape are annealed together. A small layer
goes on from its best end: two filters are swapped, with the inputs of both groups divided anew, until no swap gains. A
tiny one does so from every end, and has random starts beside the annealed ones.

`paper` is the heuristic of the paper (section 3.2): from the last block to the first, N_S rounds sort the inputs, then
the filters, ascending, by their sums (7) over the block; what a finished block holds is frozen. The paper counts its
sums in iterations where they must be of the block at work, and leaves open the order of equal sums: here they keep
theirs. Where layers share filters, which it does not treat, filters are sorted by the sum over the layers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeprune.methods.shared.clustering import Labels, balanced_assignment

Matrix = NDArray[np.float64]
"""(filters, inputs), not negative: how important each kernel is."""
Problem = tuple[Matrix, ...]
"""The matrices of the layers that share their filters' division."""

TEMPERATURES = np.geomspace(0.8, 3.0, 10)
"""Values of t, in units of the one at which random importance leaves the uniform shares."""
SCALINGS = 2  # how often shares are scaled towards their sums
NOISE = 1.0  # of the first shares, in units of 1 / groups
MOST_STARTS = 16
TINY, SMALL = 128, 256  # kernels at most, times the effort
STARTS_AT = 192  # times the groups: kernels for which there is one start
BATCH = 1 << 22  # importance values that are annealed together at most


@dataclass(frozen=True)
class Solver:
    """How to solve."""

    kind: Literal["alternating", "paper"] = "alternating"
    seed: int = 0
    effort: int = 1
    """Multiplies the starts of `alternating` (one for a layer of 192 * groups kernels or more, up to 16 for less), and
    the kernels of a layer that counts as small."""
    rounds: int = 10
    """N_S, the sorting rounds of `paper`."""


@dataclass(frozen=True)
class Division:
    """A problem's solution."""

    rows: Labels
    """(filters,) each filter's group."""
    columns: tuple[Labels, ...]
    """For each layer (inputs,), each input's group."""


def solve(problems: Sequence[Problem], groups: int, solver: Solver) -> list[Division]:
    """A division of every problem into `groups`, which must divide all its channel counts.

    A problem's division depends on it alone, not on those that are solved with it.
    """
    if solver.kind == "paper":
        return [sorted_division(problem, groups, solver.rounds) for problem in problems]
    by_shape: dict[tuple[tuple[int, ...], ...], list[int]] = defaultdict(list)
    for number, problem in enumerate(problems):
        by_shape[tuple(matrix.shape for matrix in problem)].append(number)
    solved: dict[int, Division] = {}
    for shapes, numbers in by_shape.items():
        size = sum(rows * columns for rows, columns in shapes)
        starts = int(np.clip(STARTS_AT * groups * solver.effort // size, 1, MOST_STARTS * solver.effort))
        together = max(1, BATCH // size)
        for first in range(0, len(numbers), together):
            chosen = numbers[first : first + together]
            shares = _annealed([problems[number] for number in chosen], groups, starts, solver.seed)
            for number, share in zip(chosen, shares, strict=True):
                solved[number] = _best(problems[number], groups, share, solver)
    return [solved[number] for number in range(len(problems))]


def kept_importance(matrix: Matrix, rows: Labels, columns: Labels) -> float:
    """The importance of the kernels whose filter and input are in one group."""
    return float(matrix[rows[:, None] == columns[None, :]].sum())


def best_columns(matrix: Matrix, rows: Labels, groups: int) -> Labels:
    """The best division of a layer's inputs for a given division of its filters, exactly."""
    return balanced_assignment(-(matrix.T @ np.eye(groups)[rows]))


End = tuple[float, Division]
"""A division at which alternating ends, with the importance that it keeps in front."""


def settled(problem: Problem, groups: int, rows: Labels) -> End:
    """Alternate exact assignments from a division of the filters until nothing gains."""
    member, filters = np.eye(groups), np.arange(len(rows))
    while True:
        columns = tuple(best_columns(matrix, rows, groups) for matrix in problem)
        score = np.add.reduce([matrix @ member[own] for matrix, own in zip(problem, columns, strict=True)])
        improved = balanced_assignment(-score)
        kept, possible = score[filters, rows].sum(), score[filters, improved].sum()
        if not possible > kept * (1 + 1e-12):  # equal optima: the one that we hold stays
            return float(kept), Division(rows, columns)
        rows = improved


def sorted_division(problem: Problem, groups: int, rounds: int) -> Division:
    """The paper's heuristic: block by block from the last, inputs and filters sorted in turn, `rounds` times each."""
    filters, inputs = len(problem[0]), [matrix.shape[1] for matrix in problem]
    row_order = np.arange(filters)
    column_orders = [np.arange(count) for count in inputs]
    blocks = [matrix.copy() for matrix in problem]  # in the current orders
    for group in range(groups, 0, -1):
        rows_end, rows_start = filters * group // groups, filters * (group - 1) // groups
        for _ in range(rounds):
            by_filter = np.zeros(rows_end)
            for number, count in enumerate(inputs):
                end, start = count * group // groups, count * (group - 1) // groups
                block = blocks[number]
                order = np.argsort(block[rows_start:rows_end, :end].sum(axis=0), kind="stable")  # sigma_c of (7)
                column_orders[number][:end] = column_orders[number][order]
                block[:, :end] = block[:, order]
                by_filter += block[:rows_end, start:end].sum(axis=1)  # sigma_f of (7)
            order = np.argsort(by_filter, kind="stable")
            row_order[:rows_end] = row_order[order]
            for block in blocks:
                block[:rows_end] = block[order]
    return Division(_labels(row_order, groups), tuple(_labels(order, groups) for order in column_orders))


def _labels(order: NDArray[np.int64], groups: int) -> Labels:
    """Item -> group, where the order holds group after group."""
    labels = np.empty(len(order), dtype=np.int64)
    labels[order] = np.repeat(np.arange(groups), len(order) // groups)
    return labels


def swapped(problem: Problem, groups: int, end: End) -> End:
    """Swap two filters of two groups, and settle, for as long as that gains.

    In a pair of groups, the best division of the inputs that both have, c each, is by rank of D, what an input has in
    the first group less what it has in the second: the upper half goes to the first. The pair then keeps half of
    (all + sum of the upper half of D - sum of the lower half). Swapping filters i and j changes D by 2 (W[j] - W[i]).
    """
    first, second = np.triu_indices(groups, 1)  # (pairs,)
    while True:
        kept, division = end
        rows = _members(division.rows, groups)  # (groups, r)
        gain = np.zeros((len(first), rows.shape[1], rows.shape[1]))
        for matrix, own in zip(problem, division.columns, strict=True):
            columns = _members(own, groups)  # (groups, c)
            both = np.concatenate([columns[first], columns[second]], axis=1)  # (pairs, 2c)
            score = matrix.T @ np.eye(groups)[division.rows]
            difference = score[both, first[:, None]] - score[both, second[:, None]]
            there, here = (matrix[rows[side][:, :, None], both[:, None, :]] for side in (second, first))
            moved = difference[:, None, None] + 2 * (there[:, None, :] - here[:, :, None])  # (pairs, r, r, 2c)
            gain += (_spread(moved) - _spread(difference)[:, None, None]) / 2
        pair, i, j = np.unravel_index(int(gain.argmax()), gain.shape)
        if not gain[pair, i, j] > 1e-9 * kept:
            return end
        improved = division.rows.copy()
        improved[rows[first[pair], i]], improved[rows[second[pair], j]] = second[pair], first[pair]
        end = settled(problem, groups, improved)


def _members(labels: Labels, groups: int) -> NDArray[np.int64]:
    """(groups, items of each), ascending."""
    return np.argsort(labels, kind="stable").reshape(groups, -1)


def _spread(values: Matrix) -> Matrix:
    """The sum of the upper half less that of the lower half, along the last axis."""
    half = values.shape[-1] // 2
    ranked = np.sort(values, axis=-1)
    return np.asarray(ranked[..., half:].sum(axis=-1) - ranked[..., :half].sum(axis=-1))


def _best(problem: Problem, groups: int, shares: NDArray[np.float32], solver: Solver) -> Division:
    """The best end of all starts; `shares`: (filters, starts, groups). Of equals the first start's."""
    starts = [balanced_assignment(-shares[:, start]) for start in range(shares.shape[1])]
    size = sum(matrix.size for matrix in problem)
    is_tiny = size <= TINY * solver.effort
    if is_tiny:
        rng = np.random.default_rng([solver.seed, len(problem[0]), groups])
        equal = np.repeat(np.arange(groups), len(problem[0]) // groups)
        starts += [rng.permutation(equal) for _ in range(MOST_STARTS)]
    ends = [settled(problem, groups, start) for start in starts]
    best = max(ends, key=lambda end: end[0])
    if size <= SMALL * solver.effort:
        best = max((swapped(problem, groups, end) for end in (ends if is_tiny else [best])), key=lambda end: end[0])
    return best[1]


def _annealed(batch: Sequence[Problem], groups: int, starts: int, seed: int) -> NDArray[np.float32]:
    """Shares (problems, filters, starts, groups) of filters in groups, for problems of one shape."""
    layers = [_centred(np.stack(matrices)) for matrices in zip(*batch, strict=True)]  # each (problems, filters, inputs)
    filters, inputs = layers[0].shape[1], sum(layer.shape[2] for layer in layers)
    # The largest singular value of a random matrix with as large entries: at t = 1 the uniform shares become unstable.
    size = np.sqrt(np.add.reduce([(layer**2).sum(axis=(1, 2), keepdims=True) for layer in layers]))
    scale = size * (filters**-0.5 + inputs**-0.5)
    layers = [(layer / np.where(scale > 0, scale, 1.0)).astype(np.float32) for layer in layers]
    transposed = [np.ascontiguousarray(layer.swapaxes(1, 2)) for layer in layers]
    noise = np.random.default_rng([seed, filters, groups]).standard_normal((filters, starts, groups))
    shares: NDArray[np.float32] = np.repeat(((1 + NOISE * noise) / groups).astype(np.float32)[None], len(batch), axis=0)
    for temperature in TEMPERATURES:
        factor = np.float32(temperature * groups)
        pull = np.zeros_like(shares)
        for layer, turned in zip(layers, transposed, strict=True):
            pull += _times(layer, _balanced(factor * _times(turned, shares)))
        shares = _balanced(factor * pull)
    return shares


def _times(matrices: NDArray[np.float32], shares: NDArray[np.float32]) -> NDArray[np.float32]:
    """(problems, a, b) times (problems, b, starts, groups), one matrix product a problem."""
    problems, items, starts, groups = shares.shape
    product: NDArray[np.float32] = matrices @ shares.reshape(problems, items, starts * groups)
    return product.reshape(problems, -1, starts, groups)


def _balanced(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shares exp(logits) (problems, items, starts, groups), scaled to 1 an item and items / groups a group."""
    size = np.float32(logits.shape[1] / logits.shape[3])
    shares: NDArray[np.float32] = np.exp(logits - logits.max(axis=3, keepdims=True))
    for _ in range(SCALINGS):
        shares *= size / shares.sum(axis=1, keepdims=True)
        shares /= shares.sum(axis=3, keepdims=True)
    return shares


def _centred(matrices: NDArray[Any]) -> NDArray[Any]:
    """Each of (problems, filters, inputs) without its row and column means."""
    across, down = matrices.mean(axis=1, keepdims=True), matrices.mean(axis=2, keepdims=True)
    return np.asarray(matrices - across - down + matrices.mean(axis=(1, 2), keepdims=True))
