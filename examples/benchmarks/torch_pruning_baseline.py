"""Torch-Pruning on the same network at equal multiply-adds: thinner layers instead of groups."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from edgeprune.devices.this_machine import is_importable
from edgeprune.errors import InputError, first_line
from edgeprune.pruning.network import Network
from edgeprune.tracing.trace import trace

PACKAGE = "torch-pruning==1.6.1"
ATTEMPTS = 5
CLOSE = 0.01
"""How far from the asked multiply-adds the search ends."""


@dataclass(frozen=True)
class Thinned:
    """A network of which Torch-Pruning has left `macs` multiply-adds a sample."""

    model: nn.Module
    macs: int


@dataclass(frozen=True)
class Recipe:
    """How Torch-Pruning chooses filters."""

    round_to: int | None = None
    """Channels are left in multiples of it."""
    importance: str = "GroupMagnitudeImportance"
    """Name of a class in `torch_pruning.importance`, with its own defaults."""
    global_pruning: bool = False
    """Rank the filters of all layers together, rather than layer by layer."""
    ignored: tuple[str, ...] = ()
    """Layers that keep their filters, besides the last one."""


def is_installed() -> bool:
    return is_importable("torch_pruning")


def thinned(network: Network, macs: int, round_to: int | None) -> Thinned:
    """The network pruned as near to `macs` as one rate for all layers comes: smallest group norms first, layer by
    layer, the last layer's outputs left alone.

    InputError if Torch-Pruning cannot prune the network, or breaks it.
    """
    return min(_attempts(network, macs, round_to), key=lambda found: abs(math.log(found.macs / macs)))


def _attempts(network: Network, macs: int, round_to: int | None) -> Iterator[Thinned]:
    """Multiply-adds go with the square of the share of channels that stays."""
    share = math.sqrt(macs / trace(network.model, network.example_input(1)).graph.macs)
    for _ in range(ATTEMPTS):
        found = _pruned(network, 1.0 - share, round_to)
        yield found
        further = min(share * math.sqrt(macs / found.macs), 1.0)
        if abs(found.macs / macs - 1.0) <= CLOSE or further == share:
            return
        share = further


def _pruned(network: Network, rate: float, round_to: int | None) -> Thinned:
    return pruned(network, rate, Recipe(round_to))


def pruned(network: Network, rate: float, recipe: Recipe) -> Thinned:
    """The network less this share of its channels.

    InputError if Torch-Pruning cannot prune the network, or breaks it.
    """
    torch_pruning = importlib.import_module("torch_pruning")
    model, example = copy.deepcopy(network.model), network.example_input(1)
    *_, last = (module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear)))
    try:
        pruner = torch_pruning.pruner.BasePruner(
            model,
            example,
            importance=getattr(torch_pruning.importance, recipe.importance)(),
            global_pruning=recipe.global_pruning,
            pruning_ratio=rate,
            ignored_layers=[last, *(model.get_submodule(name) for name in recipe.ignored)],
            round_to=recipe.round_to,
        )
        pruner.step()
    except Exception as error:  # whatever another package raises
        raise InputError(f"Torch-Pruning cannot prune this network: {first_line(error)}") from error
    try:
        return Thinned(model, trace(model, example).graph.macs)
    except InputError as error:
        raise InputError(f"after Torch-Pruning {error.what}") from error
