"""What layers could become, and what each choice costs in outputs that change: measured on calibration images.

Each unit of channels (`units`) could keep fewer of them, each convolution could be in groups, and the branch of a
residual block could be left out. The input channels that go are those whose loss raises the error of their readers
least (`elimination`), and choices are priced by trials: the dense network with that change alone, the readers' weights
fitted to what is left, against the dense network's outputs. Of a unit's widths the widest and the narrowest are tried,
of a layer's groupings the middle one; the others follow by their errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgeprune.graph import Graph, Layer
from edgeprune.methods.base import MethodInput, PruneRequest
from edgeprune.methods.gkp_cal.assignment import Grouped, group
from edgeprune.methods.gkp_cal.elimination import Columns, Matrix, Problem, at_once, removals, solved
from edgeprune.methods.on_images import Moments, OnImages, Refitted
from edgeprune.methods.shared.alignment import Grouping
from edgeprune.methods.shared.reconstruction import can_refit, columns_a_channel, filter_gains, held_by, refitted
from edgeprune.methods.shared.units import Numbers, Prunable, Unit
from edgeprune.plans.plan import LayerPlan

WIDTHS = 4
"""Of a unit that are tried, all channels left out, where the block allows so many."""
GROUPS = (2, 4, 8)
PRICING_STEPS = 8
"""In which channels go from a group whose price is asked."""
POWERS = 0.5, 3.0
"""Between which a divergence may grow with the error."""


@dataclass(frozen=True)
class Width:
    """A unit with some of its channels."""

    kept: Numbers
    """Places in the unit, ascending."""
    cost: float
    """By how much the outputs change (`OnImages.divergence`)."""


@dataclass(frozen=True)
class InGroups:
    """A layer in groups."""

    entry: LayerPlan
    cost: float

    @property
    def grouping(self) -> Grouping:
        return Grouping(self.entry.groups, self.entry.kept)


@dataclass
class Candidates:
    """All choices of a network."""

    widths: dict[int, tuple[Width, ...]] = field(default_factory=dict)
    """Number of a unit -> its widths, widest first, all channels at no cost among them."""
    grouped: dict[str, tuple[InGroups, ...]] = field(default_factory=dict)
    left_out: dict[str, float] = field(default_factory=dict)
    """Layer at the end of a branch that could be left out -> its cost."""


@dataclass(frozen=True)
class _Reader:
    """A layer that reads a unit, as a least-squares problem in its dense inputs."""

    layer: Layer
    problem: Problem
    gains: Matrix
    """(filters,) what its weights in the problem are multiplied with."""
    dense: Matrix
    """(filters, columns) its weights."""
    moments: Moments

    def trial(self) -> Refitted:
        matrix = self.problem.solution(self.dense.shape[1]) / self.gains[:, None]
        return refitted(self.layer, self.moments, matrix)


class Search:
    """Looks at a network's layers, and prices what they could become."""

    def __init__(self, given: MethodInput, among: Prunable, damping: float) -> None:
        assert given.images is not None, "NEEDS_IMAGES"
        self._given, self._damping = given, damping
        self._images: OnImages = given.images
        self._units = {
            number: readers
            for number, unit in enumerate(among.units)
            if (readers := readers_of(unit, given.graph)) and unit.size > 1
        }
        self._among = among
        self._waiting: dict[int, list[_Reader]] = {number: [] for number in self._units}
        self._found = Candidates()

    def run(self, groupings: Mapping[str, Sequence[Grouping]]) -> Candidates:
        """`groupings`: those to try of each layer."""
        self._groupings = groupings
        names = {name for readers in self._units.values() for name in readers} | set(groupings)
        self._images.look(names, self._see)
        for layer in self._given.graph.layers:
            if may_go(layer, self._given.graph, self._given.request):
                self._found.left_out[layer.name] = self._images.divergence({}, left_out=[layer.name])
        return self._found

    def _see(self, layer: Layer, moments: Moments) -> None:
        dense = self._given.weights[layer.name].reshape(layer.out_channels, -1).astype(np.float64)
        gains = filter_gains(layer, self._given.norms)
        scaled = dense * gains[:, None]
        variance = float(np.einsum("fc,cd,fd->", scaled, moments.covariance, scaled, optimize=True))
        gains = gains / np.sqrt(variance) if variance > 0 else gains  # errors of several readers as shares
        cross = dense @ moments.covariance
        weights, inverse = solved(moments.covariance, cross, dense, held_by(moments, self._damping))
        weights *= gains[:, None]
        light = Moments(np.empty((0, 0)), np.empty((0, 0)), moments.read, dense @ moments.read, moments.count)
        for number, readers in self._units.items():
            if layer.name in readers:
                problem = Problem(weights, inverse, readers[layer.name])
                self._waiting[number].append(_Reader(layer, problem, gains, dense, light))
                if len(self._waiting[number]) == len(readers):
                    self._found.widths[number] = self._widths(number, self._waiting.pop(number))
        if layer.name in self._groupings:
            self._found.grouped[layer.name] = self._in_groups(layer, weights, inverse, gains, light)

    def _widths(self, number: int, readers: Sequence[_Reader]) -> tuple[Width, ...]:
        unit = self._among.units[number]
        wanted = widths_of(unit, self._among.request.align)
        left, error = set(range(unit.size)), 0.0
        kept, errors, trials = list[Numbers](), list[float](), list[tuple[float, float]]()
        step = max(at_once(reader.dense.shape[1]) for reader in readers)
        for gone, rise in removals([reader.problem for reader in readers], unit.size, wanted, step):
            left -= set(gone)
            error += rise
            if len(left) not in wanted:
                continue
            kept.append(tuple(sorted(left)))
            errors.append(error)
            if len(left) in (wanted[0], wanted[-1]):  # the others lie between
                changed = {reader.layer.name: reader.trial() for reader in readers}
                trials.append((error, self._images.divergence(changed)))
        costs = priced(errors, trials)
        return (Width(tuple(range(unit.size)), 0.0), *map(Width, kept, costs))

    def _in_groups(
        self, layer: Layer, weights: Matrix, inverse: Matrix, gains: Matrix, moments: Moments
    ) -> tuple[InGroups, ...]:
        size, found = columns_a_channel(layer), list[Grouped]()
        for grouping in self._groupings[layer.name]:
            rng = np.random.default_rng(self._given.request.seed)
            step = max(at_once(len(inverse)), (layer.in_channels - grouping.kept) // PRICING_STEPS)
            found.append(group(weights, inverse, size, grouping.groups, grouping.kept, rng, refine=0, step=step))
        found.sort(key=lambda one: one.error)
        one = found[len(found) // 2]
        matrix = weights_in_groups(one, layer, size) / gains[:, None]
        trials = [(one.error, self._images.divergence({layer.name: refitted(layer, moments, matrix)}))]
        costs = priced([one.error for one in found], trials)
        return tuple(InGroups(one.entry(layer.name), cost) for one, cost in zip(found, costs, strict=True))


def priced(errors: Sequence[float], trials: Sequence[tuple[float, float]]) -> list[float]:
    """What each of these errors, rising, costs: a power law through one or two trials (error, divergence)."""
    if not errors:
        return []
    (first, low), (last, high) = trials[0], trials[-1]
    power = 1.0
    if last > first > 0 and high > low > 0:
        power = float(np.clip(np.log(high / low) / np.log(last / first), *POWERS))
    scale = high / last**power if last > 0 else 0.0
    found: list[float] = np.maximum.accumulate([scale * error**power for error in errors]).tolist()
    return found


def weights_in_groups(found: Grouped, layer: Layer, size: int) -> Matrix:
    """(filters, columns) with zeros where a filter reads nothing."""
    weight = np.zeros((layer.out_channels, layer.in_channels, size))
    for filters, part in zip(found.filters, found.groups, strict=True):
        weight[np.ix_(filters, part.kept)] = part.weights
    return weight.reshape(len(weight), -1)


def may_go(layer: Layer, graph: Graph, request: PruneRequest) -> bool:
    """Whether the branch that a layer ends may be left out."""
    inside = [graph.layer(name) for name in layer.branch]
    return bool(inside) and not any(other.refusal or request.skips(other.name) for other in inside)


def readers_of(unit: Unit, graph: Graph) -> dict[str, Columns]:
    """The layers that read a unit -> (numbers, width) the columns of each number in them.

    Empty where the unit has to stay whole: one of them cannot be fitted anew, or nothing reads it.
    """
    found: dict[str, list[Columns]] = {}
    for name, channels in unit.sets:
        for layer in map(graph.layer, graph.coupled_set(name).consumers):
            if layer.is_depthwise:
                continue
            if can_refit(layer):
                return {}
            size = columns_a_channel(layer)
            columns = np.asarray(channels)[:, None] * size + np.arange(size)  # (numbers, size)
            found.setdefault(layer.name, []).append(columns)
    return {name: np.concatenate(columns, axis=1) for name, columns in found.items()}


def widths_of(unit: Unit, block: int) -> list[int]:
    """Numbers of the unit that could be left, most first: multiples of the block, evenly spread, `WIDTHS` at most."""
    step = max(1, block // unit.width)
    whole = [count for count in range(step, unit.size, step)]
    chosen = np.unique(np.round(np.linspace(0, len(whole) - 1, min(WIDTHS, len(whole)))).astype(int))
    return [whole[place] for place in chosen[::-1]]
