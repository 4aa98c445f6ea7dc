"""Divisions of channels that several grouped layers share, and how they are made better together.

A partition divides the channels of a coupled set, or those that one layer reads, into numbered groups. A grouped layer
writes by one partition and reads by another: its group j holds the filters that are in group j of the one, and reads
the channels that are in group j of the other. Where a layer reads by the partition by which those in front of it write,
its groups read what one group each has written, and no Gather stands between. A layer of fewer groups than its
partition has joins neighbouring ones: of eight, 0 and 1 are its first, so that layers of 2, 4 and 8 groups can agree.

The importance that all layers keep is, for one partition with all others given, the sum over its channels of a score of
(channel, group): an assignment problem, solved exactly. Ascent solves one partition after the other until none gains.
A start for it is annealed as in `solver`, all partitions of the network at once, or made of given divisions:
their groups are numbered anew, so that those that lead into each other have one number.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from edgeprune.methods.gconv.divider import Divisions
from edgeprune.methods.gconv.solver import Matrix, best_columns, kept_importance
from edgeprune.methods.shared.clustering import Labels, balanced_assignment

Key = tuple[str, str, int]
"""A partition: (`set`, a coupled set, groups), or (`layer`, a layer that reads by one of its own, groups)."""
Sides = tuple[Labels, Labels]
"""The group of each filter and of each input channel of a layer."""
Partitions = Mapping[Key, Labels]
TEMPERATURES = np.geomspace(0.8, 6.0, 30)  # as in gconv_solver; layers of less importance follow later
SCALINGS = 2  # how often shares are scaled towards their sums


@dataclass(frozen=True)
class Links:
    """Which partitions each grouped layer writes and reads by; layers in forward order."""

    importance: Mapping[str, Matrix]
    writes: Mapping[str, Key]
    reads: Mapping[str, Key]
    groups: Mapping[str, int]
    """Each layer's own number, which divides that of its partitions."""
    held: Partitions = field(default_factory=dict)
    """Partitions that are given, not chosen."""

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

    def sides(self, layer: str, partitions: Partitions) -> Sides:
        """The layer's own division under these partitions."""
        return self._joined(layer, self.writes, partitions), self._joined(layer, self.reads, partitions)

    def _joined(self, layer: str, ends: Mapping[str, Key], partitions: Partitions) -> Labels:
        key = ends[layer]
        return partitions[key] // (key[2] // self.groups[layer])

    def kept(self, layer: str, partitions: Partitions) -> float:
        """The importance that the layer's kept kernels hold."""
        return kept_importance(self.importance[layer], *self.sides(layer, partitions))

    def scores(self, layer: str, key: Key, partitions: Partitions) -> list[Matrix]:
        """(channels, groups of the partition) for each side of the layer that is divided by it: what the layer keeps
        of a channel that is in a group, its other side as given."""
        found, groups = [], self.groups[layer]
        if self.writes[layer] == key:
            columns = self._joined(layer, self.reads, partitions)
            found.append(_times(self.importance[layer], columns, groups))
        if self.reads[layer] == key:
            rows = self._joined(layer, self.writes, partitions)
            found.append(_times(self.importance[layer].T, rows, groups))
        return [np.repeat(score, key[2] // groups, axis=1) for score in found]

    def objective(self, partitions: Partitions) -> float:
        """The importance that all layers keep."""
        return sum(self.kept(layer, partitions) for layer in self.writes)


def improved(links: Links, key: Key, partitions: Partitions) -> Labels | None:
    """The best division by this partition with all others given; None if the one that is there is as good, or held.

    Where a layer writes what it reads (one partition on both sides), each side is looked at with the other as it is:
    then the division is not always the best, but better than the one that is there.
    """
    if key in links.held:
        return None
    score = np.add.reduce([s for layer in links.layers[key] for s in links.scores(layer, key, partitions)])
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
    found: dict[Key, Labels] = dict(links.held)
    for layer, division in divisions.items():
        write, read, groups = links.writes[layer], links.reads[layer], division.groups
        if read not in found:  # nothing before this layer writes by it
            columns = division.columns
            if write in found:
                columns = best_columns(links.importance[layer], found[write] // (write[2] // groups), groups)
            found[read] = _refined(columns, read[2])
        if write not in found:
            found[write] = _renumbered(links, write, _refined(division.rows, write[2]), found)
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
    shares |= {key: np.eye(key[2])[labels] for key, labels in links.held.items()}
    scales = {key: np.sqrt(sum(sizes[layer] ** 2 for layer in layers)) or 1.0 for key, layers in links.layers.items()}
    for temperature in TEMPERATURES:
        for key, layers in links.layers.items():
            if key in links.held:
                continue
            pull = np.zeros_like(shares[key])
            for layer in layers:
                groups = links.groups[layer]
                if links.writes[layer] == key:
                    pull += _shares(centred[layer] @ _shares(shares[links.reads[layer]], groups), key[2])
                if links.reads[layer] == key:
                    pull += _shares(centred[layer].T @ _shares(shares[links.writes[layer]], groups), key[2])
            shares[key] = _balanced(temperature * key[2] / scales[key] * pull)
    return {**{key: balanced_assignment(-share) for key, share in shares.items()}, **links.held}


def _renumbered(links: Links, key: Key, labels: Labels, known: Partitions) -> Labels:
    """The same groups with the numbers under which the layers keep most that lead to or from known partitions."""
    groups = key[2]
    gain = np.zeros((groups, groups))  # (group now, number)
    for layer in links.layers[key]:
        ends = links.writes[layer], links.reads[layer]
        if ends[0] != ends[1] and any(end in known for end in ends):
            (score,) = links.scores(layer, key, known)
            gain += np.eye(groups)[labels].T @ score
    _, numbers = linear_sum_assignment(-gain)
    return np.asarray(numbers[labels], dtype=np.int64)


def _refined(labels: Labels, wanted: int) -> Labels:
    """Each of these groups cut into equal ones, `wanted` in all, its channels in ascending order."""
    size = len(labels) // wanted
    found = np.empty_like(labels)
    found[np.argsort(labels, kind="stable")] = np.arange(len(labels)) // size
    return found


def _shares(values: NDArray[np.float64], groups: int) -> NDArray[np.float64]:
    """(channels, any number of groups) as so many: neighbouring ones summed, or each repeated."""
    channels, now = values.shape
    if now >= groups:
        return np.asarray(values.reshape(channels, groups, now // groups).sum(axis=2))
    return np.repeat(values, groups // now, axis=1)


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
