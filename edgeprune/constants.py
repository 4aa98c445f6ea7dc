"""Channels that hold one value everywhere, whatever the image: what a zero filter leaves behind a BatchNorm."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeprune.graph import Graph

Values = NDArray[np.float64]
"""(channels,) the constant, NaN where the channel is not constant."""
TOLERANCE = 1e-9
"""Of the spread over images and pixels, in float64, over 1 + |value|."""


def constants_by_reader(model: nn.Module, graph: Graph) -> dict[str, Values]:
    """For every layer, the constant of each of its input channels as it reads them: behind BatchNorm, activation, add.

    Seen on two random images: a channel that only happens to be constant on these (a dead ReLU) counts, too.
    """
    seen: dict[str, Values] = {}
    probe = copy.deepcopy(model).double().eval()

    def hook(name: str) -> Callable[..., None]:
        features = graph.layer(name).features_per_channel

        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach()
            x = x.flatten(2) if x.dim() > 2 else x.reshape(len(x), -1, features)  # (N, C, positions)
            low, high = x.amin((0, 2)), x.amax((0, 2))  # (C,)
            constant = high - low <= TOLERANCE * (1 + high.abs())
            value = torch.where(constant, high, torch.nan).numpy()
            # A layer that is used twice reads a constant only if it does so both times.
            seen[name] = value if name not in seen else np.where(seen[name] == value, value, np.nan)

        return record

    handles = [
        probe.get_submodule(layer.name).register_forward_hook(hook(layer.name)) for layer in graph.layers if layer.reads
    ]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        probe(torch.randn(2, *graph.input_shape, generator=generator, dtype=torch.float64))
    for handle in handles:
        handle.remove()
    return seen


def constants_by_set(graph: Graph, readers: Mapping[str, Values]) -> dict[str, Values]:
    """For every coupled set, the constant of each channel as its first reader sees it.

    NaN where the channel is not constant for all readers, where it is zero for some of them only, and where it is not
    zero and zero channels are put around the set.
    """
    padded = {padding.source for padding in graph.paddings}
    found: dict[str, Values] = {}
    for coupled in graph.coupled_sets:
        views = [
            readers[name][offset : offset + coupled.channels]
            for place, offset in graph.places(coupled.name)
            for name in graph.coupled_set(place).consumers
            if name in readers
        ]
        if not views:
            continue
        value = np.where(np.logical_and.reduce([(v == 0) == (views[0] == 0) for v in views]), views[0], np.nan)
        value = np.where(np.logical_or.reduce([np.isnan(v) for v in views]), np.nan, value)
        if any(place in padded for place, _ in graph.places(coupled.name)):
            value = np.where(value == 0, value, np.nan)
        found[coupled.name] = value
    return found
