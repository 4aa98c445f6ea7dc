"""Which width each unit gets and which layers come in groups: the choice that changes the outputs least in a budget.

One integer program over all layers. Every unit has one of its widths, unless the branch that it is in is left out;
every layer has at most one grouping, and that only with all of its channels. Costs add up (the divergences that single
changes were measured to cause), and so do the multiply-adds, parameters and times of layers. A layer between two units
of variable width needs what the pair of widths says: one variable a pair, bound to both choices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from edgeprune.graph import Graph, Layer
from edgeprune.methods.gkp_cal.candidates import Candidates
from edgeprune.methods.shared.alignment import Grouping
from edgeprune.methods.shared.units import Prunable

GAP = 1e-4
"""By which the choice may be worse than the best, as a share of its cost."""
LayerCost = Callable[[Layer, float, float, Grouping | None], float]
"""What a layer needs with so many input channels and filters, perhaps in groups: no whole numbers where it stands for a
part of one that reads a concatenation."""


@dataclass(frozen=True)
class Need:
    """What the network needs of one thing: multiply-adds, parameters, or milliseconds."""

    of_layer: LayerCost
    rest: float
    """Outside the layers, whatever is pruned."""
    limit: float
    """The most that is allowed, in the same unit."""

    def dense(self, graph: Graph) -> float:
        return self.rest + sum(self.of_layer(x, x.in_channels, x.out_channels, None) for x in graph.layers)


@dataclass(frozen=True)
class Allocation:
    """The choice."""

    widths: Mapping[int, int]
    """Number of a unit -> place among its widths."""
    grouped: Mapping[str, Grouping]
    left_out: tuple[str, ...]
    """The ends of branches."""
    cost: float
    needs: tuple[float, ...]
    """In the order of the needs given."""


@dataclass(frozen=True)
class Side:
    """Channels of a layer's input or output: those that a unit decides on, or none does."""

    unit: int | None
    channels: int
    """With all of them."""
    each: int
    """Channels that one number of the unit is."""


@dataclass
class _Program:
    """Variables, and rows of constraints on them."""

    cost: list[float] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    rows: list[tuple[dict[int, float], float, float]] = field(default_factory=list)
    """(variable -> factor, least, most)"""

    def variable(self, cost: float, *, whole: bool = True) -> int:
        self.cost.append(cost)
        self.whole.append(whole)
        return len(self.cost) - 1

    def solve(self, objective: Sequence[float], extra: Sequence[tuple[dict[int, float], float, float]]) -> list[float]:
        """The variables' values; empty if no choice holds all constraints."""
        rows = [*self.rows, *extra]
        entries = [(r, v, f) for r, (factors, _, _) in enumerate(rows) for v, f in factors.items()]
        places, variables, factors = zip(*entries, strict=True)
        matrix = coo_array((factors, (places, variables)), shape=(len(rows), len(self.cost))).tocsr()
        found = milp(
            np.asarray(objective),
            integrality=np.asarray(self.whole, dtype=int),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, [row[1] for row in rows], [row[2] for row in rows]),
            options={"mip_rel_gap": GAP},
        )
        return [] if found.x is None else list(found.x)


class Allocator:
    """The choices of a network, ready to be made for different limits."""

    def __init__(self, among: Prunable, candidates: Candidates) -> None:
        self._graph, self._among, self._candidates = among.graph, among, candidates
        self._program = _Program()
        self._pairs: dict[tuple[int, int], list[list[int]]] = {}
        self._products: dict[tuple[int, int], int] = {}
        self._widths = {
            unit: [self._program.variable(width.cost) for width in widths] for unit, widths in candidates.widths.items()
        }
        self._left_out = {name: self._program.variable(cost) for name, cost in candidates.left_out.items()}
        """1 where a branch is left out."""
        self._ends = {
            layer.name: {end for end in self._left_out if layer.name in self._graph.layer(end).branch}
            for layer in self._graph.layers
        }
        """Layer -> the ends of the branches that it is in: one of them at most is left out."""
        self._program.rows += [(self._gone(ends), 0, 1) for ends in self._ends.values() if len(ends) > 1]
        self._inside = {unit: self._branches_of(unit) for unit in self._widths}
        """Unit -> the ends of the branches that all of it is in: without them it has no width."""
        for unit, variables in self._widths.items():
            row = dict.fromkeys(variables, 1.0) | self._gone(self._inside[unit])
            self._program.rows.append((row, 1, 1))
        self._sides = {layer.name: self._layer_sides(layer) for layer in self._graph.layers}
        self._groups = {name: self._grouping_variables(name) for name in candidates.grouped}

    def choose(self, needs: Sequence[Need]) -> Allocation | None:
        """The cheapest choice within all limits; None if there is none."""
        priced = [self._priced(need) for need in needs]
        limits = [(factors, -np.inf, need.limit - fixed) for (factors, fixed), need in zip(priced, needs, strict=True)]
        return self._read(self._program.solve(self._program.cost, limits), priced)

    def least(self, need: Need) -> float:
        """The least that any choice needs of it."""
        factors, fixed = self._priced(need)
        objective = [factors.get(variable, 0.0) for variable in range(len(self._program.cost))]
        values = self._program.solve(objective, ())
        return fixed + float(np.dot(objective, values))

    def _read(self, values: Sequence[float], priced: Sequence[tuple[dict[int, float], float]]) -> Allocation | None:
        if not values:
            return None
        gone = tuple(name for name, variable in self._left_out.items() if values[variable] > 0.5)
        widths = {
            unit: 0 if self._inside[unit] & set(gone) else int(np.argmax([values[v] for v in own]))
            for unit, own in self._widths.items()
        }
        grouped = {
            name: choice.grouping
            for name, variables in self._groups.items()
            for variable, choice in zip(variables, self._candidates.grouped[name], strict=True)
            if values[variable] > 0.5
        }
        needs = tuple(fixed + sum(f * values[v] for v, f in factors.items()) for factors, fixed in priced)
        return Allocation(widths, grouped, gone, float(np.dot(self._program.cost, values)), needs)

    # -- what variables stand for --------------------------------------------------------------------------------------
    def _gone(self, ends: Iterable[str]) -> dict[int, float]:
        """The variables that are 1 where these branches are left out, as part of a row."""
        return {self._left_out[end]: 1.0 for end in ends}

    def _branches_of(self, number: int) -> set[str]:
        """The ends of the branches that a unit is in, with all that writes and reads it."""
        unit = self._among.units[number]
        names = {name for name, _ in (*unit.layers, *unit.followers)}
        names |= {name for coupled, _ in unit.sets for name in self._graph.coupled_set(coupled).consumers}
        return set.intersection(*(self._ends[name] for name in names))

    def _grouping_variables(self, name: str) -> list[int]:
        """One for each grouping; none of them 1 unless the units around the layer are whole."""
        variables = [self._program.variable(choice.cost) for choice in self._candidates.grouped[name]]
        self._program.rows.append((dict.fromkeys(variables, 1.0) | self._gone(self._ends[name]), 0, 1))
        for unit in {side.unit for sides in self._sides[name] for side in sides if side.unit is not None}:
            self._program.rows.append((dict.fromkeys(variables, 1.0) | {self._widths[unit][0]: -1.0}, -np.inf, 0))
        return variables

    def _layer_sides(self, layer: Layer) -> tuple[list[Side], list[Side]]:
        return self._parts(layer.reads, layer.in_channels), self._parts(layer.writes, layer.out_channels)

    def _parts(self, coupled_set: str, channels: int) -> list[Side]:
        """The channels of a set by the units that decide on them."""
        found: dict[int, int] = {}
        for number in self._widths:
            unit = self._among.units[number]
            if count := sum(len(numbers) for name, numbers in unit.sets if name == coupled_set):
                found[number] = count
        sides = [Side(number, count, count // self._among.units[number].size) for number, count in found.items()]
        rest = channels - sum(found.values())
        return [*sides, Side(None, rest, 0)] if rest or not sides else sides

    def _counts(self, side: Side) -> list[int]:
        """Channels with each of the widths."""
        if side.unit is None:
            return [side.channels]
        return [len(width.kept) * side.each for width in self._candidates.widths[side.unit]]

    def _pair(self, first: int, second: int) -> list[list[int]]:
        """Variables for each width of one unit with each of the other: 1 where both are chosen."""
        if (first, second) not in self._pairs:
            rows, columns = self._widths[first], self._widths[second]
            grid = [[self._program.variable(0.0, whole=False) for _ in columns] for _ in rows]
            # Where the other unit's branch is left out, there is no pair.
            of_rows, of_columns = (-np.inf if self._inside[unit] else 0 for unit in (second, first))
            for row, variable in zip(grid, rows, strict=True):
                self._program.rows.append((dict.fromkeys(row, 1.0) | {variable: -1.0}, of_rows, 0))
            for column, variable in zip(zip(*grid, strict=True), columns, strict=True):
                self._program.rows.append((dict.fromkeys(column, 1.0) | {variable: -1.0}, of_columns, 0))
            self._pairs[first, second] = grid
        return self._pairs[first, second]

    # -- needs ---------------------------------------------------------------------------------------------------------
    def _priced(self, need: Need) -> tuple[dict[int, float], float]:
        """What each variable adds to the need, and what is needed anyway."""
        factors: dict[int, float] = {}
        fixed = need.rest
        for layer in self._graph.layers:
            inputs, outputs = self._sides[layer.name]
            for read in inputs:
                for written in outputs:
                    fixed += self._add_part(layer, read, written, need.of_layer, factors)
            whole = need.of_layer(layer, layer.in_channels, layer.out_channels, None)
            for variable, choice in zip(
                self._groups.get(layer.name, ()), self._candidates.grouped.get(layer.name, ()), strict=True
            ):
                saved = whole - need.of_layer(layer, layer.in_channels, layer.out_channels, choice.grouping)
                factors[variable] = factors.get(variable, 0.0) - saved
        return factors, fixed

    def _add_part(self, layer: Layer, read: Side, written: Side, cost: LayerCost, factors: dict[int, float]) -> float:
        """A layer's part that reads these channels and writes those; gives what it needs in any case."""

        def needed(inputs: int, filters: int) -> float:
            """Of a part, as if all of the layer were so much thinner."""
            own_in, own_out = read.channels / layer.in_channels, written.channels / layer.out_channels
            if not own_in * own_out:
                return 0.0
            scaled = inputs * layer.in_channels / read.channels, filters * layer.out_channels / written.channels
            return cost(layer, *scaled, None) * own_in * own_out

        ins, outs = self._counts(read), self._counts(written)
        if read.unit is None and written.unit is None:
            for variable in self._gone(self._ends[layer.name]):
                factors[variable] = factors.get(variable, 0.0) - needed(ins[0], outs[0])
            return needed(ins[0], outs[0])
        if read.unit == written.unit:
            terms = [(v, needed(a, b)) for v, a, b in zip(self._widths[read.unit or 0], ins, outs, strict=True)]
        elif written.unit is None:
            terms = [(v, needed(a, outs[0])) for v, a in zip(self._widths[read.unit or 0], ins, strict=True)]
        elif read.unit is None:
            terms = [(v, needed(ins[0], b)) for v, b in zip(self._widths[written.unit], outs, strict=True)]
        else:
            grid = self._pair(read.unit, written.unit)
            terms = [
                (variable, needed(a, b))
                for row, a in zip(grid, ins, strict=True)
                for variable, b in zip(row, outs, strict=True)
            ]
        # Units that go with a branch have no width then; of others the layer needs nothing, either.
        vanish = set[str]().union(*(self._inside[side.unit] for side in (read, written) if side.unit is not None))
        for variable, value in terms:
            factors[variable] = factors.get(variable, 0.0) + value
            for end in self._ends[layer.name] - vanish:
                both = self._both(variable, self._left_out[end])
                factors[both] = factors.get(both, 0.0) - value
        return 0.0

    def _both(self, first: int, second: int) -> int:
        """A variable that is 1 where both of these are."""
        if (first, second) not in self._products:
            both = self._program.variable(0.0, whole=False)
            rows = ({both: 1.0, first: -1.0}, {both: 1.0, second: -1.0}, {first: 1.0, second: 1.0, both: -1.0})
            self._program.rows += [(row, -np.inf, most) for row, most in zip(rows, (0, 0, 1), strict=True)]
            self._products[first, second] = both
        return self._products[first, second]
