"""Folding: BatchNorm into weights, and every permutation composed, moved and cancelled where the algebra allows.

The result computes what the rewritten model computes in eval mode, to rounding. All arithmetic is in float64; weights
return to their own type at the end. What no layer can absorb stays as a `Gather` (one index_select each).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from edgeprune.modules.filters import FILTER_LAYERS, FilterLayer, filters_first, filters_of, is_transposed
from edgeprune.modules.gather import Gather, insert_zero_filled
from edgeprune.modules.grouped_conv import GroupedConv2d
from edgeprune.modules.norms import NORM_TENSORS, NORMS, Norm, is_norm
from edgeprune.plans.layout import Demand, LayoutProblem, Padding, choose_layouts, in_layout, padded_sources
from edgeprune.plans.permutation import Selection, gather_between
from edgeprune.tracing.trace import Traced, trace


@dataclass(frozen=True)
class Folded:
    """A folded model, ready for export."""

    module: fx.GraphModule
    gathers_before: int
    """Non-trivial permutations when every grouped layer permutes its own input and output, and those that thinner
    layers brought with them."""
    gathers_after: int
    """Gathers left in `module`."""


def fold(model: nn.Module, example_input: Tensor) -> Folded:
    """Fold a (rewritten) model; the input model is left as it is. Raises InputError if it cannot be traced."""
    traced = trace(model, example_input)
    folding = _Folding(traced)
    return folding.run()


def fold_batch_norm(weight: Tensor, bias: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor]:
    """Weight (C_out, ...) and bias of conv followed by BN in eval mode, in float64.

    W' = W * gamma / sqrt(var + eps) and b' = beta + (b - mean) * gamma / sqrt(var + eps).
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() if bias is None else bias.double() - norm.running_mean.double()
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1)), shift


class _Folding:
    """One folding run over a traced copy of the model, which it may change."""

    def __init__(self, traced: Traced) -> None:
        self.traced, self.module = traced, traced.module
        self.modules = dict(self.module.named_modules())
        grouped = [module for module in self.modules.values() if isinstance(module, GroupedConv2d)]
        own = sum(isinstance(module, Gather) for module in self.modules.values())
        self.gathers_before = own + sum(module.gathers() for module in grouped)
        self.gathers_after = own
        self.channels = dict(traced.channels)  # grows by the Gathers that are inserted
        self.calls: dict[str, int] = {}
        for node in self.module.graph.nodes:
            if node.op == "call_module":
                self.calls[str(node.target)] = self.calls.get(str(node.target), 0) + 1
        self.layouts = choose_layouts(self.problem())

    def run(self) -> Folded:
        nodes = list(self.module.graph.nodes)
        absorbed = [self.absorb_norm(node) for node in nodes]
        norms = {norm.name for norm in absorbed if norm is not None}
        for node, norm in zip(nodes, absorbed, strict=True):
            if node.name in self.traced.paddings:
                self.fold_padding(node)
            elif node.op == "call_module" and node.name not in norms:
                self.fold_module(node, self.modules[str(node.target)], norm)
        for norm in absorbed:
            if norm is not None:
                norm.replace_all_uses_with(norm.args[0])  # type: ignore[arg-type]
                self.module.graph.erase_node(norm)
        for output in self.module.graph.find_nodes(op="output"):
            output.args = fx.node.map_aggregate(output.args, _tensor_or_none)
        self.module.delete_all_unused_submodules()
        self.module.graph.lint()
        self.module.recompile()
        return Folded(self.module.eval(), self.gathers_before, self.gathers_after)

    # -- layouts -----------------------------------------------------------------------------------------------------
    def problem(self) -> LayoutProblem:
        graph = self.traced.graph
        demands, paddings = [], []
        for node in self.module.graph.nodes:
            if node.op == "call_module" and isinstance(self.modules[str(node.target)], GroupedConv2d):
                entry = self.modules[str(node.target)].entry
                source = node.all_input_nodes[0]
                read = sum(map(len, entry.inputs)) * _positions(self.traced.shapes[source.name])
                written = sum(map(len, entry.filters)) * _positions(self.traced.shapes[node.name])
                layer = graph.layer(str(node.target))
                demands.append(Demand(layer.reads, entry.inputs, read))
                demands.append(Demand(layer.writes, entry.filters, written))
            elif node.name in self.traced.paddings:
                source = node.all_input_nodes[0]
                lead, trail = self.traced.paddings[node.name]
                channels, positions = self.traced.shapes[node.name][1], _positions(self.traced.shapes[node.name])
                paddings.append(Padding(self.set_of(source), self.set_of(node), lead, trail, channels * positions))
        return LayoutProblem(
            channels={s.name: s.channels for s in graph.coupled_sets},
            in_order=frozenset(s.name for s in graph.coupled_sets if s.in_order),
            demands=demands,
            paddings=paddings,
            concatenations=self.traced.concatenations,
        )

    def set_of(self, node: fx.Node) -> str:
        return self.channels[node.name].coupled_set

    def layout(self, node: fx.Node) -> Selection:
        return self.layouts[self.set_of(node)]

    # -- BatchNorm ---------------------------------------------------------------------------------------------------
    def absorb_norm(self, node: fx.Node) -> fx.Node | None:
        """The BatchNorm node behind this conv or linear layer, if it can go into its weights."""
        if node.op != "call_module" or len(node.users) != 1 or not self.is_folded(node):
            return None
        if type(self.modules[str(node.target)]) not in (*FILTER_LAYERS, GroupedConv2d):
            return None
        user = next(iter(node.users))
        if user.op != "call_module" or self.calls[str(user.target)] > 1:
            return None
        norm = self.modules[str(user.target)]
        foldable = is_norm(norm) and norm.running_mean is not None
        rank = 2 if isinstance(self.modules[str(node.target)], nn.Linear) else 4
        return user if foldable and len(self.traced.shapes[node.name]) == rank else None

    # -- layers ------------------------------------------------------------------------------------------------------
    def is_folded(self, node: fx.Node) -> bool:
        """Whether anything becomes of a module: not of one that is opaque or shared, whose sets keep their order, nor
        of a layer whose place is not understood."""
        if node.name not in self.channels or self.calls[str(node.target)] > 1:
            return False
        name = str(node.target)
        return name not in self.traced.graph or bool(self.traced.graph.layer(name).reads)

    def fold_module(self, node: fx.Node, module: nn.Module, norm_node: fx.Node | None) -> None:
        norm = None if norm_node is None else self.modules[str(norm_node.target)]
        if not self.is_folded(node):
            return
        if isinstance(module, GroupedConv2d):
            self.fold_grouped(node, module, norm)
        elif type(module) in FILTER_LAYERS:
            self.fold_dense(str(node.target), module, norm)  # type: ignore[arg-type]
        elif isinstance(module, NORMS):
            self.permute(node, module, NORM_TENSORS)
        elif isinstance(module, nn.PReLU) and module.num_parameters > 1:
            self.permute(node, module, ("weight",))

    def fold_dense(self, name: str, module: FilterLayer, norm: nn.Module | None) -> None:
        layer = self.traced.graph.layer(name)
        weight, bias = _folded(filters_of(module), module.bias, norm)
        writes = self.layouts[layer.writes].array()
        weight = weight[writes]
        bias = None if bias is None else bias[writes]
        if layer.groups == 1:  # else depthwise, which follows, or grouped: these read and write in order
            weight = weight[:, self.layouts[layer.reads].repeated_blocks(layer.features_per_channel).array()]
        _set_weights(module, filters_first(weight, transposed=is_transposed(module)), bias)

    def fold_grouped(self, node: fx.Node, module: GroupedConv2d, norm: nn.Module | None) -> None:
        source, layer = node.all_input_nodes[0], self.traced.graph.layer(str(node.target))
        held, wanted = self.layouts[layer.reads], self.layouts[layer.writes]
        weight, bias = _folded(module.weight, module.bias, _permuted_norm(norm, module.writes))
        # The order inside a group is free on both sides: take the tensors' own, so that equal blocks need no Gather.
        inputs, filters = in_layout(module.entry.inputs, held), in_layout(module.entry.filters, wanted)
        size = len(filters[0])
        rows = []
        for group in range(module.groups):
            kernels = weight[group * size : (group + 1) * size]
            columns = [module.entry.inputs[group].index(channel) for channel in inputs[group]]
            order = [module.entry.filters[group].index(filter_) for filter_ in filters[group]]
            rows.append(kernels[order][:, columns])
        writes = Selection.concatenated(filters, module.out_channels)
        permuted = None if bias is None else bias[module.writes.inverse().then(writes).array()]
        conv = module.plain_conv(torch.cat(rows), permuted, groups=module.groups).requires_grad_(False)
        name = str(node.target)
        self.module.add_submodule(name, conv)
        self.modules[name] = conv
        self.insert_gather(
            f"{name}.input_gather", source, node, gather_between(held, Selection.concatenated(inputs, len(held)))
        )
        self.insert_gather_after(f"{name}.output_gather", node, gather_between(writes, wanted))

    def permute(self, node: fx.Node, module: nn.Module, names: Sequence[str]) -> None:
        """Put tensors with a value for each feature into the order in which the channels are held."""
        held = self.layout(node).repeated_blocks(self.channels[node.name].features).array()
        for name in names:
            tensor = getattr(module, name)
            if tensor is not None:
                tensor.data = tensor.data[held]

    def fold_padding(self, node: fx.Node) -> None:
        """Zero channels: plain padding where that gives the layout, else one zero channel and a Gather."""
        source = node.all_input_nodes[0]
        lead, trail = self.traced.paddings[node.name]
        held, wanted = self.layout(source), self.layout(node)
        padding = Padding(self.set_of(source), self.set_of(node), lead, trail, 0)
        picked = padded_sources(padding, held, wanted)
        channels = len(held)
        if picked == (*(None,) * lead, *range(channels), *(None,) * trail):
            return
        gather = insert_zero_filled(self.module, node, source, picked, channels, f"{node.name}_gather")
        self.channels[gather.name] = self.channels[node.name]
        self.gathers_after += 1
        node.replace_all_uses_with(gather)
        self.module.graph.erase_node(node)

    def insert_gather(self, name: str, source: fx.Node, consumer: fx.Node, selection: Selection) -> None:
        if selection.is_identity:
            return
        self.module.add_submodule(name, Gather(selection))
        with self.module.graph.inserting_before(consumer):
            gather = self.module.graph.call_module(name, (source,))
        consumer.replace_input_with(source, gather)
        self.gathers_after += 1

    def insert_gather_after(self, name: str, producer: fx.Node, selection: Selection) -> None:
        if selection.is_identity:
            return
        self.module.add_submodule(name, Gather(selection))
        with self.module.graph.inserting_after(producer):
            gather = self.module.graph.call_module(name, (producer,))
        self.channels[gather.name] = self.channels[producer.name]
        producer.replace_all_uses_with(gather, delete_user_cb=lambda user: user is not gather)
        self.gathers_after += 1


def _folded(weight: Tensor, bias: Tensor | None, norm: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if norm is None:
        return weight.double(), None if bias is None else bias.double()
    assert isinstance(norm, NORMS)
    with torch.no_grad():
        return fold_batch_norm(weight, bias, norm)


def _permuted_norm(norm: nn.Module | None, writes: Selection) -> nn.Module | None:
    """A BN for the channels in the order in which a grouped convolution writes them."""
    if norm is None:
        return None
    assert isinstance(norm, NORMS)
    permuted = nn.BatchNorm2d(len(writes), eps=norm.eps, affine=norm.weight is not None)
    order = writes.array()
    for name in NORM_TENSORS:
        tensor = getattr(norm, name)
        if tensor is not None:
            getattr(permuted, name).data = tensor.data[order]
    return permuted


def _set_weights(module: FilterLayer, weight: Tensor, bias: Tensor | None) -> None:
    dtype = module.weight.dtype
    module.weight = nn.Parameter(weight.to(dtype).contiguous(), requires_grad=False)
    module.bias = None if bias is None else nn.Parameter(bias.to(dtype).contiguous(), requires_grad=False)


def _positions(shape: tuple[int, ...]) -> int:
    positions = 1
    for size in shape[2:]:
        positions *= size
    return positions


def _tensor_or_none(output: fx.node.Argument) -> fx.node.Argument:
    """What a forward returns besides tensors, such as a name or a count, has no place in an exported file."""
    return output if isinstance(output, fx.Node) else None
