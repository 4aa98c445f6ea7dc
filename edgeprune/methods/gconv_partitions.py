"""Divisions of channels that several grouped layers share, and how they are made better together.

A partition divides the channels of a coupled set, or those that one layer reads, into numbered groups. A grouped layer
writes by one partition and reads by another: its group j holds the filters that are in group j of the one, and reads
the channels that are in group j of the other. Where a layer reads by the partition by which those in front of it write,
its groups read what one group each has written, and no Gather stands between.

The importance that all layers keep is, for one partition with all others given, the sum over its channels of a score of
(channel, group): an assignment problem, solved exactly. Ascent solves one partition after the other until none gains.
A start for it is annealed as in `gconv_solver`, all partitions of the network at once, or made of given divisions:
their groups are numbered anew, so that those that lead into each other have one number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from edgeprune.clustering import Labels, balanced_assignment
from edgeprune.methods.gconv_divider import Divisions
from edgeprune.methods.gconv_solver import Matrix, best_columns, kept_importance

Key = tuple[str, str, int]
"""A partition: (`set`, a coupled set, groups), or (`layer`, a layer that reads by one of its own, groups)."""
Partitions = Mapping[Key, Labels]
TEMPERATURES = np.geomspace(0.8, 6.0, 30)  # as in gconv_solver; layers of less importance follow later
SCALINGS = 2  # how often shares are scaled towards their sums


@dataclass(frozen=True)
class Links:
    """Which partitions each grouped layer writes and reads by; layers in forward order."""

    importance: Mapping[str, Matrix]
    writes: Mapping[str, Key]
    reads: Mapping[str, Key]

    @cached_property
    def layers(self) -> Mapping[Key, tuple[str, ...]]:
        """Partition -> the layers that write or read by it."""
        found: dict[Key, list[str]] = defaultdict(list)
        for layer in self.writes:
            for key in dict.fromkeys((self.writes[layer], self.reads[layer])):
                found[key].append(layer)
        return {key: tuple(layers) for key, layers in found.items()}

    def loops(self, key: Key) -> bool:
        """Whether a layer writes and reads by this partition."""
        return any(self.writes[layer] == self.reads[layer] for layer in self.layers[key])

    def kept(self, layer: str, partitions: Partitions) -> float:
        """The importance that the layer's kept kernels hold."""
        return kept_importance(self.importance[layer], partitions[self.writes[layer]], partitions[self.reads[layer]])

    def objective(self, partitions: Partitions) -> float:
        """The importance that all layers keep."""
        return sum(self.kept(layer, partitions) for layer in self.writes)


def improved(links: Links, key: Key, partitions: Partitions) -> Labels | None:
    """The best division by this partition with all others given; None if the one that is there is as good.

    Where a layer writes what it reads (one partition on both sides), each side is looked at with the other as it is:
    then the division is not always the best, but better than the one that is there.
    """
    scores = []
    for layer in links.layers[key]:
        if links.writes[layer] == key:
            scores.append(_times(links.importance[layer], partitions[links.reads[layer]], key[2]))
        if links.reads[layer] == key:
            scores.append(_times(links.importance[layer].T, partitions[links.writes[layer]], key[2]))
    score = np.add.reduce(scores)  # (channels, groups)
    candidate, channels = balanced_assignment(-score), np.arange(len(score))
    before, after = score[channels, partitions[key]].sum(), score[channels, candidate].sum()
    if links.loops(key):
        changed = {**partitions, key: candidate}
        before, after = (sum(links.kept(layer, p) for layer in links.layers[key]) for p in (partitions, changed))
    return candidate if after > before * (1 + 1e-12) else None


def ascended(links: Links, partitions: Partitions) -> dict[Key, Labels]:
    """Partitions none of which can gain with the others given, from a start; never worse than the start."""
    found = dict(partitions)
    waiting = list(links.layers)
    while waiting:
        key = waiting.pop(0)
        better = improved(links, key, found)
        if better is None:
            continue
        found[key] = better
        for layer in links.layers[key]:
            ends = {links.writes[layer]: None, links.reads[layer]: None}
            waiting += [end for end in ends if end not in waiting and (end != key or links.loops(key))]
    return found


def numbered(links: Links, divisions: Divisions) -> dict[Key, Labels]:
    """A start from divisions that layers found for themselves, each partition numbered to fit those before it."""
    found: dict[Key, Labels] = {}
    for layer, (rows, columns) in {name: (d.rows, d.columns) for name, d in divisions.items()}.items():
        write, read = links.writes[layer], links.reads[layer]
        if read not in found:  # nothing before this layer writes by it
            groups = read[2]
            found[read] = best_columns(links.importance[layer], found[write], groups) if write in found else columns
        if write not in found:
            found[write] = _renumbered(links, write, rows, found)
    return found


def annealed(links: Links, seed: int) -> dict[Key, Labels]:
    """A start from shares of all channels in all groups, which answer each other while a temperature falls."""
    centred = {layer: _centred(matrix) for layer, matrix in links.importance.items()}
    sizes = {layer: np.linalg.norm(m) * (m.shape[0] ** -0.5 + m.shape[1] ** -0.5) for layer, m in centred.items()}
    rng = np.random.default_rng(seed)
    shares: dict[Key, NDArray[np.float64]] = {}
    for key, layers in links.layers.items():
        first = links.importance[layers[0]]
        channels = first.shape[0] if links.writes[layers[0]] == key else first.shape[1]
        shares[key] = (1 + rng.standard_normal((channels, key[2]))) / key[2]
    scales = {key: np.sqrt(sum(sizes[layer] ** 2 for layer in layers)) or 1.0 for key, layers in links.layers.items()}
    for temperature in TEMPERATURES:
        for key, layers in links.layers.items():
            pull = np.zeros_like(shares[key])
            for layer in layers:
                if links.writes[layer] == key:
                    pull += centred[layer] @ shares[links.reads[layer]]
                if links.reads[layer] == key:
                    pull += centred[layer].T @ shares[links.writes[layer]]
            shares[key] = _balanced(temperature * key[2] / scales[key] * pull)
    return {key: balanced_assignment(-share) for key, share in shares.items()}


def _renumbered(links: Links, key: Key, labels: Labels, known: Partitions) -> Labels:
    """The same groups with the numbers under which the layers keep most that lead to or from known partitions."""
    groups = key[2]
    gain = np.zeros((groups, groups))  # (group now, number)
    for layer in links.layers[key]:
        if links.writes[layer] == key and links.reads[layer] in known:
            gain += np.eye(groups)[labels].T @ _times(links.importance[layer], known[links.reads[layer]], groups)
        elif links.reads[layer] == key and links.writes[layer] in known:
            gain += np.eye(groups)[labels].T @ _times(links.importance[layer].T, known[links.writes[layer]], groups)
    _, numbers = linear_sum_assignment(-gain)
    return np.asarray(numbers[labels], dtype=np.int64)


def _times(matrix: Matrix, labels: Labels, groups: int) -> Matrix:
    """(channels, groups) the sum of each row over the columns of each group."""
    return matrix @ np.eye(groups)[labels]


def _centred(matrix: Matrix) -> Matrix:
    across, down = matrix.mean(axis=1, keepdims=True), matrix.mean(axis=0, keepdims=True)
    return np.asarray(matrix - across - down + matrix.mean())


def _balanced(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares exp(logits) (channels, groups), scaled to 1 a channel and channels / groups a group."""
    size = logits.shape[0] / logits.shape[1]
    shares: NDArray[np.float64] = np.exp(logits - logits.max(axis=1, keepdims=True))
    for _ in range(SCALINGS):
        shares *= size / np.maximum(shares.sum(axis=0, keepdims=True), 1e-300)
        shares /= shares.sum(axis=1, keepdims=True)
    return shares
