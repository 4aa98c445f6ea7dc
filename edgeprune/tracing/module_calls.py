"""The modules in an fx graph: the layers that make coupled sets or keep them, and what else has values a channel."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Literal

from torch import fx, nn

from edgeprune.graph import Layer, Norm, Slopes
from edgeprune.modules.filters import FilterLayer
from edgeprune.modules.grouped_conv import GroupedConv2d
from edgeprune.modules.norms import NORMS
from edgeprune.tracing.channel_axes import unknown_module
from edgeprune.tracing.channel_calls import CallWalk
from edgeprune.tracing.channel_ops import KEEPS_MODULES
from edgeprune.tracing.channel_parts import Channels
from edgeprune.tracing.layer_roles import Branch, branch_of, calls_of, ends_branch, is_shortcut, norm_behind
from edgeprune.tracing.one_run import LayerCalls

NETWORK_INPUT = "the network's input"


class ModuleWalk(CallWalk):
    """The state of one walk over an fx graph, and the visits of its modules."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        modules: Mapping[str, nn.Module],
        opaque: Mapping[str, str],
        calls: LayerCalls,
    ) -> None:
        super().__init__(shapes)
        self.modules, self.opaque, self.calls = modules, opaque, calls
        self.owners = Counter(id(p) for m in modules.values() for p in m.parameters(recurse=False))
        """A parameter -> how many modules hold it."""
        self.layers: dict[str, Layer] = {}
        self.norms: list[Norm] = []
        self.slopes: list[Slopes] = []

    def visit_module(self, node: fx.Node, module: nn.Module) -> None:
        name = str(node.target)
        used_twice = calls_of(node) > 1 or any(self.owners[id(p)] > 1 for p in module.parameters())
        source = self.source(node)
        if name in self.opaque or source is None:
            self.unknown(node, f"{name} cannot be traced by torch.fx")
        elif isinstance(module, nn.Conv2d) and type(module) in (nn.Conv2d, GroupedConv2d):
            self.visit_conv(node, module, self.along(1, node, source), used_twice)
        elif type(module) is nn.ConvTranspose2d:
            self.visit_conv_transpose(node, module, self.along(1, node, source), used_twice)
        elif type(module) is nn.Linear:
            self.visit_linear(node, module, source, used_twice)
        elif self.is_off_axis(node):
            self.visit_off_axis(node, source, module)
        elif type(module) is nn.Flatten:
            self.reshape(node, source)
        elif isinstance(module, KEEPS_MODULES) or type(module) is nn.PReLU:
            self.values[node.name] = source
            if isinstance(module, nn.PReLU) and module.num_parameters > 1:
                self.slopes.append(Slopes(name, source.coupled_set, source.features))
            if isinstance(module, NORMS):
                self.norms.append(
                    Norm(name, source.coupled_set, source.features, isinstance(module.weight, nn.Parameter))
                )
            if used_twice and any(True for _ in module.parameters()):
                self.sets.pin(source.coupled_set, f"{name} is used at several places")
        else:
            self.unknown(node, unknown_module(node, module))

    def visit_conv(self, node: fx.Node, module: nn.Conv2d, source: Channels, used_twice: bool) -> None:
        name = str(node.target)
        groups, in_channels, out_channels = _shape_of(module)
        if groups > 1 and groups == in_channels == out_channels:  # depthwise: follows its input
            self.values[node.name] = source
        else:
            self.values[node.name] = Channels(self.sets.make(node.name, out_channels))
            if groups > 1:
                for around in (source, self.values[node.name]):
                    self.sets.keep_order(around.coupled_set, f"{name} is already grouped")
        self.add_layer(name, module, node, source, self.shared(node, source) if used_twice else "")

    def visit_conv_transpose(
        self, node: fx.Node, module: nn.ConvTranspose2d, source: Channels, used_twice: bool
    ) -> None:
        groups, in_channels, out_channels = _shape_of(module)
        if groups == in_channels == out_channels > 1:
            self.values[node.name] = source
        elif groups == 1:
            self.values[node.name] = Channels(self.sets.make(node.name, out_channels))
        else:
            return self.unknown(node, f"{node.target} is already grouped")
        self.add_layer(str(node.target), module, node, source, self.shared(node, source) if used_twice else "")
        return None

    def visit_linear(self, node: fx.Node, module: nn.Linear, source: Channels, used_twice: bool) -> None:
        """A linear layer reads the last axis, whatever is known of it."""
        last = len(self.shapes[node.name]) - 1
        pinned = self.sets.pinned(source.coupled_set)
        if source.axis != last and not pinned:
            self.values[node.name] = source  # over the width, the same for every channel
            if used_twice:
                self.sets.pin(source.coupled_set, f"{node.target} is used at several places")
            return
        source = self.along(last, node, source)
        self.values[node.name] = Channels(self.sets.make(node.name, module.out_features), axis=last)
        self.add_layer(str(node.target), module, node, source, self.shared(node, source) if used_twice else "")

    def along(self, axis: int, node: fx.Node, source: Channels) -> Channels:
        """What a layer reads along an axis: the channels, or if these are elsewhere, what stays as it is."""
        if source.axis == axis:
            return source
        self.sets.pin(source.coupled_set, f"{node.target} reads another axis of them")
        size = self.shapes[node.all_input_nodes[0].name][axis]
        read = Channels(self.sets.make(f"{node.name}_input", size), axis=axis)
        self.sets.pin(read.coupled_set, self.sets.pinned(source.coupled_set))
        return read

    def shared(self, node: fx.Node, source: Channels) -> str:
        self.pin_around(node, source, f"{node.target} is used at several places")
        return "its weights are used at several places"

    def pin_around(self, node: fx.Node, source: Channels, reason: str) -> None:
        self.sets.pin(source.coupled_set, reason)
        self.sets.pin(self.values[node.name].coupled_set, reason)

    def add_layer(
        self, name: str, module: FilterLayer, node: fx.Node | None, source: Channels | None, refusal: str
    ) -> None:
        groups, in_channels, out_channels = _shape_of(module)
        features = source.features if source else 1
        writes = self.values[node.name].coupled_set if node is not None and node.name in self.values else ""
        branch = branch_of(node, self.modules, self.shapes) if node is not None else Branch()
        layer = Layer(
            name=name,
            kind=_kind(module),
            in_channels=in_channels // features,
            out_channels=out_channels,
            kernel_size=() if isinstance(module, nn.Linear) else tuple(module.kernel_size),
            groups=groups,
            positions=self.calls.positions.get(name, 0),
            reads=source.coupled_set if source else "",
            writes=writes,
            features_per_channel=features,
            is_first=source is not None and self.sets.pinned(source.coupled_set) == NETWORK_INPUT,
            is_shortcut=node is not None and is_shortcut(node, self.modules, self.shapes),
            refusal=refusal,
            has_bias=module.bias is not None,
            norm=norm_behind(node, self.modules) if node is not None else "",
            ends_branch=node is not None and ends_branch(node, self.modules, self.shapes),
            branch=branch.layers,
            branch_others=branch.others,
            input_positions=0 if node is None else math.prod(self.shapes[node.all_input_nodes[0].name][2:]),
        )
        self.layers.setdefault(name, layer)


def _kind(module: FilterLayer) -> Literal["conv", "conv_transpose", "linear"]:
    if isinstance(module, nn.Linear):
        return "linear"
    return "conv" if isinstance(module, nn.Conv2d) else "conv_transpose"


def _shape_of(module: FilterLayer) -> tuple[int, int, int]:
    """(groups, input channels, output channels) of the layer as it stands in the original network."""
    if isinstance(module, nn.Linear):
        return 1, module.in_features, module.out_features
    groups = 1 if isinstance(module, GroupedConv2d) else module.groups
    return groups, module.in_channels, module.out_channels
