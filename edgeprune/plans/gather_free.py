"""A plan without Gathers: what needs one stays dense.

A dense layer reads and writes any layout for free, so a layer that is not put into groups takes the Gathers around it
along, and gives up the multiply-adds that its groups would have saved.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edgeprune.errors import InputError
from edgeprune.graph import Graph
from edgeprune.plans.gathers import PlannedGathers, planned_gathers
from edgeprune.plans.plan import LayerPlan, Plan

NOTE = "stays dense: its groups would need a Gather"
WHOLE = "keeps all filters: an addition without some of them needs a Gather"


def without_gathers(plan: Plan, graph: Graph) -> Plan:
    """The plan with as many of its groups as need no Gather; each layer whose groups go has a note that says so.

    One layer after another goes, the one whose Gathers move most for each multiply-add that its groups save; where
    Gathers stand in shortcuts alone, all that share the channels of one. InputError
    if nothing is left of the plan.
    """
    grouped = plan.grouped()
    while (gathers := planned_gathers(grouped, graph)).count:
        beside = [name for name in grouped if name in gathers.inputs or name in gathers.outputs]
        if beside:
            gone = [max(beside, key=lambda name: _moved_a_mac(name, gathers, grouped, graph))]
        else:
            gone = _around_cheapest_padding(grouped, graph)
        for name in gone:
            del grouped[name]
    if plan.grouped() and not grouped and not plan.thins:
        raise needs_gathers(plan.method)
    dense = plan.grouped().keys() - grouped.keys()
    layers = tuple(LayerPlan(entry.name, note=NOTE) if entry.name in dense else _whole(entry) for entry in plan.layers)
    return msgspec.structs.replace(plan, layers=layers)


def _whole(entry: LayerPlan) -> LayerPlan:
    """The layer with all filters at the end of a residual branch."""
    return msgspec.structs.replace(entry, kept_filters=(), note=WHOLE) if entry.kept_filters else entry


def needs_gathers(method: str) -> InputError:
    """What to say of a method that can do nothing without Gathers."""
    others = "" if method == "gconv" else "--method gconv, whose groups share no channels, or "
    return InputError(
        f"every layer that {method} puts into groups needs a Gather, and none shall be left",
        where="without Gathers (--gathers none, or --to ncnn)",
        remedy=f"choose {others}gkp-cal with a --budget; or leave Gathers in (--gathers any, and no --to ncnn)",
    )


def _around_cheapest_padding(grouped: Mapping[str, LayerPlan], graph: Graph) -> list[str]:
    """Where Gathers stand in zero-channel shortcuts alone: all layers that read or write the set of channels, of those
    beside the shortcuts, whose groups save least."""
    around: dict[str, list[str]] = {}
    for padding in graph.paddings:
        for coupled in (padding.source, padding.target):
            layers = [name for name in grouped if coupled in (graph.layer(name).reads, graph.layer(name).writes)]
            if layers:
                around[coupled] = layers
    return min(around.values(), key=lambda names: sum(_saved(name, grouped, graph) for name in names))


def _moved_a_mac(name: str, gathers: PlannedGathers, grouped: Mapping[str, LayerPlan], graph: Graph) -> float:
    moved = gathers.inputs.get(name, 0) + gathers.outputs.get(name, 0)
    return moved / max(_saved(name, grouped, graph), 1)


def _saved(name: str, grouped: Mapping[str, LayerPlan], graph: Graph) -> float:
    """Multiply-adds that the layer's groups save."""
    layer, entry = graph.layer(name), grouped[name]
    kernels = sum(len(f) * len(i) for f, i in zip(entry.filters, entry.inputs, strict=True))
    return layer.macs * (1 - kernels / (layer.out_channels * layer.in_channels))
