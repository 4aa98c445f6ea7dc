"""One walk over an fx graph that finds the layers and the coupled sets of their channels.

Each tensor's channel axis belongs to one coupled set. An operation either keeps the set (all that works channel by
channel), joins two sets (add, multiply), makes a new one (convolution, linear, concatenation, zero channels), or is
unknown: then the sets that it touches are pinned to the original order, which is always correct.
A part of the model that torch.fx cannot trace is one unknown operation, and its layers stay dense.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import TensorMetadata

from edgeprune.channel_ops import (
    ADDS_FUNCTIONS,
    ADDS_METHODS,
    FLATTENS,
    JOINS_FUNCTIONS,
    JOINS_METHODS,
    KEEPS_FUNCTIONS,
    KEEPS_METHODS,
    KEEPS_MODULES,
)
from edgeprune.coupling import SetForest
from edgeprune.fx_tracer import LayerCalls
from edgeprune.graph import CoupledSet, Graph, Layer, Norm, ZeroPadding
from edgeprune.grouped_conv import GroupedConv2d

NETWORK_INPUT = "the network's input"


@dataclass(frozen=True)
class Channels:
    """Where a tensor's channels are: its coupled set, and how many consecutive features each channel is."""

    coupled_set: str
    features: int = 1


@dataclass(frozen=True)
class Traced:
    """A traced model. `module` is a copy of the model as an fx graph, in eval mode."""

    module: fx.GraphModule
    graph: Graph
    channels: Mapping[str, Channels]
    """fx node name -> where its channels are, for every tensor with a channel axis."""
    shapes: Mapping[str, tuple[int, ...]]
    """fx node name -> shape of its tensor for the example input."""
    paddings: Mapping[str, tuple[int, int]]
    """fx node name of a zero-channel padding -> (channels before, channels after)."""
    concatenations: Mapping[str, tuple[str, ...]]
    """Coupled set of a concatenation -> the sets of its parts, in order."""


class ChannelWalk:
    """One pass over the fx graph that assigns coupled sets; union-find over sets that are joined."""

    def __init__(self, module: fx.GraphModule, opaque: Mapping[str, str], calls: LayerCalls) -> None:
        self.module, self.opaque, self.calls = module, opaque, calls
        self.modules = dict(module.named_modules())
        self.values: dict[str, Channels] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.sets = SetForest()
        self.paddings: dict[str, tuple[int, int]] = {}
        self.concatenations: list[tuple[str, tuple[str, ...]]] = []
        self.layers: dict[str, Layer] = {}
        self.norms: list[Norm] = []

    # -- nodes -------------------------------------------------------------------------------------------------------
    def pin_inputs(self, node: fx.Node, reason: str) -> None:
        for source in node.all_input_nodes:
            if source.name in self.values:
                self.sets.pin(self.values[source.name].coupled_set, reason)

    def visit(self, node: fx.Node) -> None:
        meta = node.meta.get("tensor_meta")
        if isinstance(meta, TensorMetadata):
            self.shapes[node.name] = tuple(meta.shape)
        if node.op == "output":
            self.pin_inputs(node, "the network's output")
        elif node.op == "placeholder" and node.name in self.shapes:
            self.values[node.name] = Channels(self.sets.make(node.name, self.channel_count(node)))
            self.sets.pin(node.name, NETWORK_INPUT)
        elif node.op == "call_module":
            self.visit_module(node, self.modules[str(node.target)])
        elif node.op in ("call_function", "call_method"):
            self.visit_call(node)

    def visit_module(self, node: fx.Node, module: nn.Module) -> None:
        name = str(node.target)
        used_twice = sum(1 for n in self.module.graph.nodes if n.op == "call_module" and n.target == node.target) > 1
        source = self.source(node)
        if name in self.opaque or source is None:
            self.unknown(node, f"{name} cannot be traced")
        elif isinstance(module, nn.Conv2d) and type(module) in (nn.Conv2d, GroupedConv2d):
            self.visit_conv(node, module, source, used_twice)
        elif type(module) is nn.Linear and len(self.shapes[node.name]) == 2:
            self.visit_linear(node, module, source, used_twice)
        elif type(module) is nn.Flatten:
            self.flatten(node, source)
        elif isinstance(module, KEEPS_MODULES):
            self.values[node.name] = source
            if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
                self.norms.append(Norm(name, source.coupled_set, source.features, module.affine))
            if used_twice and any(True for _ in module.parameters()):
                self.sets.pin(source.coupled_set, f"{name} is used at several places")
        else:
            self.unknown(node, f"{name} is a {type(module).__name__}")

    def visit_conv(self, node: fx.Node, module: nn.Conv2d, source: Channels, used_twice: bool) -> None:
        name = str(node.target)
        groups, in_channels, out_channels = _shape_of(module)
        if groups > 1 and groups == in_channels == out_channels:  # depthwise: follows its input
            self.values[node.name] = source
        else:
            self.values[node.name] = Channels(self.sets.make(node.name, out_channels))
            if groups > 1:
                self.pin_around(node, source, f"{name} is already grouped")
        self.add_layer(name, module, node, source, self.shared(node, source) if used_twice else "")

    def visit_linear(self, node: fx.Node, module: nn.Linear, source: Channels, used_twice: bool) -> None:
        self.values[node.name] = Channels(self.sets.make(node.name, module.out_features))
        self.add_layer(str(node.target), module, node, source, self.shared(node, source) if used_twice else "")

    def shared(self, node: fx.Node, source: Channels) -> str:
        self.pin_around(node, source, f"{node.target} is used at several places")
        return "its weights are used at several places"

    def pin_around(self, node: fx.Node, source: Channels, reason: str) -> None:
        self.sets.pin(source.coupled_set, reason)
        self.sets.pin(self.values[node.name].coupled_set, reason)

    def add_layer(
        self, name: str, module: nn.Conv2d | nn.Linear, node: fx.Node | None, source: Channels | None, refusal: str
    ) -> None:
        groups, in_channels, out_channels = _shape_of(module)
        features = source.features if source else 1
        writes = self.values[node.name].coupled_set if node is not None and node.name in self.values else ""
        layer = Layer(
            name=name,
            kind="conv" if isinstance(module, nn.Conv2d) else "linear",
            in_channels=in_channels // features,
            out_channels=out_channels,
            kernel_size=tuple(module.kernel_size) if isinstance(module, nn.Conv2d) else (),
            groups=groups,
            positions=self.calls.positions.get(name, 0),
            reads=source.coupled_set if source else "",
            writes=writes,
            features_per_channel=features,
            is_first=source is not None and self.sets.pinned(source.coupled_set) == NETWORK_INPUT,
            is_shortcut=node is not None and _is_shortcut(node, self.modules),
            refusal=refusal,
            has_bias=module.bias is not None,
            norm=_norm_behind(node, self.modules) if node is not None else "",
            ends_branch=node is not None and _ends_branch(node, self.modules),
        )
        self.layers.setdefault(name, layer)

    def visit_call(self, node: fx.Node) -> None:
        target = node.target
        if node.name not in self.shapes:
            # Sizes, shapes and other numbers carry no channels; tuples of tensors (split, chunk) do.
            if isinstance(node.meta.get("tensor_meta"), (tuple, list)):
                self.unknown(node, _call_name(node))
            return
        tensors = [n for n in node.all_input_nodes if n.name in self.shapes]
        source = self.source(node)
        if source is None:
            self.unknown(node, _call_name(node))
        elif target in JOINS_FUNCTIONS or (node.op == "call_method" and target in JOINS_METHODS):
            self.visit_join(node, tensors)
        elif target in KEEPS_FUNCTIONS or (node.op == "call_method" and target in KEEPS_METHODS):
            self.values[node.name] = source
        elif target in (torch.flatten, torch.reshape, torch.squeeze) or (
            node.op == "call_method" and target in FLATTENS
        ):
            self.flatten(node, source)
        elif target is torch.mean or (node.op == "call_method" and target == "mean"):
            self.visit_mean(node, source)
        elif target is operator.getitem:
            self.visit_getitem(node, source)
        elif target in (torch.cat, torch.concat):
            self.visit_concat(node)
        elif target is F.pad:
            self.visit_pad(node, source)
        else:
            self.unknown(node, _call_name(node))

    def visit_join(self, node: fx.Node, tensors: list[fx.Node]) -> None:
        channels = self.shapes[node.name][1] if len(self.shapes[node.name]) > 1 else 0
        sources = []
        for tensor in tensors:
            shape = self.shapes[tensor.name]
            if len(shape) != len(self.shapes[node.name]):
                if math.prod(shape) == 1:
                    continue  # a scalar parameter: the same for every channel
                return self.unknown(node, _call_name(node))
            if shape[1] == 1 and channels > 1:
                continue  # broadcast over the channels
            if tensor.name not in self.values:
                return self.unknown(node, f"{_call_name(node)} with {tensor.name}")
            sources.append(self.values[tensor.name])
        if not sources or len({s.features for s in sources}) > 1:
            return self.unknown(node, _call_name(node))
        for other in sources[1:]:
            self.sets.join(sources[0].coupled_set, other.coupled_set)
        self.values[node.name] = sources[0]
        return None

    def visit_mean(self, node: fx.Node, source: Channels) -> None:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        rank = len(self.shapes[node.all_input_nodes[0].name])
        axes = [dims] if isinstance(dims, int) else list(dims) if isinstance(dims, (tuple, list)) else []
        if (
            source.features == 1
            and rank == 4
            and axes
            and all(isinstance(axis, int) and axis % rank >= 2 for axis in axes)
        ):
            self.values[node.name] = source
        else:
            self.unknown(node, _call_name(node))

    def visit_getitem(self, node: fx.Node, source: Channels) -> None:
        key = node.args[1]
        keys = key if isinstance(key, tuple) else (key,)
        whole = slice(None, None, None)
        if all(isinstance(k, slice) for k in keys) and all(k == whole for k in keys[:2]):
            self.values[node.name] = source
        else:
            self.unknown(node, _call_name(node))

    def visit_concat(self, node: fx.Node) -> None:
        parts, *rest = node.args or (node.kwargs.get("tensors"),)
        axis = rest[0] if rest else node.kwargs.get("dim", 0)
        listed = parts if isinstance(parts, (tuple, list)) else ()
        sources = [self.values.get(part.name) if isinstance(part, fx.Node) else None for part in listed]
        rank = len(self.shapes[node.name])
        known = [s for s in sources if s is not None and s.features == 1]
        if not isinstance(axis, int) or axis % rank != 1 or not known or len(known) < len(sources):
            return self.unknown(node, _call_name(node))
        self.values[node.name] = Channels(self.sets.make(node.name, self.channel_count(node)))
        self.concatenations.append((node.name, tuple(s.coupled_set for s in known)))
        return None

    def visit_pad(self, node: fx.Node, source: Channels) -> None:
        names = ("input", "pad", "mode", "value")
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        pad, mode, value = given.get("pad"), given.get("mode", "constant"), given.get("value")
        sizes = [p for p in pad if isinstance(p, int)] if isinstance(pad, (tuple, list)) else []
        if not isinstance(pad, (tuple, list)) or len(sizes) != len(pad) or len(self.shapes[node.name]) != 4:
            self.unknown(node, _call_name(node))
        elif not any(sizes[4:]):
            self.values[node.name] = source
        elif not any(sizes[:4]) and not any(sizes[6:]) and mode == "constant" and value in (None, 0, 0.0):
            self.values[node.name] = Channels(self.sets.make(node.name, self.channel_count(node)))
            self.paddings[node.name] = (sizes[4], sizes[5])
        else:
            self.unknown(node, _call_name(node))

    def flatten(self, node: fx.Node, source: Channels) -> None:
        before, after = self.shapes[node.all_input_nodes[0].name], self.shapes[node.name]
        if len(after) == 2 and len(before) >= 2 and after[1] == math.prod(before[1:]) and after[0] == before[0]:
            self.values[node.name] = Channels(source.coupled_set, source.features * math.prod(before[2:]))
        elif after == before:
            self.values[node.name] = source
        else:
            self.unknown(node, _call_name(node))

    def unknown(self, node: fx.Node, reason: str) -> None:
        self.pin_inputs(node, reason)
        shape = self.shapes.get(node.name, ())
        if len(shape) > 1:
            self.values[node.name] = Channels(self.sets.make(node.name, shape[1]))
            self.sets.pin(node.name, reason)

    def source(self, node: fx.Node) -> Channels | None:
        return next((self.values[n.name] for n in node.all_input_nodes if n.name in self.values), None)

    def channel_count(self, node: fx.Node) -> int:
        shape = self.shapes[node.name]
        return shape[1] if len(shape) > 1 else 1

    # -- result ------------------------------------------------------------------------------------------------------
    def finish(self, input_shape: tuple[int, ...]) -> Traced:
        self.add_untraced_layers()
        for name, parts in self.concatenations:
            if self.sets.origins(name) > 1 or self.sets.pinned(name):
                for touched in (name, *parts):
                    self.sets.pin(touched, "a concatenation whose order is given")
        # A pinned concatenation pins its parts, which may be concatenations themselves.
        for name, parts in reversed(self.concatenations):
            if self.sets.pinned(name):
                for part in parts:
                    self.sets.pin(part, self.sets.pinned(name))
        layers = tuple(self.resolved(layer) for layer in self.in_forward_order())
        weights = sum(layer.weight_count for layer in layers)
        return Traced(
            module=self.module,
            graph=Graph(
                layers=layers,
                coupled_sets=tuple(self.coupled_set(name, layers) for name in self.sets.roots()),
                input_shape=input_shape,
                other_params=sum(p.numel() for p in self.module.parameters()) - weights,
                norms=tuple(replace(norm, coupled_set=self.sets.root(norm.coupled_set)) for norm in self.norms),
                paddings=self.zero_paddings(),
            ),
            channels={n: Channels(self.sets.root(c.coupled_set), c.features) for n, c in self.values.items()},
            shapes=self.shapes,
            paddings=self.paddings,
            concatenations={
                self.sets.root(n): tuple(self.sets.root(p) for p in parts) for n, parts in self.concatenations
            },
        )

    def add_untraced_layers(self) -> None:
        for name, module in self.modules.items():
            if (
                name in self.layers
                or not isinstance(module, (nn.Conv2d, nn.Linear))
                or name not in self.calls.positions
            ):
                continue
            inside = next((o for o in self.opaque if name == o or name.startswith(f"{o}.")), "")
            if inside:
                refusal = f"inside {inside}, which torch.fx cannot trace ({self.opaque[inside]})"
            elif type(module) not in (nn.Conv2d, nn.Linear):
                refusal = f"is a {type(module).__name__}, not a plain convolution"
            else:
                refusal = "its place in the graph is not understood"
            self.add_layer(name, module, None, None, refusal)

    def in_forward_order(self) -> list[Layer]:
        order = {name: i for i, name in enumerate(self.calls.positions)}  # the run met them in forward order
        layers = sorted(self.layers.values(), key=lambda layer: order.get(layer.name, len(order)))
        # What reads a normalised copy of the input is the first convolution, too.
        return [replace(layer, is_first=layer.is_first or i == 0) for i, layer in enumerate(layers)]

    def resolved(self, layer: Layer) -> Layer:
        names = {s: self.sets.root(s) if s else "" for s in (layer.reads, layer.writes)}
        return replace(layer, reads=names[layer.reads], writes=names[layer.writes])

    def coupled_set(self, name: str, layers: tuple[Layer, ...]) -> CoupledSet:
        return CoupledSet(
            name=name,
            channels=self.sets.channels(name),
            producers=tuple(layer.name for layer in layers if layer.writes == name),
            consumers=tuple(layer.name for layer in layers if layer.reads == name),
            pinned=self.sets.pinned(name),
            parts=next((tuple(self.sets.root(p) for p in parts) for n, parts in self.concatenations if n == name), ()),
        )

    def zero_paddings(self) -> tuple[ZeroPadding, ...]:
        nodes = {node.name: node for node in self.module.graph.nodes}
        sources = {name: self.values[nodes[name].all_input_nodes[0].name].coupled_set for name in self.paddings}
        return tuple(
            ZeroPadding(self.sets.root(sources[name]), self.sets.root(self.values[name].coupled_set), lead, trail)
            for name, (lead, trail) in self.paddings.items()
        )


def _is_shortcut(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """A 1x1 convolution whose input is also read elsewhere and whose output goes, through BN alone, into an add."""
    module = modules[str(node.target)]
    if (
        not isinstance(module, nn.Conv2d)
        or tuple(module.kernel_size) != (1, 1)
        or len(node.all_input_nodes[0].users) < 2
    ):
        return False
    return _ends_branch(node, modules)


def _ends_branch(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the only way of this layer's output leads, through BN at most, into an add."""
    follower = node
    while len(follower.users) == 1:
        follower = next(iter(follower.users))
        if follower.op == "call_module" and isinstance(modules[str(follower.target)], (nn.BatchNorm2d, nn.Identity)):
            continue
        return follower.target in ADDS_FUNCTIONS or (follower.op == "call_method" and follower.target in ADDS_METHODS)
    return False


def _norm_behind(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """The BatchNorm that alone reads this layer's output; empty if there is none."""
    if len(node.users) != 1:
        return ""
    user = next(iter(node.users))
    is_norm = user.op == "call_module" and isinstance(modules[str(user.target)], (nn.BatchNorm2d, nn.BatchNorm1d))
    return str(user.target) if is_norm else ""


def _shape_of(module: nn.Conv2d | nn.Linear) -> tuple[int, int, int]:
    """(groups, input channels, output channels) of the layer as it stands in the original network."""
    if isinstance(module, GroupedConv2d):
        return 1, module.dense_in_channels, module.out_channels
    if isinstance(module, nn.Conv2d):
        return module.groups, module.in_channels, module.out_channels
    return 1, module.in_features, module.out_features


def _call_name(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
