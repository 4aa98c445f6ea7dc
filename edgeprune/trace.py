"""Tracing: an ordinary model -> its fx graph, its layers, and the coupled sets of its channels.

Each tensor's channel axis belongs to one coupled set. An operation either keeps the set (all that works channel by
channel), joins two sets (add, multiply), makes a new one (convolution, linear, concatenation, zero channels), or is
unknown: then the sets that it touches are pinned to the original order, which is always correct.
A part of the model that torch.fx cannot trace becomes one opaque operation, and its layers stay dense.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torchvision.ops import stochastic_depth

from edgeprune.errors import InputError, first_line
from edgeprune.graph import CoupledSet, Graph, Layer
from edgeprune.grouped_conv import GroupedConv2d

_KEEPS_MODULES = (
    nn.BatchNorm2d, nn.BatchNorm1d, nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Dropout, nn.Dropout2d, nn.MaxPool2d,
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d, nn.ReflectionPad2d,
    nn.ReplicationPad2d,
)  # fmt: skip
_KEEPS_FUNCTIONS = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.hardtanh, F.hardswish, F.hardsigmoid, F.softplus,
    F.dropout, F.dropout2d, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate,
    torch.relu, torch.sigmoid, torch.tanh, torch.clamp, torch.abs, torch.neg, operator.neg, stochastic_depth,
}  # fmt: skip
_KEEPS_METHODS = {"relu", "relu_", "sigmoid", "tanh", "clamp", "abs", "contiguous", "clone", "float", "to", "type", "detach"}
_JOINS_FUNCTIONS = {
    torch.add, torch.mul, torch.sub, torch.div, torch.maximum, torch.minimum, operator.add, operator.iadd, operator.mul,
    operator.imul, operator.sub, operator.isub, operator.truediv, operator.itruediv,
}  # fmt: skip
_JOINS_METHODS = {"add", "add_", "mul", "mul_", "sub", "sub_", "div", "div_"}
_FLATTENS = {"flatten", "view", "reshape", "squeeze"}


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


def trace(model: nn.Module, example_input: Tensor) -> Traced:
    """Trace `model` (left as it is) with an example input of shape (N, C, H, W).

    Raises InputError if the model's own forward cannot be traced or run with this input.
    """
    model = copy.deepcopy(model).eval()
    tracer = _Tracer()
    try:
        fx_graph = tracer.trace(model)
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} cannot be traced by torch.fx: {first_line(error)}",
            expected="a forward without branches on tensor values",
            remedy="move what is dynamic into a submodule (it then stays dense as a whole) or out of the model",
        ) from error
    module = fx.GraphModule(model, fx_graph)
    calls = _run(module, example_input)
    walk = _Walk(module, tracer.opaque, calls)
    for node in fx_graph.nodes:
        walk.visit(node)
    return walk.finish(tuple(example_input.shape[1:]))


class _Tracer(fx.Tracer):
    """Traces into every module; one that cannot be traced becomes a leaf, with the reason kept in `opaque`."""

    def __init__(self) -> None:
        super().__init__()
        self.opaque: dict[str, str] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Subclasses of layers are leaves too: their weights are used in ways that we do not know.
        return isinstance(m, (GroupedConv2d, nn.Conv2d, nn.Linear)) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)
        before = len(self.graph.nodes)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:  # whatever a user's forward does with a proxy that a proxy cannot do
            for node in reversed(list(self.graph.nodes)[before:]):
                self.graph.erase_node(node)
            self.opaque = {k: v for k, v in self.opaque.items() if not k.startswith(f"{name}.")}
            self.opaque[name] = first_line(error)
            return self.create_proxy("call_module", name, args, kwargs)


@dataclass
class _Calls:
    """Output positions (H * W) of every conv and linear layer, summed over its calls in one forward pass."""

    positions: dict[str, int] = field(default_factory=dict)
    count: dict[str, int] = field(default_factory=dict)


def _run(module: fx.GraphModule, example_input: Tensor) -> _Calls:
    calls = _Calls()

    def hook(name: str) -> Callable[..., None]:
        def record(layer: nn.Module, inputs: object, output: Tensor) -> None:
            positions = math.prod(output.shape[2:]) if isinstance(layer, nn.Conv2d) else math.prod(output.shape[1:-1])
            calls.positions[name] = calls.positions.get(name, 0) + positions
            calls.count[name] = calls.count.get(name, 0) + 1

        return record

    handles = [
        layer.register_forward_hook(hook(name))
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    try:
        with torch.no_grad():
            ShapeProp(module).propagate(example_input)
    except Exception as error:
        raise InputError(
            f"the model cannot be run on an input of shape {tuple(example_input.shape)}: {first_line(error)}",
            remedy="check --input-size (C,H,W) and --arch",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


class _Walk:
    """One pass over the fx graph that assigns coupled sets; union-find over sets that are joined."""

    def __init__(self, module: fx.GraphModule, opaque: Mapping[str, str], calls: _Calls) -> None:
        self.module, self.opaque, self.calls = module, opaque, calls
        self.modules = dict(module.named_modules())
        self.values: dict[str, Channels] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.parent: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.pinned: dict[str, str] = {}
        self.made: dict[str, int] = {}
        self.paddings: dict[str, tuple[int, int]] = {}
        self.concatenations: list[tuple[str, tuple[str, ...]]] = []
        self.layers: dict[str, tuple[fx.Node | None, Layer]] = {}

    # -- coupled sets ------------------------------------------------------------------------------------------------
    def root(self, name: str) -> str:
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def new_set(self, node: fx.Node, channels: int) -> str:
        name = node.name
        self.parent[name], self.sizes[name], self.made[name] = name, channels, 1
        return name

    def join(self, first: str, second: str) -> None:
        a, b = self.root(first), self.root(second)
        if a == b:
            return
        self.parent[b] = a
        self.made[a] += self.made.pop(b)
        if b in self.pinned:
            self.pinned.setdefault(a, self.pinned.pop(b))

    def pin(self, name: str, reason: str) -> None:
        self.pinned.setdefault(self.root(name), reason)

    def pin_inputs(self, node: fx.Node, reason: str) -> None:
        for source in node.all_input_nodes:
            if source.name in self.values:
                self.pin(self.values[source.name].coupled_set, reason)

    # -- nodes -------------------------------------------------------------------------------------------------------
    def visit(self, node: fx.Node) -> None:
        meta = node.meta.get("tensor_meta")
        if hasattr(meta, "shape"):
            self.shapes[node.name] = tuple(meta.shape)
        if node.op == "output":
            self.pin_inputs(node, "the network's output")
        elif node.op == "placeholder":
            self.values[node.name] = Channels(self.new_set(node, self.channel_count(node)))
            self.pin(node.name, "the network's input")
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
        elif type(module) in (nn.Conv2d, GroupedConv2d):
            self.visit_conv(node, module, source, used_twice)  # type: ignore[arg-type]
        elif type(module) is nn.Linear and len(self.shapes[node.name]) == 2:
            self.visit_linear(node, module, source, used_twice)
        elif type(module) is nn.Flatten:
            self.flatten(node, source)
        elif isinstance(module, _KEEPS_MODULES):
            self.values[node.name] = source
            if used_twice and any(True for _ in module.parameters()):
                self.pin(source.coupled_set, f"{name} is used at several places")
        else:
            self.unknown(node, f"{name} is a {type(module).__name__}")

    def visit_conv(self, node: fx.Node, module: nn.Conv2d, source: Channels, used_twice: bool) -> None:
        name = str(node.target)
        groups = 1 if isinstance(module, GroupedConv2d) else module.groups
        in_channels = module.dense_in_channels if isinstance(module, GroupedConv2d) else module.in_channels
        depthwise = groups > 1 and groups == in_channels == module.out_channels
        if depthwise:
            self.values[node.name] = source
        else:
            self.values[node.name] = Channels(self.new_set(node, module.out_channels))
        if groups > 1 and not depthwise:
            for touched in (source.coupled_set, node.name):
                self.pin(touched, f"{name} is already grouped")
        refusal = self.shared(node, name, source) if used_twice else ""
        self.add_layer(node, module, name, source, in_channels, groups, refusal)

    def visit_linear(self, node: fx.Node, module: nn.Linear, source: Channels, used_twice: bool) -> None:
        name = str(node.target)
        self.values[node.name] = Channels(self.new_set(node, module.out_features))
        refusal = self.shared(node, name, source) if used_twice else ""
        self.add_layer(node, module, name, source, module.in_features // source.features, 1, refusal)

    def shared(self, node: fx.Node, name: str, source: Channels) -> str:
        for touched in (source.coupled_set, node.name):
            if touched in self.parent:
                self.pin(touched, f"{name} is used at several places")
        return "its weights are used at several places"

    def add_layer(
        self, node: fx.Node | None, module: nn.Module, name: str, source: Channels | None, in_channels: int, groups: int,
        refusal: str,
    ) -> None:  # fmt: skip
        conv = isinstance(module, nn.Conv2d)
        writes = self.values[node.name].coupled_set if node is not None and node.name in self.values else ""
        self.layers.setdefault(
            name,
            (
                node,
                Layer(
                    name=name,
                    kind="conv" if conv else "linear",
                    in_channels=in_channels,
                    out_channels=module.out_channels if isinstance(module, nn.Conv2d) else module.out_features,  # type: ignore[arg-type]
                    kernel_size=tuple(module.kernel_size) if isinstance(module, nn.Conv2d) else (),
                    groups=groups,
                    positions=self.calls.positions.get(name, 0),
                    reads=source.coupled_set if source else "",
                    writes=writes,
                    features_per_channel=source.features if source else 1,
                    is_first=bool(source) and self.is_input(source),
                    is_shortcut=node is not None and _is_shortcut(node, self.modules),
                    refusal=refusal,
                ),
            ),
        )

    def is_input(self, source: Channels | None) -> bool:
        return source is not None and self.pinned.get(self.root(source.coupled_set)) == "the network's input"

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
        elif target in _JOINS_FUNCTIONS or (node.op == "call_method" and target in _JOINS_METHODS):
            self.visit_join(node, tensors)
        elif target in _KEEPS_FUNCTIONS or (node.op == "call_method" and target in _KEEPS_METHODS):
            self.values[node.name] = source
        elif target in (torch.flatten, torch.reshape, torch.squeeze) or (node.op == "call_method" and target in _FLATTENS):
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
            self.join(sources[0].coupled_set, other.coupled_set)
        self.values[node.name] = sources[0]
        return None

    def visit_mean(self, node: fx.Node, source: Channels) -> None:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        rank = len(self.shapes[node.all_input_nodes[0].name])
        axes = [dims] if isinstance(dims, int) else list(dims) if isinstance(dims, (tuple, list)) else []
        if source.features == 1 and rank == 4 and axes and all(int(axis) % rank >= 2 for axis in axes):  # type: ignore[call-overload]
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
        sources = [self.values.get(part.name) for part in parts] if isinstance(parts, (tuple, list)) else []  # type: ignore[union-attr]
        rank = len(self.shapes[node.name])
        known = [s for s in sources if s is not None and s.features == 1]
        if not isinstance(axis, int) or axis % rank != 1 or not known or len(known) < len(sources):
            return self.unknown(node, _call_name(node))
        self.values[node.name] = Channels(self.new_set(node, self.channel_count(node)))
        self.concatenations.append((node.name, tuple(s.coupled_set for s in known)))
        return None

    def visit_pad(self, node: fx.Node, source: Channels) -> None:
        names = ("input", "pad", "mode", "value")
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        pad, mode, value = given.get("pad"), given.get("mode", "constant"), given.get("value")
        if not isinstance(pad, (tuple, list)) or not all(isinstance(p, int) for p in pad) or len(pad) > 6:
            self.unknown(node, _call_name(node))
        elif len(pad) <= 4 or not any(pad[4:]):  # type: ignore[arg-type]
            self.values[node.name] = source
        elif not any(pad[:4]) and mode == "constant" and value in (None, 0, 0.0):  # type: ignore[arg-type]
            self.values[node.name] = Channels(self.new_set(node, self.channel_count(node)))
            self.paddings[node.name] = (int(pad[4]), int(pad[5]))  # type: ignore[arg-type]
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
            self.values[node.name] = Channels(self.new_set(node, shape[1]))
            self.pin(node.name, reason)

    def source(self, node: fx.Node) -> Channels | None:
        return next((self.values[n.name] for n in node.all_input_nodes if n.name in self.values), None)

    def channel_count(self, node: fx.Node) -> int:
        shape = self.shapes[node.name]
        return shape[1] if len(shape) > 1 else 1

    # -- result ------------------------------------------------------------------------------------------------------
    def finish(self, input_shape: tuple[int, ...]) -> Traced:
        self.add_untraced_layers()
        for name, parts in self.concatenations:
            if self.made[self.root(name)] > 1 or self.root(name) in self.pinned:
                for touched in (name, *parts):
                    self.pin(touched, "a concatenation whose order is given")
        # A pinned concatenation pins its parts, which may be concatenations themselves.
        for name, parts in reversed(self.concatenations):
            if self.root(name) in self.pinned:
                for part in parts:
                    self.pin(part, self.pinned[self.root(name)])
        layers = tuple(self.resolved(layer) for _, layer in self.in_forward_order())
        weights = sum(layer.weight_count for layer in layers)
        roots = [name for name in self.parent if self.root(name) == name]
        return Traced(
            module=self.module,
            graph=Graph(
                layers=layers,
                coupled_sets=tuple(self.coupled_set(name, layers) for name in roots),
                input_shape=input_shape,
                other_params=sum(p.numel() for p in self.module.parameters()) - weights,
            ),
            channels={n: Channels(self.root(c.coupled_set), c.features) for n, c in self.values.items()},
            shapes=self.shapes,
            paddings=self.paddings,
            concatenations={self.root(n): tuple(self.root(p) for p in parts) for n, parts in self.concatenations},
        )

    def add_untraced_layers(self) -> None:
        for name, module in self.modules.items():
            if name in self.layers or not isinstance(module, (nn.Conv2d, nn.Linear)) or name not in self.calls.positions:
                continue
            inside = next((o for o in self.opaque if name == o or name.startswith(f"{o}.")), "")
            if inside:
                refusal = f"inside {inside}, which torch.fx cannot trace ({self.opaque[inside]})"
            elif type(module) not in (nn.Conv2d, nn.Linear):
                refusal = f"is a {type(module).__name__}, not a plain convolution"
            else:
                refusal = "its place in the graph is not understood"
            conv = isinstance(module, nn.Conv2d)
            in_channels = module.in_channels if isinstance(module, nn.Conv2d) else module.in_features
            self.add_layer(None, module, name, None, in_channels, module.groups if conv else 1, refusal)  # type: ignore[arg-type]

    def in_forward_order(self) -> list[tuple[fx.Node | None, Layer]]:
        order = {name: i for i, name in enumerate(self.calls.positions)}  # hooks fire in forward order
        return [self.layers[name] for name in sorted(self.layers, key=lambda n: order.get(n, len(order)))]

    def resolved(self, layer: Layer) -> Layer:
        names = {s: self.root(s) if s else "" for s in (layer.reads, layer.writes)}
        return Layer(**{**layer.__dict__, "reads": names[layer.reads], "writes": names[layer.writes]})

    def coupled_set(self, name: str, layers: tuple[Layer, ...]) -> CoupledSet:
        return CoupledSet(
            name=name,
            channels=self.sizes[name],
            producers=tuple(layer.name for layer in layers if layer.writes == name),
            consumers=tuple(layer.name for layer in layers if layer.reads == name),
            pinned=self.pinned.get(name, ""),
        )


def _is_shortcut(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """A 1x1 convolution whose input is also read by another layer and whose output goes, through BN alone, into an add."""
    module = modules[str(node.target)]
    if not isinstance(module, nn.Conv2d) or tuple(module.kernel_size) != (1, 1) or len(node.all_input_nodes[0].users) < 2:
        return False
    follower = node
    while len(follower.users) == 1:
        follower = next(iter(follower.users))
        if follower.op == "call_module" and isinstance(modules[str(follower.target)], (nn.BatchNorm2d, nn.Identity)):
            continue
        return follower.target in _JOINS_FUNCTIONS or (follower.op == "call_method" and follower.target in _JOINS_METHODS)
    return False


def _call_name(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
