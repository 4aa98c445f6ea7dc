"""What a method sees of a network: its convolution and linear layers, and the sets in which their channels are coupled.

Pure data, without torch: `tracing` makes it, methods read it, `check_plan` holds plans against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer.

    Weights, filters first, have shape (out_channels, in_channels / groups, *kernel_size) for a convolution, transposed
    or not, and (out_channels, in_channels * features_per_channel) for a linear layer.
    """

    name: str
    """Path of the module in the model, as in the checkpoint's keys without `.weight`."""
    kind: Literal["conv", "conv_transpose", "linear"]
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    groups: int
    positions: int
    """Positions a sample at which its weights are applied: H_out * W_out, and H_in * W_in where it is transposed; of a
    linear layer the positions over which it goes, 1 for a vector."""
    reads: str
    """Name of the coupled set that the input's channels belong to."""
    writes: str
    """Name of the coupled set that the output's channels belong to."""
    features_per_channel: int = 1
    """H * W of a tensor flattened in front of a linear layer."""
    is_first: bool = False
    """Reads the network's input."""
    is_shortcut: bool = False
    """A 1x1 convolution on the skip path of a residual block."""
    refusal: str = ""
    """Why no method may change this layer; empty if one may."""
    has_bias: bool = False
    norm: str = ""
    """The BatchNorm that reads this layer's output and nothing else does; empty if there is none."""
    ends_branch: bool = False
    """Its output goes, through `norm` at most, into an add: its filters may be left out without touching the others
    that are added (paper 004, eq. 4.8)."""
    branch: tuple[str, ...] = ()
    """For the end of a branch: the layers, itself included, that nothing needs if the branch is left out of the add, in
    forward order; empty where it cannot be."""
    branch_others: tuple[str, ...] = ()
    """The modules in between that go with `branch`: BatchNorms, activations."""
    input_positions: int = 0
    """Positions of its input tensor a sample: H_in * W_in; 1 for a linear layer, 0 where that is not known."""

    @property
    def is_depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.in_channels == self.out_channels

    @property
    def is_grouped(self) -> bool:
        """In groups already as it comes, and not depthwise."""
        return self.groups > 1 and not self.is_depthwise

    @property
    def thins_by_group(self) -> bool:
        """Whether a grouped layer loses whole groups, and otherwise the same channels of each: the finer of the two."""
        return self.groups >= self.in_channels // self.groups

    @property
    def weight_count(self) -> int:
        """Number of weights, the bias left out."""
        return (
            self.out_channels
            * (self.in_channels // self.groups)
            * self.features_per_channel
            * math.prod(self.kernel_size)
        )

    @property
    def macs(self) -> int:
        """Multiply-adds a sample."""
        return self.weight_count * self.positions


@dataclass(frozen=True)
class CoupledSet:
    """Tensors whose channels stay in step: residual adds, and all that works channel by channel."""

    name: str
    channels: int
    producers: tuple[str, ...]
    """Layers that write the set, in forward order. The first that may be grouped is the pacesetter."""
    consumers: tuple[str, ...]
    """Layers that read the set, in forward order."""
    pinned: str = ""
    """Why the channels cannot change (network input, an operation that we do not know, ...); empty if they can."""
    parts: tuple[str, ...] = ()
    """The sets whose channels stand one after another in this one, for a concatenation."""
    ordered: str = ""
    """Why the channels that stay cannot change places, where some may go."""

    @property
    def in_order(self) -> str:
        """Why the channels cannot change places; empty if they can."""
        return self.pinned or self.ordered


@dataclass(frozen=True)
class Norm:
    """One BatchNorm: its parameters and statistics follow the channels of a coupled set."""

    name: str
    coupled_set: str
    features_per_channel: int = 1
    affine: bool = True


@dataclass(frozen=True)
class Slopes:
    """One PReLU with a slope for each channel of a coupled set."""

    name: str
    coupled_set: str
    features_per_channel: int = 1


@dataclass(frozen=True)
class ZeroPadding:
    """Zero channels put before and after those of `source` (a parameter-free shortcut); the result is in `target`.

    Channel c of `source` is channel `lead` + c of `target`.
    """

    source: str
    target: str
    lead: int
    trail: int
    positions: int = 0
    """H * W of the tensor a sample."""


@dataclass(frozen=True)
class Graph:
    """The layers of a network in forward order, and their coupled sets."""

    layers: tuple[Layer, ...]
    coupled_sets: tuple[CoupledSet, ...]
    input_shape: tuple[int, ...]
    """Shape of the example input, without the batch."""
    other_params: int = 0
    """Parameters outside the layers' weights: biases, BatchNorm."""
    norms: tuple[Norm, ...] = ()
    slopes: tuple[Slopes, ...] = ()
    paddings: tuple[ZeroPadding, ...] = ()

    @cached_property
    def _layers_by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def _sets_by_name(self) -> dict[str, CoupledSet]:
        return {coupled.name: coupled for coupled in self.coupled_sets}

    def layer(self, name: str) -> Layer:
        return self._layers_by_name[name]

    def coupled_set(self, name: str) -> CoupledSet:
        return self._sets_by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._layers_by_name

    def places(self, coupled_set: str) -> tuple[tuple[str, int], ...]:
        """Where the channels of a set stand: (set, offset) for itself and for each concatenation that it is part of.

        Channel c is channel offset + c there.
        """
        found = [(coupled_set, 0)]
        for name, offset in found:  # grows while it is walked: concatenations of concatenations
            for outer in self.coupled_sets:
                start = offset
                for part in outer.parts:
                    if part == name:
                        found.append((outer.name, start))
                    start += self.coupled_set(part).channels
        return tuple(found)

    @property
    def macs(self) -> int:
        """Multiply-adds a sample of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def params(self) -> int:
        return sum(layer.weight_count for layer in self.layers) + self.other_params
