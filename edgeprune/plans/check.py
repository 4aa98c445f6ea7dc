"""Whether a plan can be carried out on a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgeprune.graph import CoupledSet, Graph, Layer
from edgeprune.plans.kept_channels import Kept, KeptChannels
from edgeprune.plans.plan import LayerPlan, Plan, SetPlan


def check_plan(plan: Plan, graph: Graph) -> list[str]:
    """Hold a plan against a network: a list of sentences, one a fault; empty if the plan can be carried out."""
    faults = list(_set_faults(plan.sets, graph))
    kept = None if faults else KeptChannels(plan, graph)
    faults.extend(_padding_faults(kept, graph) if kept else ())
    seen: set[str] = set()
    for entry in plan.layers:
        if entry.name not in graph:
            faults.append(f"{entry.name}: the network has no such layer.")
            continue
        if entry.name in seen:
            faults.append(f"{entry.name}: the plan names this layer twice.")
        seen.add(entry.name)
        layer = graph.layer(entry.name)
        if entry.left_out and (not layer.branch or layer.refusal or not entry.is_dense or entry.kept_filters):
            faults.append(f"{entry.name}: ends no branch that could be left out, or is changed as well.")
        if kept is not None and layer.name in kept.gone:
            if not entry.is_dense:
                faults.append(f"{entry.name}: is grouped, and its branch is left out: one of the two.")
            continue
        if entry.kept_filters:
            faults.extend(f"{entry.name}: {fault}" for fault in _branch_faults(entry, layer, kept))
        elif kept is not None and (not entry.is_dense or entry.inputs):
            faults.extend(
                f"{entry.name}: {fault}"
                for fault in _grouping_faults(entry, layer, kept.filters(layer), kept.inputs(layer))
            )
    faults.extend(
        f"{layer.name}: the plan says nothing of this layer." for layer in graph.layers if layer.name not in seen
    )
    if kept is not None:
        faults.extend(
            f"{layer.name}: {fault}"
            for layer in graph.layers
            if layer.groups > 1 and layer.name not in kept.gone
            for fault in _group_faults(layer, kept)
        )
    return faults


def _set_faults(sets: Sequence[SetPlan], graph: Graph) -> Iterator[str]:
    known = {coupled.name: coupled for coupled in graph.coupled_sets}
    seen: set[str] = set()
    for entry in sets:
        if entry.name not in known:
            yield f"{entry.name}: the network has no such coupled set."
            continue
        if entry.name in seen:
            yield f"{entry.name}: the plan names this coupled set twice."
        seen.add(entry.name)
        yield from (f"{entry.name}: {fault}" for fault in _one_set_faults(entry, known[entry.name], graph))


def _one_set_faults(entry: SetPlan, coupled: CoupledSet, graph: Graph) -> Iterator[str]:
    if coupled.pinned:
        yield f"the channels of this coupled set cannot change: {coupled.pinned}."
    if coupled.parts:
        yield "the channels of a concatenation follow from its parts and are not named."
    refused = [name for name in coupled.producers if graph.layer(name).refusal]
    if refused:
        yield f"{refused[0]} cannot be changed: {graph.layer(refused[0]).refusal}."
    if not entry.kept:
        yield "no channel is kept."
    if not _ascending(entry.kept, coupled.channels):
        yield f"the kept channels are not ascending numbers in 0..{coupled.channels - 1}."
    kept, standing_for = set(entry.kept), set[int]()
    for cluster in (*entry.merged, *((entry.constant,) if entry.constant else ())):
        if not cluster or not _ascending(cluster, coupled.channels):
            yield f"the clustered channels {cluster} are not ascending numbers in 0..{coupled.channels - 1}."
        elif cluster[0] not in kept or kept & set(cluster[1:]):
            yield f"of the channels {cluster} the first, and no other, must be kept."
        if standing_for & set(cluster):
            yield f"a channel of {cluster} is in two clusters."
        standing_for |= set(cluster)


def _group_faults(layer: Layer, kept: KeptChannels) -> Iterator[str]:
    """A convolution that comes in groups stays one only if all groups that are left are of one size."""
    left = kept.groups(layer)
    if len({(len(group.filters), len(group.inputs)) for group in left}) > 1:
        yield f"{layer.groups} groups that are left with different numbers of filters, or of input channels."
    around = (kept.inputs(layer), kept.filters(layer))
    if layer.is_grouped and any(side.merged or side.constant for side in around):
        yield "channels around a convolution that comes in groups cannot be merged."


def _padding_faults(kept: KeptChannels, graph: Graph) -> Iterator[str]:
    """Channels behind a zero padding are equal only if what the padding puts there is."""
    for padding in graph.paddings:
        held = kept.sets[padding.source].position
        for cluster in kept.sets[padding.target].merged:
            if len({held.get(channel - padding.lead) for channel in cluster}) > 1:
                yield (
                    f"{padding.target}: the channels {cluster} are merged, but the zero padding of {padding.source} "
                    "fills them from channels that are not."
                )


def _branch_faults(entry: LayerPlan, layer: Layer, kept: KeptChannels | None) -> Iterator[str]:
    if not layer.ends_branch or layer.kind == "linear" or layer.groups != 1:
        yield "only a convolution whose output goes into an add can leave out filters of its own."
    if layer.refusal:
        yield f"this layer cannot be changed: {layer.refusal}."
    if not entry.is_dense:
        yield "filters of its own are left out, and it is grouped: one of the two."
    if not _ascending(entry.kept_filters, layer.out_channels):
        yield f"the kept filters are not ascending numbers in 0..{layer.out_channels - 1}."
    elif kept is not None and not kept.sets[layer.writes].is_all:
        yield "filters of its own are left out, and its coupled set is thinned: one of the two."


def _grouping_faults(entry: LayerPlan, layer: Layer, kept_filters: Kept, kept_inputs: Kept) -> Iterator[str]:
    if layer.kind != "conv" or layer.groups != 1:
        yield "only a convolution with one group can be made grouped."
    if layer.refusal:
        yield f"this layer cannot be changed: {layer.refusal}."
    if len(entry.filters) != len(entry.inputs):
        yield f"{len(entry.filters)} groups of filters but {len(entry.inputs)} groups of input channels."
    for what, groups in (("have {} filters", entry.filters), ("read {} input channels", entry.inputs)):
        sizes = sorted({len(group) for group in groups})
        if len(sizes) > 1:
            yield f"groups {what.format(sizes)}, expected the same number in each."
    if any(not group for group in entry.inputs):
        yield "a group reads no input channel."
    if sorted(f for group in entry.filters for f in group) != list(kept_filters.index):
        yield f"the groups do not hold each of the {len(kept_filters.index)} filters exactly once."
    for number, group in enumerate(entry.inputs):
        if len(set(group)) != len(group):
            yield f"group {number} reads an input channel twice."
        if any(not 0 <= channel < layer.in_channels for channel in group):
            yield f"group {number} reads a channel outside 0..{layer.in_channels - 1}."
        elif not set(group) <= set(kept_inputs.index):
            yield f"group {number} reads a channel that is not kept."


def _ascending(channels: Sequence[int], count: int) -> bool:
    return list(channels) == sorted(set(channels)) and all(0 <= channel < count for channel in channels)
