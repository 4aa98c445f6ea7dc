"""One walk over an fx graph that finds the layers and the coupled sets of their channels.

Layers make new sets (convolution, linear) or keep that of their input (depthwise convolution, BatchNorm, activation,
pooling); `channel_calls` knows what functions and methods do. What is not known pins the sets that it touches to the
original order and width. A part of the model that torch.fx cannot trace is one unknown operation, and its layers stay
dense.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import fx
from torch.fx.passes.shape_prop import TensorMetadata

from edgeprune.graph import CoupledSet, Graph, Layer, ZeroPadding
from edgeprune.modules.filters import FILTER_LAYERS
from edgeprune.tracing.channel_parts import Channels, Slice
from edgeprune.tracing.module_calls import NETWORK_INPUT, ModuleWalk
from edgeprune.tracing.one_run import LayerCalls


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
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """fx node name of a split along the channels -> the sets of its parts, in order."""
    slices: Mapping[str, Slice] = field(default_factory=dict)
    """fx node name of what takes some neighbouring channels -> which."""
    counts_channels: bool = False
    """Whether the forward itself would go another way with fewer channels; the graph in `module` would not."""
    literal_views: tuple[str, ...] = ()
    """fx node names of the views that write the number of features down (`x.view(-1, 512)`): where their channels
    become fewer, `channel_calls.set_literal_features` puts the new number there."""


class ChannelWalk(ModuleWalk):
    """One pass over the fx graph that assigns coupled sets; union-find over sets that are joined."""

    def __init__(self, module: fx.GraphModule, opaque: Mapping[str, str], calls: LayerCalls) -> None:
        shapes = {n.name: tuple(meta.shape) for n in module.graph.nodes if (meta := _tensor_meta(n))}
        super().__init__(shapes, dict(module.named_modules()), opaque, calls)
        self.module = module

    # -- nodes -------------------------------------------------------------------------------------------------------
    def visit(self, node: fx.Node) -> None:
        if node.op == "output":
            self.pin_inputs(node, "the network's output")
        elif node.op == "placeholder" and node.name in self.shapes:
            shape = self.shapes[node.name]
            self.values[node.name] = Channels(self.sets.make(node.name, shape[1] if len(shape) > 1 else 1))
            self.sets.pin(node.name, NETWORK_INPUT)
        elif node.op == "call_module":
            self.visit_module(node, self.modules[str(node.target)])
        elif node.op in ("call_function", "call_method"):
            self.visit_call(node)

    # -- result ------------------------------------------------------------------------------------------------------
    def finish(self, input_shape: tuple[int, ...], *, counts_channels: bool = False) -> Traced:
        self.add_untraced_layers()
        self.join_parts()
        self.pin_concatenations()
        layers = tuple(self.resolved(layer) for layer in self.in_forward_order())
        weights = sum(layer.weight_count for layer in layers)
        return Traced(
            module=self.module,
            graph=Graph(
                layers=layers,
                coupled_sets=tuple(self.coupled_set(name, layers) for name in self.parts_first()),
                input_shape=input_shape,
                other_params=sum(p.numel() for p in self.module.parameters()) - weights,
                norms=tuple(replace(norm, coupled_set=self.sets.root(norm.coupled_set)) for norm in self.norms),
                slopes=tuple(replace(slopes, coupled_set=self.sets.root(slopes.coupled_set)) for slopes in self.slopes),
                paddings=self.zero_paddings(),
            ),
            channels={n: replace(c, coupled_set=self.sets.root(c.coupled_set)) for n, c in self.values.items()},
            shapes=self.shapes,
            paddings=self.paddings,
            concatenations=self.parts_by_set(),
            splits={n: tuple(self.sets.root(p) for p in parts) for n, parts in self.splits.items()},
            slices={
                name: replace(part, parts=tuple(self.sets.root(p) for p in part.parts))
                for name, part in self.slices.items()
            },
            counts_channels=counts_channels,
            literal_views=tuple(self.literal_views),
        )

    def parts_by_set(self) -> dict[str, tuple[str, ...]]:
        """Of each set that consists of others, these in order. Where it does so in several ways, the first: their
        leaves are the same."""
        found: dict[str, tuple[str, ...]] = {}
        for name, parts in self.concatenations:
            found.setdefault(self.sets.root(name), tuple(self.sets.root(part) for part in parts))
        return found

    def parts_first(self) -> list[str]:
        """All sets in forward order, but what consists of others behind these."""
        parts = self.parts_by_set()
        found, seen = dict[str, None](), set[str]()

        def add(name: str) -> None:
            seen.add(name)
            for part in parts.get(name, ()):
                if part not in seen:
                    add(part)
            found[name] = None

        for name in self.sets.roots():
            if name not in seen:
                add(name)
        return list(found)

    def pin_concatenations(self) -> None:
        """The parts of a concatenation that cannot change cannot, either."""
        self.hand_on(self.sets.pinned, self.sets.pin)
        self.hand_on(self.sets.ordered, self.sets.keep_order)

    def hand_on(self, reason: Callable[[str], str], give: Callable[[str, str], None]) -> None:
        """What holds for a whole holds for its parts."""
        waiting = [name for name, _ in self.concatenations if reason(name)]
        while waiting:  # the parts may consist of others themselves
            name = self.sets.root(waiting.pop())
            for whole, parts in self.concatenations:
                for part in parts if self.sets.root(whole) == name else ():
                    if not reason(part):
                        give(part, reason(name))
                        waiting.append(part)

    def add_untraced_layers(self) -> None:
        for name, module in self.modules.items():
            if name in self.layers or not isinstance(module, FILTER_LAYERS) or name not in self.calls.positions:
                continue
            inside = next((o for o in self.opaque if name == o or name.startswith(f"{o}.")), "")
            if inside:
                refusal = f"inside {inside}, which torch.fx cannot trace ({self.opaque[inside]})"
            elif type(module) not in FILTER_LAYERS:
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
            parts=self.parts_by_set().get(name, ()),
            ordered=self.sets.ordered(name),
        )

    def zero_paddings(self) -> tuple[ZeroPadding, ...]:
        nodes = {node.name: node for node in self.module.graph.nodes}
        sources = {name: self.values[nodes[name].all_input_nodes[0].name].coupled_set for name in self.paddings}
        return tuple(
            ZeroPadding(
                self.sets.root(sources[name]),
                self.sets.root(self.values[name].coupled_set),
                lead,
                trail,
                math.prod(self.shapes[name][2:]),
            )
            for name, (lead, trail) in self.paddings.items()
        )


def _tensor_meta(node: fx.Node) -> TensorMetadata | None:
    meta = node.meta.get("tensor_meta")
    return meta if isinstance(meta, TensorMetadata) else None
