"""Thinner layers: the channels that a plan does not keep are cut out of a model's weights, BatchNorms and graph.

All that a layer loses is decided by `KeptChannels`; here its weights follow. Where the forward itself counts channels
(zero padding, a branch that leaves filters out of an add, a view with a literal size) the model becomes its fx graph.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edgeprune.errors import InputError
from edgeprune.graph import Graph, Layer
from edgeprune.modules.filters import FilterLayer, filters_first, filters_of, is_transposed
from edgeprune.modules.fx_nodes import into_add
from edgeprune.modules.gather import ChannelMask, insert_zero_filled
from edgeprune.modules.norms import NORM_TENSORS
from edgeprune.plans.kept_channels import Kept, KeptChannels
from edgeprune.plans.permutation import Selection
from edgeprune.plans.plan import Plan
from edgeprune.rewriting.branches import leave_out, zeros_of
from edgeprune.tracing.channel_calls import set_literal_features
from edgeprune.tracing.channel_parts import set_slice, set_split_sizes
from edgeprune.tracing.constants import Values, constants_by_reader
from edgeprune.tracing.trace import Traced, trace

DROPOUTS: Mapping[object, type[nn.Module]] = {F.dropout: nn.Dropout, F.dropout2d: nn.Dropout2d}


def thin(model: nn.Module, plan: Plan, graph: Graph) -> nn.Module:
    """`model`, which is changed, or its fx graph, without the channels that the plan does not keep."""
    kept = KeptChannels(plan, graph)
    constants = constants_by_reader(model, graph) if any(entry.constant for entry in plan.sets) else {}
    traced = trace(model, _example(model, graph))
    if _counts_channels(traced, plan, kept) or kept.gone:
        model = _thin_graph(traced, plan, kept)
    there = dict(model.named_modules())
    for layer in graph.layers:
        if layer.name not in there:
            continue
        _thin_layer(model.get_submodule(layer.name), layer, kept, constants.get(layer.name))  # type: ignore[arg-type]
    for norm in graph.norms:
        if norm.name not in there:
            continue
        left = features_left(kept.norm(norm, graph), norm.features_per_channel)
        _thin_norm(model.get_submodule(norm.name), left)
    for slopes in graph.slopes:
        if slopes.name not in there:
            continue
        left = features_left(kept.sets[slopes.coupled_set], slopes.features_per_channel)
        _thin_slopes(model.get_submodule(slopes.name), left)  # type: ignore[arg-type]
    return model


def features_left(channels: Kept, features: int) -> Selection:
    """The features that are left of a tensor in which each channel is so many consecutive ones."""
    return Selection(channels.index, channels.channels).repeated_blocks(features)


def reduced_columns(weight: Tensor, layer: Layer, inputs: Kept, constants: Values | None = None) -> Tensor:
    """The weight (C_out, C_in * features, ...) on the input channels that are left.

    Equal channels are read once, with the sum of their columns; constant ones once, with the sum of their columns in
    proportion to `constants` (C_in,).
    """
    features = layer.features_per_channel
    columns = weight.reshape(len(weight), -1, features, *weight.shape[2:])  # (C_out, C_in, features, ...)
    reduced = columns[:, list(inputs.index)]
    for cluster in inputs.merged:
        reduced[:, inputs.position[cluster[0]]] = columns[:, list(cluster)].sum(1)
    for cluster in inputs.constant:
        assert constants is not None
        values = torch.from_numpy(constants[list(cluster)]).to(weight)
        if not values.isfinite().all():
            raise InputError(
                f"the plan takes the channels {cluster} that {layer.name} reads for constant, and they are not",
                remedy="use the plan with the weights that it was made for",
            )
        if values[0] != 0:  # else they are zero for this reader, all of them
            scaled = columns[:, list(cluster)] * (values / values[0]).reshape(1, -1, *[1] * (columns.dim() - 2))
            reduced[:, inputs.position[cluster[0]]] = scaled.sum(1)
    return reduced.flatten(1, 2)


def group_places(layer: Layer, kept: KeptChannels) -> tuple[Tensor, Tensor]:
    """Where in the weight (C_out, C_in / groups, ...) of a grouped layer is what it keeps: indices (rows, 1) and
    (rows, columns)."""
    places = [(row, group.inputs) for group in kept.groups(layer) for row in group.filters]
    return torch.tensor([[row] for row, _ in places]), torch.tensor([columns for _, columns in places])


@torch.no_grad()
def _thin_layer(module: FilterLayer, layer: Layer, kept: KeptChannels, constants: Values | None) -> None:
    filters, inputs = kept.filters(layer), kept.inputs(layer)
    if filters.is_all and inputs.is_all:
        return
    weight = filters_of(module)
    if layer.groups > 1:
        weight = weight[group_places(layer, kept)]
    else:
        weight = reduced_columns(weight, layer, inputs, constants)[list(filters.index)]
    weight = filters_first(weight, transposed=is_transposed(module))
    module.weight = _parameter(weight.contiguous(), module.weight)
    if module.bias is not None:
        module.bias = _parameter(module.bias[list(filters.index)], module.bias)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
        return
    module.out_channels, module.in_channels = len(filters.index), len(inputs.index)
    if layer.groups > 1:
        module.groups = len(kept.groups(layer))


@torch.no_grad()
def _thin_norm(norm: nn.Module, features: Selection) -> None:
    if features.is_identity:
        return
    if hasattr(norm, "num_features"):
        norm.num_features = len(features)  # type: ignore[assignment]
    for name in NORM_TENSORS:
        tensor = getattr(norm, name)
        if isinstance(tensor, nn.Parameter):
            setattr(norm, name, _parameter(tensor[features.array()], tensor))
        elif tensor is not None:
            setattr(norm, name, tensor[features.array()])


@torch.no_grad()
def _thin_slopes(module: nn.PReLU, features: Selection) -> None:
    module.num_parameters = len(features)
    module.weight = _parameter(module.weight[features.array()], module.weight)


def _parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    """What was frozen stays frozen."""
    return nn.Parameter(values, requires_grad=like.requires_grad)


# -- where the forward counts channels ---------------------------------------------------------------------------------
def _counts_channels(traced: Traced, plan: Plan, kept: KeptChannels) -> bool:
    if traced.counts_channels:
        return True
    counted = {s for p in traced.graph.paddings for s in (p.source, p.target)}
    counted |= {traced.channels[name].coupled_set for name in traced.literal_views}
    counted |= {part for parts in traced.splits.values() for part in parts}
    counted |= {part for taken in traced.slices.values() for part in taken.parts}
    return any(not kept.sets[name].is_all for name in counted) or any(entry.kept_filters for entry in plan.layers)


def _thin_graph(traced: Traced, plan: Plan, kept: KeptChannels) -> fx.GraphModule:
    nodes = list(traced.module.graph.nodes)
    paddings = {node.name: _sides(traced, node, kept) for node in nodes if node.name in traced.paddings}
    for node in nodes:
        if node.name in paddings:
            _thin_padding(traced, node, *paddings[node.name])
        elif node.name in traced.splits:
            set_split_sizes(node, [len(kept.sets[part].index) for part in traced.splits[node.name]])
        elif node.name in traced.slices:
            part = traced.slices[node.name]
            sizes = [len(kept.sets[name].index) for name in part.parts]
            start = sum(sizes[: part.number])
            set_slice(node, part, start, start + sizes[part.number])
        elif node.name in traced.literal_views:
            channels = traced.channels[node.name]
            set_literal_features(node, len(kept.sets[channels.coupled_set].index) * channels.features)
        elif node.target in DROPOUTS:
            _revive_dropout(traced.module, node)
        elif node.op == "call_module":
            entry = next((e for e in plan.layers if e.name == node.target and e.kept_filters), None)
            if entry is not None:
                layer = traced.graph.layer(entry.name)
                _fill_up(traced.module, node, layer, Kept(layer.out_channels, entry.kept_filters))
    leave_out(traced.module, {entry.name for entry in plan.layers if entry.left_out})
    traced.module.graph.lint()
    traced.module.recompile()
    return traced.module


def _sides(traced: Traced, padding: fx.Node, kept: KeptChannels) -> tuple[Kept, Kept]:
    """What is left of the channels before and behind a zero padding; asked before any node is replaced."""
    source = padding.all_input_nodes[0]
    before, behind = (kept.sets[traced.channels[node.name].coupled_set] for node in (source, padding))
    return before, behind


def _thin_padding(traced: Traced, node: fx.Node, held: Kept, wanted: Kept) -> None:
    lead, _ = traced.paddings[node.name]
    source = node.all_input_nodes[0]
    picked = [held.position.get(channel - lead) for channel in wanted.index]
    filled = insert_zero_filled(traced.module, node, source, picked, len(held.index), f"{node.name}_gather")
    node.replace_all_uses_with(filled)
    traced.module.graph.erase_node(node)


def _revive_dropout(module: fx.GraphModule, node: fx.Node) -> None:
    """A call of F.dropout was traced in eval mode, which it would keep for ever: a module follows the model's mode."""
    given = dict(zip(("input", "p", "training", "inplace"), node.args, strict=False)) | dict(node.kwargs)
    module.add_submodule(f"{node.name}_module", DROPOUTS[node.target](given.get("p", 0.5)))
    with module.graph.inserting_before(node):
        live = module.graph.call_module(f"{node.name}_module", (given["input"],))
    node.replace_all_uses_with(live)
    module.graph.erase_node(node)


def with_masked_paddings(model: nn.Module, plan: Plan, graph: Graph) -> nn.Module:
    """The original model, where zero padding takes no channel along that was cut on either side of it."""
    kept = KeptChannels(plan, graph)
    if all(kept.sets[p.source].is_all and kept.sets[p.target].is_all for p in graph.paddings):
        return model
    example = _example(model, graph)
    traced = trace(model, example)
    nodes = [node for node in traced.module.graph.nodes if node.name in traced.paddings]
    sides = [
        [kept.sets[traced.channels[n.name].coupled_set] for n in (node.all_input_nodes[0], node)] for node in nodes
    ]
    for node, (source, target) in zip(nodes, sides, strict=True):
        lead, _ = traced.paddings[node.name]
        padded = range(lead, lead + source.channels)
        standing = [c for c in target.position if c not in padded or c - lead in source.position]
        name = f"{node.name}_mask"
        traced.module.add_submodule(name, ChannelMask(standing, target.channels, example.dtype))
        with traced.module.graph.inserting_after(node):
            mask = traced.module.graph.call_module(name, (node,))
        node.replace_all_uses_with(mask, delete_user_cb=lambda user, mask=mask: user is not mask)
    traced.module.recompile()
    return traced.module


def _fill_up(module: fx.GraphModule, node: fx.Node, layer: Layer, filters: Kept) -> None:
    """Zeros in the place of the filters that the end of a branch leaves out, so that it can be added."""
    last, add = into_add(node)
    picked = [filters.position.get(channel) for channel in range(filters.channels)]
    filled = insert_zero_filled(module, add, last, picked, len(filters.index), f"{layer.name}.output_gather")
    add.replace_input_with(last, filled)


def _example(model: nn.Module, graph: Graph) -> Tensor:
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return torch.zeros(1, *graph.input_shape, dtype=dtype)


def expanded(state: Mapping[str, Tensor], plan: Plan, graph: Graph, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a thinned model in the shapes of the original one, zeros where something was cut.

    `state`: the thinned model's tensors by key, grouped convolutions as dense ones; `like`: the original's. A channel
    that was cut is zero behind its BatchNorm; one that was merged equals the one that stands for it, and is not read.
    """
    kept = KeptChannels(plan, graph)
    full = {key: state[key].clone() if key in state else tensor.clone() for key, tensor in like.items()}
    full |= zeros_of([layer for layer in graph.layers if layer.name in kept.gone], like)
    for layer in graph.layers:
        if layer.name in kept.gone:
            continue
        filters, inputs = kept.filters(layer), kept.inputs(layer)
        is_transposed = layer.kind == "conv_transpose" and layer.groups == 1
        weight = filters_first(state[f"{layer.name}.weight"], transposed=is_transposed)
        if layer.groups > 1:
            spread = torch.zeros_like(like[f"{layer.name}.weight"])
            spread[group_places(layer, kept)] = weight
        else:
            weight = _spread(weight.transpose(0, 1), inputs, layer.features_per_channel).transpose(0, 1)
            spread = _spread(weight, filters)
        full[f"{layer.name}.weight"] = filters_first(_copied(spread, filters), transposed=is_transposed)
        if layer.has_bias:
            full[f"{layer.name}.bias"] = _copied(_spread(state[f"{layer.name}.bias"], filters), filters)
    for norm in graph.norms:
        channels, features = kept.norm(norm, graph), norm.features_per_channel
        for key, blank in ((f"{norm.name}.{name}", float(name == "running_var")) for name in NORM_TENSORS):
            if key in state:
                full[key] = _copied(_spread(state[key], channels, features, blank), channels, features)
    for slopes in graph.slopes:
        channels, features = kept.sets[slopes.coupled_set], slopes.features_per_channel
        if (key := f"{slopes.name}.weight") not in state:
            continue
        full[key] = _copied(_spread(state[key], channels, features), channels, features)
    return full


def _spread(values: Tensor, channels: Kept, features: int = 1, blank: float = 0.0) -> Tensor:
    """(kept * features, ...) -> (channels * features, ...): what is left in its original place, `blank` elsewhere."""
    places = features_left(channels, features)
    full = values.new_full((places.source, *values.shape[1:]), blank)
    full[places.array()] = values
    return full


def _copied(values: Tensor, channels: Kept, features: int = 1) -> Tensor:
    """(channels * features, ...): merged channels get the values of the one that stands for them."""
    blocks = values.reshape(channels.channels, features, *values.shape[1:])
    for cluster in channels.merged:
        blocks[list(cluster)] = blocks[cluster[0]].clone()
    return blocks.reshape(values.shape)
