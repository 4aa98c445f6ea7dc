"""Numbers by which the channels of units are multiplied wherever a network computes them, as forward hooks.

A layer's channels are multiplied behind its BatchNorm, or behind the layer itself if it has none, and again behind
every BatchNorm that reads them later, as in networks that normalise before they convolve. In front of a BatchNorm alone
the numbers would be lost: with the batch's own statistics it undoes any factor a channel, and it turns zeros into
constants. With zeros and ones the network computes what is left when the channels that are zero are cut out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from edgeprune.graph import Graph
from edgeprune.methods.shared.units import Numbers, Prunable, Unit


class ChannelScales:
    """The hooks on one model, and the numbers that they use."""

    def __init__(self, model: nn.Module, among: Prunable) -> None:
        self._device = next(model.parameters()).device
        self._values = torch.ones(sum(unit.size for unit in among.units) + 1, device=self._device)
        self._handles: list[RemovableHandle] = [
            model.get_submodule(name).register_forward_hook(self._hook(index.to(self._device)))
            for name, index in _indices(among).items()
        ]

    def set(self, values: Tensor) -> None:
        """(places,) the numbers for the filters of all units, one unit after another; gradients flow back into them."""
        self._values = torch.cat([values, values.new_ones(1)]).to(self._device)

    def remove(self) -> None:
        """The model is as it was."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, index: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def scaled(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:  # (N, C, ...)
            behind = 0 if isinstance(module, nn.Linear) else output.dim() - 2  # axes behind that of the channels
            return output * self._values[index].to(output.dtype).view(-1, *[1] * behind)

        return scaled


def _indices(among: Prunable) -> dict[str, Tensor]:
    """Module -> (C,) the place of each of its output channels; the one past the last for a channel in no unit."""
    first, indices = 0, dict[str, Tensor]()
    total = sum(unit.size for unit in among.units)
    for unit in among.units:
        for name, channels, width, repeats in _points(unit, among.graph):
            index = indices.setdefault(name, torch.full((width * repeats,), total))
            index.view(width, repeats)[list(channels)] = torch.arange(first, first + unit.size)[:, None]
        first += unit.size
    return indices


def _points(unit: Unit, graph: Graph) -> Iterator[tuple[str, Numbers, int, int]]:
    """Where a unit's channels are computed: (module, channel numbers, channels in all, features a channel)."""
    for name, filters in (*unit.layers, *unit.followers):
        layer = graph.layer(name)
        yield layer.norm or name, filters, layer.out_channels, 1
    for coupled, channels in unit.sets:
        for norm in graph.norms:
            if norm.coupled_set == coupled:
                yield norm.name, channels, graph.coupled_set(coupled).channels, norm.features_per_channel
