"""Which Gathers a plan leaves in the folded network: what `fold` will do, told from the plan and the graph alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeprune.graph import Graph, Layer
from edgeprune.plans.layout import Demand, LayoutProblem, Padding, choose_layouts, needs_gather, padding_needs_gather
from edgeprune.plans.permutation import Selection
from edgeprune.plans.plan import LayerPlan


@dataclass(frozen=True)
class PlannedGathers:
    """The Gathers of a folded network, with the elements that each moves a sample."""

    inputs: Mapping[str, int]
    """By the grouped layer in front of which they stand."""
    outputs: Mapping[str, int]
    """By the grouped layer behind which they stand."""
    paddings: tuple[int, ...]
    """In zero-channel shortcuts."""

    @property
    def count(self) -> int:
        return len(self.inputs) + len(self.outputs) + len(self.paddings)

    @property
    def elements(self) -> int:
        """Elements that all of them move a sample."""
        return sum(self.inputs.values()) + sum(self.outputs.values()) + sum(self.paddings)


def planned_gathers(grouped: Mapping[str, LayerPlan], graph: Graph) -> PlannedGathers:
    """The Gathers under a plan with these grouped layers, in which every channel of a coupled set is kept."""
    problem, layouts = _problem(grouped, graph), planned_layouts(grouped, graph)
    inputs, outputs = (
        {name: demand.elements for name, demand in demands.items() if needs_gather(demand, layouts[demand.coupled_set])}
        for demands in _demands(grouped, graph)
    )
    moved = [p.elements for p in problem.paddings if padding_needs_gather(p, layouts[p.source], layouts[p.target])]
    return PlannedGathers(inputs, outputs, tuple(moved))


def planned_layouts(grouped: Mapping[str, LayerPlan], graph: Graph) -> dict[str, Selection]:
    """The layout of every coupled set under such a plan."""
    return choose_layouts(_problem(grouped, graph))


def _problem(grouped: Mapping[str, LayerPlan], graph: Graph) -> LayoutProblem:
    reads, writes = _demands(grouped, graph)
    return LayoutProblem(
        channels={coupled.name: coupled.channels for coupled in graph.coupled_sets},
        in_order=frozenset(coupled.name for coupled in graph.coupled_sets if coupled.in_order),
        demands=[demand for name in reads for demand in (reads[name], writes[name])],
        paddings=[
            Padding(p.source, p.target, p.lead, p.trail, graph.coupled_set(p.target).channels * p.positions)
            for p in graph.paddings
        ],
        concatenations={coupled.name: coupled.parts for coupled in graph.coupled_sets if coupled.parts},
    )


def _demands(grouped: Mapping[str, LayerPlan], graph: Graph) -> tuple[dict[str, Demand], dict[str, Demand]]:
    """What each grouped layer reads, and what it writes."""
    layers = [graph.layer(name) for name in grouped]
    return (
        {layer.name: _reads(layer, grouped[layer.name]) for layer in layers},
        {layer.name: _writes(layer, grouped[layer.name]) for layer in layers},
    )


def _reads(layer: Layer, entry: LayerPlan) -> Demand:
    return Demand(layer.reads, entry.inputs, sum(map(len, entry.inputs)) * layer.input_positions)


def _writes(layer: Layer, entry: LayerPlan) -> Demand:
    return Demand(layer.writes, entry.filters, sum(map(len, entry.filters)) * layer.positions)
