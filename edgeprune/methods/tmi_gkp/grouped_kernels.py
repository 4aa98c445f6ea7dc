"""Which grouped kernels of a group to keep: TMI-GKP's Algorithm 1 and equation (3.5).

Nodes are the N = C_in grouped kernels of one group, edges their Euclidean distances D. Wanted are `keep` nodes that lie
far from each other and near to the nodes that go.

Algorithm 1 grows one kept set from every node, each time adding the node with the largest sum of distances to the set
so far. All restarts grow together here: row r of `sums` holds, for restart r, every node's sum of distances to its
kept set, so one step is one argmax and one added row of D for all restarts at once. What a restart does next depends on
its kept set only, so restarts whose sets have become equal go on as one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeprune.methods.shared.groupings import round_half_up

Masks = NDArray[np.bool_]
"""(sets, N): row r is True at the kept nodes of set r."""

BLOCK_BYTES = 256 << 10  # running sums that are worked on at a time: they and as much scratch fit in a core's L2 cache
ROUNDS = 24  # how often restarts are compared, to merge equal ones
SWAPS = 32  # at most so many profitable swaps are made


@dataclass(frozen=True)
class Selection35:
    """The parameters of equation (3.5) for one layer."""

    keep: int
    """s, grouped kernels that each group keeps."""
    gamma: int
    """Nearest kept grouped kernels that count for each pruned one; at most `keep`."""
    beta: float


def selection_for(in_channels: int, keep: int, gamma_ratio: float, beta: float | Literal["auto"]) -> Selection35:
    """gamma = gamma_ratio * C_in rounded half up, within 1..keep; beta "auto" = pairs(kept) / (pruned * gamma)."""
    gamma = min(max(round_half_up(gamma_ratio * in_channels), 1), keep)
    if beta == "auto":
        beta = math.comb(keep, 2) / ((in_channels - keep) * gamma)
    return Selection35(keep, gamma, float(beta))


def select_grouped_kernels(kernels: NDArray[np.floating[Any]], chosen: Selection35) -> tuple[int, ...]:
    """The grouped kernels of one group that stay, ascending.

    `kernels`: (N, values), one grouped kernel a row. The candidates are the sets of Algorithm 1 and, beyond the paper,
    the one of them with the largest inner sum improved by swaps; the best under equation (3.5) wins, of equals the
    one whose restart began at the lower input channel.
    """
    distances = kernel_distances(kernels)
    if not distances.any():
        return tuple(range(chosen.keep))
    candidates = greedy_sets(distances, chosen.keep)
    inner = inner_sums(distances, candidates)
    best_inner = int(inner.argmax())
    swapped = improved_by_swaps(distances, candidates[best_inner])
    if not np.array_equal(swapped, candidates[best_inner]):
        candidates = np.concatenate([candidates, swapped[None]])
        inner = np.append(inner, inner_sums(distances, swapped[None]))
    best = best_set(distances, candidates, inner, chosen)
    return tuple(np.flatnonzero(candidates[best]).tolist())


def kernel_distances(kernels: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """(N, N) Euclidean distances between the rows; exactly symmetric, exactly 0 between (nearly) equal rows."""
    rows = np.ascontiguousarray(kernels, dtype=np.float64)
    distances = rows @ rows.T
    squares = np.diag(distances).copy()
    for start in range(0, len(rows), 64):  # 64 rows at a time, in place: no further (N, N) array, and all in cache
        block = distances[start : start + 64]
        norms = squares[start : start + 64, None] + squares
        block *= -2.0
        block += norms
        block[block < 1e-12 * norms] = 0.0  # what is left there is rounding of the subtraction
        np.sqrt(block, out=block)
    np.fill_diagonal(distances, 0.0)
    return np.asarray(distances)


def greedy_sets(distances: NDArray[np.float64], keep: int) -> Masks:
    """The different kept sets of Algorithm 1 with a restart from every node, ordered by their first restart.

    Of equal sums the node with the lower number is added. Sums are float32, which can decide between nodes whose sums
    differ by less than their rounding.
    """
    nodes = len(distances)
    edges = np.empty((nodes, nodes), dtype=np.float32)
    np.divide(distances, distances.max(initial=1e-300), out=edges, casting="same_kind")
    np.fill_diagonal(edges, -np.inf)  # adding a node's row also takes the node itself out of the choice, for good
    sums = edges.copy()  # after one node: (restarts, N)
    block = max(1, BLOCK_BYTES // (4 * nodes))
    scratch = np.empty((min(block, nodes), nodes), dtype=np.float32)
    steps_per_round = max(8, -(-keep // ROUNDS))
    done = 1
    while done < keep:
        steps = min(steps_per_round, keep - done)
        for start in range(0, len(sums), block):
            _grow(sums[start : start + block], edges, scratch, steps)
        done += steps
        sums = sums[_first_of_equal(np.isneginf(sums))]
    return np.asarray(np.isneginf(sums))


def _grow(sums: NDArray[np.float32], edges: NDArray[np.float32], scratch: NDArray[np.float32], steps: int) -> None:
    """Add `steps` nodes to each restart of a block, in place."""
    added_rows = scratch[: len(sums)]
    for _ in range(steps):
        np.take(edges, sums.argmax(axis=1), axis=0, out=added_rows, mode="clip")  # "clip" writes to out unbuffered
        np.add(sums, added_rows, out=sums)


def _first_of_equal(masks: Masks) -> NDArray[np.int64]:
    """Row numbers of the first of each set of equal rows, ascending."""
    packed = np.packbits(masks, axis=1)
    keys = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    return np.sort(np.unique(keys, return_index=True)[1])


def inner_sums(distances: NDArray[np.float64], masks: Masks) -> NDArray[np.float64]:
    """First term of (3.5): per set, the sum of the distances over all pairs of kept nodes."""
    kept = masks.astype(np.float64)
    return np.asarray(0.5 * np.einsum("rn,rn->r", kept @ distances, kept))


def outer_sum(distances: NDArray[np.float64], kept: NDArray[np.bool_], gamma: int) -> float:
    """Second term of (3.5) without beta: over all pruned nodes, the distances to their gamma nearest kept ones."""
    between = distances[np.ix_(~kept, kept)]  # (pruned, kept)
    if gamma < between.shape[1]:
        between.partition(gamma - 1, axis=1)
    return float(between[:, :gamma].sum())


def improved_by_swaps(distances: NDArray[np.float64], kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Swap a kept for a pruned node, always the pair that raises the inner sum most, until none does (or `SWAPS`)."""
    kept = kept.copy()
    smallest_gain = 1e-9 * float(distances.max(initial=0.0))
    for _ in range(SWAPS):
        inside, outside = np.flatnonzero(kept), np.flatnonzero(~kept)
        to_kept = distances @ kept  # (N,)
        gains = to_kept[outside][None, :] - distances[np.ix_(inside, outside)] - to_kept[inside][:, None]
        leaves, enters = np.unravel_index(int(gains.argmax()), gains.shape)
        if not gains[leaves, enters] > smallest_gain:
            break
        kept[inside[leaves]], kept[outside[enters]] = False, True
    return kept


def best_set(distances: NDArray[np.float64], candidates: Masks, inner: NDArray[np.float64], chosen: Selection35) -> int:
    """Number of the candidate with the greatest score (3.5) = inner - beta * outer; of equals (to 1e-12) the first.

    The outer term needs a partial sort a candidate and pruned node, so it is computed only where it can matter. For
    any t, the gamma smallest of some distances sum to at least gamma * t + sum(min(d - t, 0)), with equality where t
    is the gamma-th smallest. With each node's t taken from one good candidate, one matrix product bounds all scores
    from above, and candidates are scored from the highest bound down until no bound exceeds the best score.
    """
    if chosen.beta == 0.0:
        return int(inner.argmax())
    reference = candidates[int(inner.argmax())]
    t = np.partition(distances[:, reference], chosen.gamma - 1, axis=1)[:, chosen.gamma - 1]  # (N,)
    shortfall = distances - t[:, None]
    np.minimum(shortfall, 0.0, out=shortfall)
    least = candidates.astype(np.float64) @ shortfall.T + chosen.gamma * t  # (candidates, N), for N as a pruned node
    bounds = inner - chosen.beta * np.where(candidates, 0.0, least).sum(axis=1)
    slack = 1e-12 * float(np.abs(inner).max() + np.abs(bounds).max())
    best, best_score = -1, -math.inf
    for candidate in np.argsort(-bounds, kind="stable").tolist():
        if bounds[candidate] <= best_score + slack:
            break
        score = float(inner[candidate]) - chosen.beta * outer_sum(distances, candidates[candidate], chosen.gamma)
        if score > best_score:
            best, best_score = candidate, score
    return best
