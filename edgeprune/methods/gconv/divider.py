"""The divisions of a network's layers under a group configuration: layers of one coupled set share their filters'."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from edgeprune.methods.gconv.solver import Matrix, Problem, Solver, best_columns, kept_importance, solve
from edgeprune.methods.shared.clustering import Clusters, Labels, to_clusters

Configuration = Mapping[str, int]
"""Layer -> its number of groups, 2 or more."""


@dataclass(frozen=True)
class LayerDivision:
    """One layer's filters and input channels in groups."""

    groups: int
    rows: Labels
    columns: Labels
    in_order: bool = False
    """Whether the groups stand in the order of their numbers, which is also that of other layers' groups."""

    def clusters(self) -> tuple[Clusters, Clusters]:
        """Per group its filters, and its input channels, ascending; groups as numbered, or by their smallest filter."""
        order = range(self.groups) if self.in_order else [int(self.rows[group[0]]) for group in to_clusters(self.rows)]
        filters, inputs = (
            tuple(tuple(i for i, own in enumerate(labels.tolist()) if own == group) for group in order)
            for labels in (self.rows, self.columns)
        )
        return filters, inputs


Divisions = Mapping[str, LayerDivision]


@dataclass(frozen=True)
class Divider:
    """Finds divisions for given importances."""

    importance: Mapping[str, Matrix]
    streams: Mapping[str, str]
    """Layer -> what its filters' division is shared along: layers of one stream with as many groups share it."""
    solver: Solver

    def divide(self, configuration: Configuration, held: Divisions | None = None) -> dict[str, LayerDivision]:
        """A division of every layer of the configuration.

        Layers whose division is in `held` keep it, and those that come to their stream with as many groups take over
        its filters. All others that share are decided together, by the sum of their importance.
        """
        held = held or {}
        sharing: dict[tuple[str, int], list[str]] = defaultdict(list)
        for layer, groups in configuration.items():
            sharing[self.streams[layer], groups].append(layer)
        found: dict[str, LayerDivision] = {}
        open_problems: dict[int, dict[tuple[str, ...], Problem]] = defaultdict(dict)
        for (_, groups), layers in sharing.items():
            kept = {layer: held[layer] for layer in layers if layer in held and held[layer].groups == groups}
            found |= kept
            new = tuple(layer for layer in layers if layer not in kept)
            if kept and new:
                rows = next(iter(kept.values())).rows
                for layer in new:
                    columns = best_columns(self.importance[layer], rows, groups)
                    found[layer] = LayerDivision(groups, rows, columns)
            elif new:
                open_problems[groups][new] = tuple(self.importance[layer] for layer in new)
        for groups, problems in open_problems.items():
            solved = solve(list(problems.values()), groups, self.solver)
            for layers_, division in zip(problems, solved, strict=True):
                for layer, columns in zip(layers_, division.columns, strict=True):
                    found[layer] = LayerDivision(groups, division.rows, columns)
        return {layer: found[layer] for layer in configuration}

    def kept(self, divisions: Divisions) -> dict[str, float]:
        """The importance that each layer's kept kernels hold."""
        return {name: kept_importance(self.importance[name], d.rows, d.columns) for name, d in divisions.items()}

    def totals(self) -> dict[str, float]:
        """The importance of each layer's kernels."""
        return {name: float(matrix.sum()) for name, matrix in self.importance.items()}

    def recovery(self, divisions: Divisions) -> dict[str, float]:
        """The recovery ratio (8) of each layer: importance kept / total; 1 for a layer that has none."""
        totals = self.totals()
        return {name: kept / totals[name] if totals[name] else 1.0 for name, kept in self.kept(divisions).items()}
