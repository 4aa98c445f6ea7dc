"""What the layers of a dense network and of the network pruned from it read, channel for channel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.graph import Graph, Layer
from edgeprune.plans.kept_channels import KeptChannels
from edgeprune.plans.plan import Plan
from edgeprune.rewriting.thinning import features_left

Read = dict[str, Tensor]
"""Layer -> the tensor that it read last."""


@dataclass(frozen=True)
class SharedFeatures:
    """The layers whose inputs are compared. The rewriter keeps modules' names and the order of channels, so that only
    channels that a thinner network lacks have to be left out of the dense one's."""

    places: dict[str, Tensor | None]
    """Layer -> the channels of its dense input that are left (kept,) by their numbers; None for all."""
    axes: dict[str, int]
    """Layer -> the channel axis of its input."""

    @staticmethod
    def of(plan: Plan, graph: Graph) -> SharedFeatures:
        """All layers but those that read the network's own input."""
        kept = KeptChannels(plan, graph)
        layers = [layer for layer in graph.layers if not layer.is_first]
        places = {layer.name: _place(layer, kept) for layer in layers}
        return SharedFeatures(places, {layer.name: -1 if layer.kind == "linear" else 1 for layer in layers})

    @contextmanager
    def read_by(self, model: nn.Module) -> Iterator[Read]:
        """While the block runs, each forward pass of the model writes into what is given what the layers read."""
        read: Read = {}

        def recorder(name: str) -> Any:
            def record(_: nn.Module, args: tuple[Any, ...]) -> None:
                read[name] = args[0]

            return record

        modules = dict(model.named_modules())
        hooks = [modules[name].register_forward_pre_hook(recorder(name)) for name in self.places if name in modules]
        try:
            yield read
        finally:
            for hook in hooks:
                hook.remove()

    def pairs(self, pruned: Read, dense: Read) -> Iterator[tuple[Tensor, Tensor]]:
        """What the pruned network's layers read, and the same channels of what the dense ones' do. A tensor that
        several layers read comes once."""
        seen = set[int]()
        for name, own in pruned.items():
            if name in dense and id(own) not in seen:
                seen.add(id(own))
                place, wanted = self.places[name], dense[name]
                if place is not None:
                    wanted = wanted.index_select(self.axes[name], place.to(wanted.device))
                yield own, wanted


def _place(layer: Layer, kept: KeptChannels) -> Tensor | None:
    inputs = kept.inputs(layer)
    return None if inputs.is_all else torch.from_numpy(features_left(inputs, layer.features_per_channel).array())
