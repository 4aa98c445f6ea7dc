"""Where GConv's channels mix: which grouped layers divide the channels that they read as those in front of them do.

A layer that divides its input channels as its own importance wants needs a Gather in front of it wherever another
grouped layer writes or reads the same channels. A *tied* layer reads the groups that are there already, and keeps less
importance. All layers are tied first; those whose gain is worth their Gather are then set free (see `freeing`). A
Gather's cost is that of the multiply-adds that could be done in its time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgeprune.devices.prices import DevicePrices
from edgeprune.graph import Graph, Layer
from edgeprune.io import formatting as f
from edgeprune.methods.gconv.divider import Divider, Divisions, LayerDivision
from edgeprune.methods.gconv.freeing import Choice, Terms, freed_layers
from edgeprune.methods.gconv.on_devices import mixed_on_devices
from edgeprune.methods.gconv.partitions import Key, Links, Partitions, annealed, ascended, numbered
from edgeprune.methods.gconv.solver import Matrix
from edgeprune.methods.shared.clustering import Labels
from edgeprune.plans.gathers import PlannedGathers, planned_gathers, planned_layouts
from edgeprune.plans.method_record import RecordTable
from edgeprune.plans.plan import LayerPlan

MACS_PER_ELEMENT = 28
USUAL = DevicePrices("", MACS_PER_ELEMENT)
"""Where a share of the time is asked for: multiply-adds of a fast convolution in the time in which one element goes
through a Gather and the reordering of data around it, as measured with ONNX Runtime on a CPU with AVX-512. Not the
device profile's: plans are then equal anywhere."""
STARTS = 1
"""Annealed starts, times the solver's effort."""
TITLE = "Where channels mix"


ROUNDS = 4
"""How often ascent goes on where layouts that it changed decide how a concatenation or fixed channels are read."""


@dataclass(frozen=True)
class Mixed:
    """Divisions of which some are equal, and what is worth telling of them."""

    divisions: dict[str, LayerDivision]
    table: RecordTable
    note: str


def mix(
    graph: Graph, divider: Divider, divisions: Divisions, share: float | None, price: DevicePrices = USUAL
) -> Mixed:
    """Divisions whose Gathers take at most `share` of the network's time, as far as they can be avoided; or, without
    one, those in which every Gather that can be avoided is worth its price.

    `divisions` are those in which every layer divides its inputs freely, and every coupled set has one division of its
    channels for each number of groups; they are what comes back where their Gathers are within the share. The result is
    the same on every run.
    """
    terms = Terms(price, share, _layers_cost(graph, divisions, price))
    cannot = untieable(graph, divisions)
    tied = tie(graph, divisions, divider, free=cannot)
    if_tied, if_free = divider.recovery(tied.divisions()), divider.recovery(divisions)
    choices = {
        name: _choice(graph.layer(name), division.groups, price, if_tied[name], if_free[name])
        for name, division in divisions.items()
        if name not in cannot
    }
    wanted = gathers_of(divisions, graph)
    if terms.allows(terms.cost(wanted)):
        found = dict(divisions)
    else:
        found = tied.divisions()
        freed = freed_layers(tied.links, choices, terms, terms.cost(gathers_of(found, graph)))
        if freed:
            found = tie(graph, divisions, divider, free={*cannot, *freed}, known=tied).divisions()
    gathers = gathers_of(found, graph)
    note = _note(terms, gathers, wanted)
    tied_still = [name for name in choices if name not in gathers.inputs]
    local = mixed_on_devices(graph, divider, found, tied_still, price)
    if mixed := sum(division is not found[name] for name, division in local.items()):
        note += f"; {f.plural(mixed, 'layer')} more mix the channels of one device among its groups, without exchange"
    return Mixed(local, _table(choices, cannot, local, gathers_of(local, graph), note), note)


def _choice(layer: Layer, groups: int, price: DevicePrices, tied: float, free: float) -> Choice:
    elements = _input_elements(layer)
    own = price.convolution(layer.macs // groups, layer.out_channels // groups)
    return Choice(tied, free, elements, price.gather(elements), own)


def _layers_cost(graph: Graph, divisions: Divisions, price: DevicePrices) -> float:
    """What all layers cost a sample under these divisions, in multiply-adds at full rate."""
    groups = {layer.name: divisions[layer.name].groups if layer.name in divisions else 1 for layer in graph.layers}
    return sum(
        price.convolution(layer.macs // groups[layer.name], layer.out_channels // groups[layer.name])
        for layer in graph.layers
    )


def _note(terms: Terms, gathers: PlannedGathers, wanted: PlannedGathers) -> str:
    """How many Gathers are left, of those of a free division, and the time that they take."""
    cost = terms.cost(gathers)
    shares = f"{terms.taken(cost):.1%} of the network's time where {terms.taken(terms.cost(wanted)):.1%}"
    left = f"{gathers.count} of {wanted.count} Gathers remain"
    if terms.share is None:
        left += f", priced for {terms.price.device}"
    note = f"{left}: an estimated {shares} would go to a free division of every layer's inputs"
    if terms.share is not None and not terms.allows(cost):
        note += f"; more than the {terms.share:.1%} asked for, but no division of channels avoids these"
    return note


@dataclass(frozen=True)
class Tied:
    """Partitions of a network in which all layers but some read those that are there already."""

    links: Links
    partitions: Partitions

    def divisions(self) -> dict[str, LayerDivision]:
        """Each layer's division."""
        return {
            name: LayerDivision(groups, *self.links.sides(name, self.partitions), in_order=True)
            for name, groups in self.links.groups.items()
        }


def untieable(graph: Graph, divisions: Divisions) -> dict[str, str]:
    """The layers that need a Gather however they divide their inputs, and why."""
    finest = finest_groups(graph, divisions)
    return {
        name: f"{finest[coupled]} groups elsewhere"
        for name, division in divisions.items()
        if (coupled := graph.layer(name).reads) not in held_sets(graph) and finest[coupled] % division.groups
    }


def finest_groups(graph: Graph, divisions: Divisions) -> dict[str, int]:
    """Coupled set -> the number of groups of its partition: that whose divisors' layers would move most."""
    moved: dict[str, dict[int, int]] = {}
    for name, division in divisions.items():
        layer = graph.layer(name)
        for coupled, elements in (
            (layer.reads, _input_elements(layer)),
            (layer.writes, layer.out_channels * layer.positions),
        ):
            by_groups = moved.setdefault(coupled, {})
            by_groups[division.groups] = by_groups.get(division.groups, 0) + elements

    def agreeing(by_groups: Mapping[int, int], finest: int) -> int:
        return sum(elements for groups, elements in by_groups.items() if finest % groups == 0)

    return {
        coupled: max(by_groups, key=lambda groups: agreeing(by_groups, groups))  # of equals the first layer's
        for coupled, by_groups in moved.items()
    }


def held_sets(graph: Graph) -> frozenset[str]:
    """The coupled sets whose layout something else decides: a concatenation, or an order that is fixed.

    Groups of neighbouring channels need no Gather there, whatever their number.
    """
    return frozenset(coupled.name for coupled in graph.coupled_sets if coupled.in_order or coupled.parts)


def linked(graph: Graph, divisions: Divisions, importance: Mapping[str, Matrix], free: Collection[str]) -> Links:
    """The partitions by which the layers write and read, where these layers read by one of their own."""
    finest = finest_groups(graph, divisions)

    def shared(coupled: str, groups: int) -> Key:
        return ("set", coupled, groups if finest[coupled] % groups else finest[coupled])

    writes: dict[str, Key] = {}
    reads: dict[str, Key] = {}
    for name, division in divisions.items():
        layer, groups = graph.layer(name), division.groups
        writes[name] = shared(layer.writes, groups)
        reads[name] = ("layer", name, groups) if name in free else shared(layer.reads, groups)
    links = Links(importance, writes, reads, {name: division.groups for name, division in divisions.items()})
    return _holding(links, graph, {})


def tie(graph: Graph, divisions: Divisions, divider: Divider, free: Collection[str], known: Tied | None = None) -> Tied:
    """The best partitions that are found where only these layers read by one of their own; `known` are without them."""
    importance = {name: divider.importance[name] for name in divisions}
    links = linked(graph, divisions, importance, free)
    start: Partitions | None = None
    if known:
        own = {key: known.links.sides(name, known.partitions)[1] for name, key in links.reads.items() if name in free}
        start = {**known.partitions, **own, **links.held}
    found: Partitions = _best(links, divisions, divider, start)
    for _ in range(ROUNDS if links.held else 0):
        found = ascended(links, found)
        links = _holding(links, graph, Tied(links, found).divisions())
        found = {**found, **links.held}
    return Tied(links, found)


def _holding(links: Links, graph: Graph, divisions: Divisions) -> Links:
    """The same where concatenations and channels in a fixed order are divided as they lie under these divisions."""
    held = held_sets(graph)
    keys = {key for keys in (links.writes, links.reads) for key in keys.values() if key[0] == "set" and key[1] in held}
    if not keys:
        return links
    layouts = planned_layouts(_entries(divisions), graph)
    found: dict[Key, Labels] = {}
    for key in sorted(keys):
        order = layouts[key[1]].array()
        labels = np.empty(len(order), dtype=np.int64)
        labels[order] = np.arange(len(order)) * key[2] // len(order)
        found[key] = labels
    return replace(links, held=found)


def _entries(divisions: Divisions) -> dict[str, LayerPlan]:
    return {name: LayerPlan(name, *own.clusters()) for name, own in divisions.items()}


def gathers_of(divisions: Divisions, graph: Graph) -> PlannedGathers:
    """The Gathers that are left under these divisions."""
    return planned_gathers(_entries(divisions), graph)


def _best(links: Links, divisions: Divisions, divider: Divider, known: Partitions | None = None) -> Partitions:
    """The best that ascent finds from all starts; of equals the first start's."""
    seeds = range(divider.solver.seed, divider.solver.seed + STARTS * divider.solver.effort)
    starts: list[Partitions] = [known] if known else []
    starts += [numbered(links, divisions), *(annealed(links, seed) for seed in seeds)]
    return max((ascended(links, start) for start in starts), key=links.objective)


def _input_elements(layer: Layer) -> int:
    """Elements of its input tensor a sample."""
    return layer.in_channels * layer.input_positions


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
