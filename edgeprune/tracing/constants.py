"""Channels that hold one value everywhere, whatever the image: what a zero filter leaves behind a BatchNorm."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from edgeprune.graph import Graph, ZeroPadding
from edgeprune.tracing.trace import trace

Values = NDArray[np.float64]
"""(channels,) the constant, NaN where the channel is not constant."""
TOLERANCE = 1e-9
"""Of the spread over images and pixels, in float64, over 1 + |value|."""
Reader = str | ZeroPadding
"""A layer's name, or a zero padding: what it puts into the padded tensor is read there."""


def constants_by_reader(model: nn.Module, graph: Graph) -> dict[Reader, Values]:
    """For every reader, the constant of each of its input channels as it reads them: behind BatchNorm, activation, add.

    Seen on two random images: a channel that only happens to be constant on these (a dead ReLU) counts, too.
    """
    seen: dict[Reader, Values] = {}

    def record(reader: Reader, x: Tensor, features: int) -> None:
        x = x.detach().flatten(2) if x.dim() > 2 else x.detach().reshape(len(x), -1, features)  # (N, C, positions)
        low, high = x.amin((0, 2)), x.amax((0, 2))  # (C,)
        constant = high - low <= TOLERANCE * (1 + high.abs())
        value = torch.where(constant, high, torch.nan).numpy()
        # What is used twice reads a constant only if it does so both times.
        seen[reader] = value if reader not in seen else np.where(seen[reader] == value, value, np.nan)

    def hook(name: str) -> Callable[..., None]:
        features = graph.layer(name).features_per_channel

        def hooked(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            on_last_axis = isinstance(module, nn.Linear) and inputs[0].dim() > 2
            record(name, inputs[0].movedim(-1, 1) if on_last_axis else inputs[0], features)

        return hooked

    probe = copy.deepcopy(model).double().eval()
    traced = trace(probe, torch.zeros(1, *graph.input_shape, dtype=torch.float64))  # a copy of its own
    paddings = dict(zip(traced.paddings, graph.paddings, strict=True))

    class Run(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n.name in paddings:
                record(paddings[n.name], self.env[n.all_input_nodes[0]], 1)
            return super().run_node(n)

    for layer in graph.layers:
        if layer.reads:
            traced.module.get_submodule(layer.name).register_forward_hook(hook(layer.name))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        Run(traced.module).run(torch.randn(2, *graph.input_shape, generator=generator, dtype=torch.float64))
    return seen


def constants_by_set(graph: Graph, readers: Mapping[Reader, Values]) -> dict[str, Values]:
    """For every coupled set, the constant of each channel as its first reader sees it.

    NaN where the channel is not constant for all readers, where it is zero for some of them only, and where it is not
    zero and zero channels are put around the set.
    """
    found: dict[str, Values] = {}
    for coupled in graph.coupled_sets:
        views, is_padded = list[Values](), False
        for place, offset in graph.places(coupled.name):
            paddings: list[Reader] = [padding for padding in graph.paddings if padding.source == place]
            at_place: list[Reader] = [name for name in graph.coupled_set(place).consumers if name in readers]
            views += [readers[reader][offset : offset + coupled.channels] for reader in at_place + paddings]
            is_padded |= bool(paddings)
        if not views:
            continue
        value = np.where(np.logical_and.reduce([(v == 0) == (views[0] == 0) for v in views]), views[0], np.nan)
        value = np.where(np.logical_or.reduce([np.isnan(v) for v in views]), np.nan, value)
        found[coupled.name] = np.where(value == 0, value, np.nan) if is_padded else value
    return found
