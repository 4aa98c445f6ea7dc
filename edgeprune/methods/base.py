"""What every pruning method is given and gives back, and which layers a method may group."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgeprune.devices.prices import DevicePrices
from edgeprune.errors import InputError
from edgeprune.graph import Graph, Layer
from edgeprune.methods.budget import Budget
from edgeprune.methods.on_images import Clock, OnImages
from edgeprune.plans.plan import Plan

Weights = Mapping[str, NDArray[np.float32]]
"""A layer's name -> its weight, shaped as in `Layer`."""


@dataclass(frozen=True)
class NormValues:
    """A BatchNorm's values, each of shape (channels,); weight and bias are ones and zeros where it has none."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    running_mean: NDArray[np.float32]
    running_var: NDArray[np.float32]
    eps: float


@dataclass(frozen=True)
class Ticket:
    """Weights saved at an earlier epoch of the same training run."""

    epoch: int
    source: str
    weights: Weights


@dataclass(frozen=True)
class PruneRequest:
    """What the user asks of any method."""

    groups: int = 8
    """Groups of every layer that is pruned."""
    rate: float = 0.4375
    """Share of each group's grouped kernels to remove, in (0, 1)."""
    seed: int = 0
    share_partitions: bool = True
    """Layers of one coupled set use the pacesetter's filter clusters, which saves the Gathers at residual adds."""
    include_first: bool = False
    """Prune the convolution that reads the network's input, too."""
    include_shortcuts: bool = False
    """Prune 1x1 shortcut convolutions, too."""
    skip: tuple[str, ...] = ()
    """Layers that stay dense: names or shell patterns."""
    budget: Budget = field(default_factory=Budget)
    """What the network may still need; a method that can meets it instead of `rate` or `groups`."""
    layer_rates: tuple[tuple[str, float], ...] = ()
    """(layer's name or shell pattern, rate) where it differs from `rate`; the last that matches counts."""
    align: int = 1
    """Channels a group, in and out, and the channels of thinner layers shall be multiples of it; 1: any number."""
    prices: DevicePrices | None = None
    """What groups and Gathers cost on the device that channels are aligned for; None where no device decides."""
    mixing_price: DevicePrices | None = None
    """What it costs that channels mix where groups are computed on several devices; None for one device."""
    allows_gathers: bool = True
    """Whether Gathers may be left over; what needs one else stays dense."""

    def rate_of(self, name: str) -> float:
        """The rate of the layer with this name."""
        own = [rate for pattern, rate in self.layer_rates if fnmatch.fnmatchcase(name, pattern)]
        return own[-1] if own else self.rate

    def skips(self, name: str) -> bool:
        """Whether the layer with this name stays as it is."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.skip)

    def check(self) -> None:
        """InputError if the request makes no sense for any network."""
        if self.groups < 2:
            raise InputError(
                f"--groups {self.groups} does not group anything",
                expected="an integer of 2 or more",
                remedy="try --groups 8, or --groups 2 for narrow networks",
            )
        if not 0.0 < self.rate < 1.0:
            raise InputError(
                f"--rate {self.rate} is out of range",
                expected="a share between 0 and 1, both excluded",
                remedy="try --rate 0.4; `edgeprune list methods` shows each method's own",
            )
        self.budget.check()
        for pattern, rate in self.layer_rates:
            if not 0.0 <= rate < 1.0:
                raise InputError(
                    f"--layer-rate {pattern}={rate:g} is out of range", expected="a share from 0 to below 1"
                )
        if self.align < 1:
            raise InputError(
                f"--align {self.align} is out of range", expected="auto, none, or a block of 1 channel or more"
            )
        if self.seed < 0:
            raise InputError(f"--seed {self.seed} is negative", expected="0 or a positive integer")


@dataclass(frozen=True)
class Healed:
    """A network after pruning and fine-tuning, in its original shape: zeros in the pruned places."""

    weights: Weights
    gradients: Weights = field(default_factory=dict)
    """As in `MethodInput`."""


@dataclass(frozen=True)
class MethodInput:
    """All that a one-shot method may look at."""

    graph: Graph
    weights: Weights
    request: PruneRequest
    tickets: Sequence[Ticket] = ()
    gradients: Weights = field(default_factory=dict)
    """Of the mean loss over calibration images, by the weights; only for a method that asks (`needs_gradients`)."""
    norms: Mapping[str, NormValues] = field(default_factory=dict)
    """A BatchNorm's name -> its parameters and statistics."""
    biases: Weights = field(default_factory=dict)
    """A layer's name -> its bias, for layers that have one."""
    constants: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """Coupled set -> (channels,) the value that each channel holds everywhere whatever the image, as those who read the
    set see it; NaN where the channel is not constant. Only for a method that asks (`NEEDS_CONSTANTS`)."""
    finetune: Callable[[Plan], Healed] | None = None
    """Prunes the network by a plan and fine-tunes it for an epoch, for a method that goes on from there: later calls
    start from the healed weights, and the method's result is carried out on them. None without images."""
    images: OnImages | None = None
    """Calibration images; only for a method that asks (`NEEDS_IMAGES`). What it has refitted on them is what its result
    is carried out on."""
    clock: Clock | None = None
    """Where the request's budget limits the latency."""


@dataclass(frozen=True)
class MethodResult:
    """A plan, and beside it what is worth keeping: files for the bundle, and seconds a layer."""

    plan: Plan
    records: Mapping[str, bytes] = field(default_factory=dict)
    """File name -> contents, e.g. the clustering, to be reused with another rate."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Sentences for the user about the whole run."""
    recovery: Mapping[str, float] = field(default_factory=dict)
    """Layer -> share of its importance that the kept kernels hold, where the method defines it."""


def dense_reason(layer: Layer, request: PruneRequest) -> str:
    """Why this layer stays dense under this request; empty if it can be grouped."""
    if layer.refusal:
        return layer.refusal
    if layer.kind == "linear":
        return "linear layers stay dense"
    if layer.kind == "conv_transpose":
        return "transposed convolutions stay dense"
    if layer.is_depthwise:
        return "a depthwise convolution has nothing to group"
    if layer.groups > 1:
        return f"already grouped ({layer.groups} groups)"
    if request.skips(layer.name):
        return "skipped by request"
    if layer.is_first and not request.include_first:
        return "the first convolution stays dense unless asked (--include-first)"
    if layer.is_shortcut and not request.include_shortcuts:
        return "1x1 shortcuts stay dense unless asked (--include-shortcuts)"
    if layer.out_channels % request.groups:
        return f"{layer.out_channels} filters cannot be divided into {request.groups} equal groups"
    return ""


def check_skip_patterns(graph: Graph, request: PruneRequest) -> None:
    """InputError if a --skip or --layer-rate pattern matches no layer: a misspelt name would change what is pruned."""
    patterns = [("--skip", pattern) for pattern in request.skip]
    patterns += [("--layer-rate", pattern) for pattern, _ in request.layer_rates]
    for flag, pattern in patterns:
        if not any(fnmatch.fnmatchcase(layer.name, pattern) for layer in graph.layers):
            names = ", ".join(layer.name for layer in graph.layers[:4])
            raise InputError(
                f"{flag} {pattern!r} matches no layer", expected=f"a layer's name or pattern, such as {names}"
            )


def nothing_to_prune(graph: Graph, reasons: Mapping[str, str], cannot: str, remedy: str) -> InputError:
    """The error for a request that leaves every layer as it is: what the layers cannot, with some of the reasons."""
    shown = sorted(graph.layers, key=lambda layer: layer.kind != "conv")[:4]  # convolutions say most
    listed = "; ".join(f"{layer.name}: {reasons[layer.name]}" for layer in shown)
    more = "; ..." if len(graph.layers) > len(shown) else ""
    return InputError(f"none of the network's {len(graph.layers)} layers can {cannot} ({listed}{more})", remedy=remedy)


def require_finite(names: Iterable[str], values: Weights, what: str = "weights") -> None:
    """InputError that names the first of these layers whose values are not all finite."""
    for name in names:
        if name in values and not np.isfinite(values[name]).all():
            raise InputError(
                f"the {what} hold NaN or infinite values", where=name, expected="a trained network",
                remedy="take a checkpoint from before the training diverged",
            )  # fmt: skip
