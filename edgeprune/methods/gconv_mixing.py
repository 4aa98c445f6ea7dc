"""Where GConv's channels mix: which grouped layers divide the channels that they read as those in front of them do.

A layer that divides its input channels as its own importance wants needs a Gather in front of it wherever another
grouped layer writes or reads the same channels. A *tied* layer reads the groups that are there already, and keeps less
importance. All layers are tied first; those that gain most for what their Gather costs are then set free, for as long
as the Gathers take no more than a share of the network's time. A Gather's cost is that of the multiply-adds that could
be done in its time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from edgeprune.graph import Graph, Layer
from edgeprune.method_record import RecordTable
from edgeprune.methods.gconv_divider import Divider, Divisions, LayerDivision
from edgeprune.methods.gconv_partitions import Key, Links, Partitions, annealed, ascended, numbered
from edgeprune.methods.gconv_solver import Matrix
from edgeprune.plan import LayerPlan
from edgeprune.planned_gathers import PlannedGathers, planned_gathers

MACS_PER_ELEMENT = 28
"""Multiply-adds of a fast convolution in the time in which one element goes through a Gather and the reordering of data
around it, as measured with ONNX Runtime on a CPU with AVX-512."""
STARTS = 1
"""Annealed starts, times the solver's effort."""
TITLE = "Where channels mix"


@dataclass(frozen=True)
class Mixed:
    """Divisions of which some are equal, and what is worth telling of them."""

    divisions: dict[str, LayerDivision]
    table: RecordTable
    note: str


@dataclass(frozen=True)
class Choice:
    """What it means for one layer to be tied or free."""

    tied: float
    """Share of its importance that it keeps when all layers are tied."""
    free: float
    """Share that it keeps when all layers are free."""
    elements: int
    """That its Gather moves a sample."""


def mix(graph: Graph, divider: Divider, divisions: Divisions, share: float) -> Mixed:
    """Divisions whose Gathers take at most `share` of the network's time, as far as they can be avoided.

    `divisions` are those in which every layer divides its inputs freely, and every coupled set has one division of its
    channels for each number of groups; they are what comes back where their Gathers are within the share. The result is
    the same on every run.
    """
    importance = {name: divider.importance[name] for name in divisions}
    limit = Limit(share, macs_left(graph, divisions))
    cannot = untieable(graph, divisions)
    all_tied = linked(graph, divisions, importance, free=cannot)
    tied = _best(all_tied, divisions, divider)
    if_tied, if_free = divider.recovery(divided(all_tied, tied)), divider.recovery(divisions)
    choices = {
        name: Choice(if_tied[name], if_free[name], _input_elements(graph.layer(name)))
        for name in divisions
        if name not in cannot
    }
    wanted = gathers_of(divisions, graph)
    if limit.allows(wanted.elements):
        found = dict(divisions)
    else:
        found = divided(all_tied, tied)
        freed = _freed(all_tied, choices, limit, gathers_of(found, graph).elements)
        if freed:
            links = linked(graph, divisions, importance, free={*cannot, *freed})
            own = {links.reads[name]: tied[all_tied.reads[name]] for name in freed}
            found = divided(links, _best(links, divisions, divider, {**tied, **own}))
    gathers = gathers_of(found, graph)
    shares = f"{limit.taken(gathers.elements):.1%} of the network's time where {limit.taken(wanted.elements):.1%}"
    note = (
        f"{gathers.count} Gathers are left of {wanted.count}: an estimated {shares} would go to a free division of "
        "every layer's inputs"
    )
    return Mixed(found, _table(choices, cannot, found, gathers, note), note)


@dataclass(frozen=True)
class Limit:
    """The most time that Gathers may take, as a share of the whole."""

    share: float
    macs: int
    """Multiply-adds a sample of the network as planned."""

    def taken(self, elements: int) -> float:
        """The share of the time that it takes to move so many elements."""
        cost = elements * MACS_PER_ELEMENT
        return cost / (self.macs + cost) if cost else 0.0

    def allows(self, elements: int) -> bool:
        return self.taken(elements) <= self.share


def untieable(graph: Graph, divisions: Divisions) -> dict[str, str]:
    """The layers that need a Gather however they divide their inputs, and why.

    Only one number of groups can do without in each coupled set: that whose layers would move most.
    """
    moved: dict[str, dict[int, int]] = {}
    for name, division in divisions.items():
        layer = graph.layer(name)
        for coupled, elements in (
            (layer.reads, _input_elements(layer)),
            (layer.writes, layer.out_channels * layer.positions),
        ):
            by_groups = moved.setdefault(coupled, {})
            by_groups[division.groups] = by_groups.get(division.groups, 0) + elements
    cannot = {}
    for name, division in divisions.items():
        coupled_set = graph.coupled_set(graph.layer(name).reads)
        by_groups = moved[coupled_set.name]
        main = max(by_groups, key=lambda groups: by_groups[groups])  # of equals the first layer's
        if coupled_set.pinned:
            cannot[name] = "the order of these channels is fixed"
        elif coupled_set.parts:
            cannot[name] = "a concatenation"
        elif division.groups != main:
            cannot[name] = f"{main} groups elsewhere"
    return cannot


def linked(graph: Graph, divisions: Divisions, importance: Mapping[str, Matrix], free: Collection[str]) -> Links:
    """The partitions by which the layers write and read, where these layers read by one of their own."""
    writes: dict[str, Key] = {}
    reads: dict[str, Key] = {}
    for name, division in divisions.items():
        layer = graph.layer(name)
        writes[name] = ("set", layer.writes, division.groups)
        reads[name] = ("layer", name, division.groups) if name in free else ("set", layer.reads, division.groups)
    return Links(importance, writes, reads)


def divided(links: Links, partitions: Partitions) -> dict[str, LayerDivision]:
    """Each layer's division."""
    return {
        name: LayerDivision(key[2], partitions[key], partitions[links.reads[name]], in_order=True)
        for name, key in links.writes.items()
    }


def gathers_of(divisions: Divisions, graph: Graph) -> PlannedGathers:
    """The Gathers that are left under these divisions."""
    return planned_gathers({name: LayerPlan(name, *own.clusters()) for name, own in divisions.items()}, graph)


def macs_left(graph: Graph, divisions: Divisions) -> int:
    """Multiply-adds a sample of the network under these divisions."""
    groups = {name: division.groups for name, division in divisions.items()}
    return sum(layer.macs // groups.get(layer.name, 1) for layer in graph.layers)


def _best(links: Links, divisions: Divisions, divider: Divider, known: Partitions | None = None) -> Partitions:
    """The best that ascent finds from all starts; of equals the first start's."""
    seeds = range(divider.solver.seed, divider.solver.seed + STARTS * divider.solver.effort)
    starts = [known] if known else []
    starts += [numbered(links, divisions), *(annealed(links, seed) for seed in seeds)]
    return max((ascended(links, start) for start in starts), key=links.objective)


def _input_elements(layer: Layer) -> int:
    """Elements of its input tensor a sample."""
    return layer.in_channels * layer.input_positions


def _freed(links: Links, choices: Mapping[str, Choice], limit: Limit, elements: int) -> list[str]:
    """The layers to set free: the greatest gain for each element moved first, where it is within the limit.

    `elements`: moved by the Gathers that stand when all are tied.
    """

    def worth(name: str) -> float:
        choice = choices[name]
        return (choice.tied - choice.free) / max(choice.elements, 1)

    freed: list[str] = []
    for name in sorted(choices, key=worth):  # of equals the first layer
        choice, key = choices[name], links.reads[name]
        others = [other for other in links.layers[key] if links.writes[other] == key or other not in (*freed, name)]
        if choice.free > choice.tied and others and limit.allows(elements + choice.elements):
            freed.append(name)
            elements += choice.elements
    return freed


def _table(
    choices: Mapping[str, Choice], cannot: Mapping[str, str], divisions: Divisions, gathers: PlannedGathers, note: str
) -> RecordTable:
    rows = [
        (
            name,
            choices[name].tied if name in choices else cannot[name],
            choices[name].free if name in choices else "",
            gathers.inputs.get(name, 0),
            "yes" if name in gathers.inputs else "no",
        )
        for name in divisions
    ]
    columns = ("layer", "importance kept if tied", "if free", "elements moved", "Gather")
    text = (
        f"{note}. A tied layer reads the groups that the layers in front of it write; a free one divides its inputs as "
        "its own importance wants, through a Gather. The two shares of importance are those with all layers tied, and "
        "with all free; what a layer that cannot be tied says is why."
    )
    return RecordTable(TITLE, columns, tuple(rows), text)
