"""C-SGD (paper 001): filters are trained to become equal, then all but one of each cluster are cut without loss.

When training starts, the filters of every unit of `channel_choice` are divided into as many clusters as filters are to
survive (`clusters`). During training every step averages the gradients of a cluster and pulls its filters to
their mean (`update`): kernels, biases, and the weight and bias of every BatchNorm that holds the channels, those
of later concatenations included. At the end the first filter of each cluster is kept, and what reads the others reads
the first instead: the sum of its input channels. Nothing needs fine-tuning. There is no one-shot form: filters that
were not trained to be equal cannot be merged without loss.

BatchNorm's running mean and variance are not trained. They are the same function of equal filters, so they converge
where the filters do, some tens of steps later (in short runs on digits they ended within 1e-4 of a standard deviation).
At the end they are averaged over the cluster like all else: the mean of the running means is the running mean of the
mean filter, exactly, while the first filter's would favour that one.

After that projection trimming changes nothing but rounding. How far the projection had to move the filters is measured
and told: next to nothing after enough steps. `epsilon=auto` takes the paper's 0.003, or as much more as a run with
fewer steps needs to leave a thousandth of the distances.

The paper starts from a trained network; on CIFAR-10 it trains for 600 epochs with batches of 64 and a learning rate of
0.03, a tenth after 200 and again after 400 epochs; on ImageNet for 70 epochs. Structural squeezing (section IV) trains
a wider network first, then squeezes it into the widths of the wanted one: `squeeze_to`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edgeprune.errors import InputError, unknown_name
from edgeprune.graph import Graph
from edgeprune.methods import setting
from edgeprune.methods.base import MethodInput, MethodResult, PruneRequest
from edgeprune.methods.csgd.clusters import SCHEMES, cluster_units
from edgeprune.methods.shared.budget_rate import within_budget
from edgeprune.methods.shared.channel_alignment import aligned, alignment_notes, no_filter_goes
from edgeprune.methods.shared.channel_choice import kept_counts, plan_of
from edgeprune.methods.shared.units import Prunable, Unit, prunable
from edgeprune.plans.kept_channels import KeptChannels
from edgeprune.plans.method_record import FILE_NAME, MethodRecord, RecordCurve, RecordTable
from edgeprune.plans.plan import Plan

if TYPE_CHECKING:
    from torch import nn

    from edgeprune.methods.csgd.training import CentripetalHooks
    from edgeprune.methods.shared.clustering import Clusters

SUMMARY = "Trains the filters of each cluster to become equal, then keeps one of each without loss."
RATE = 0.375  # ResNets of 16-32-64 channels become 10-20-40
AMOUNT_SETTINGS = ("squeeze_to",)

FAR = 0.01
"""Share of the weights' norm that the last projection may move before the user is advised to do something."""
SMALLEST = 1e-30
"""Deviation that stands for none at all where logarithms are shown."""


@dataclass(frozen=True)
class Settings:
    """The settings of C-SGD."""

    clusters: Literal["kmeans", "even", "imbalanced"] = setting(
        "kmeans", "how filters are divided: kmeans (by their kernels), even (neighbours), imbalanced", paper="kmeans"
    )
    epsilon: float | Literal["auto"] = setting(
        "auto", "centripetal strength; auto: 0.003, or more where the run has too few steps for it", paper="0.003"
    )
    squeeze_to: str = setting(
        "", "a narrower architecture whose widths are taken instead of a rate, such as resnet20", paper="none"
    )


@dataclass(frozen=True)
class Centripetal:
    """C-SGD in one training run."""

    hooks: CentripetalHooks
    settings: Settings

    def result(self, model: nn.Module) -> MethodResult:
        """The plan, the deviation's course, and how far from equal the filters were in the end."""
        hooks = self.hooks
        plan = merging_plan(hooks.among, hooks.clusters, _used_settings(hooks, self.settings))
        return MethodResult(
            plan, {FILE_NAME: _record(hooks, plan).to_json()}, notes=(*alignment_notes(hooks.among), *_notes(hooks))
        )


def train(given: MethodInput, settings: Settings, epochs: int) -> Centripetal:
    """C-SGD on one training run of so many epochs, starting from the given weights.

    InputError if a setting means nothing, no filter can go or is to go, a budget cannot be met, or the architecture to
    squeeze into is no narrower form of this one.
    """
    from edgeprune.methods.csgd.training import CentripetalHooks

    given.request.check()
    _check_settings(settings, given.request)
    among = prunable(given.graph, given.request, "coupled", merging=True)
    if settings.squeeze_to:
        counts = squeezed_counts(among, settings.squeeze_to)
    else:
        among = aligned(within_budget(among), given.weights)
        counts = kept_counts(among)
    if all(count == unit.size for count, unit in zip(counts, among.units, strict=True)):
        if not settings.squeeze_to:
            raise no_filter_goes(among)
        wanted = f"squeeze_to={settings.squeeze_to}"
        raise InputError(f"{wanted} leaves every layer all of its filters", expected="fewer filters in some layer")
    clusters = cluster_units(among, given.weights, counts, settings.clusters)
    return Centripetal(CentripetalHooks(among, clusters, settings.epsilon, epochs), settings)


# -- how many filters survive ------------------------------------------------------------------------------------------
def squeezed_counts(among: Prunable, arch: str) -> tuple[int, ...]:
    """Per unit, the width that it has in the narrower architecture `arch`.

    InputError if that is not the same network with fewer channels, or a layer that is narrower there cannot be thinned.
    """
    graph, narrow = among.graph, _graph_of(arch, among.graph)
    shapes = [[(e.name, e.kind, e.kernel_size, e.is_depthwise, e.writes) for e in g.layers] for g in (graph, narrow)]
    if shapes[0] != shapes[1]:
        other = next((a[0] for a, b in zip(*shapes, strict=False) if a != b), "the number of layers")
        raise InputError(
            f"squeeze_to={arch} is another network: {other} differs",
            expected="the same architecture with fewer channels, such as resnet20 for resnet20-w24",
        )
    there = prunable(narrow, among.request, "coupled", merging=True)
    sizes = {_identity(unit): unit.size for unit in there.units}
    counts = tuple(min(sizes.get(_identity(unit), unit.size), unit.size) for unit in among.units)
    kept = KeptChannels(plan_of([tuple(range(count)) for count in counts], among, "csgd", {}), graph)
    for layer in graph.layers:
        wanted, left = narrow.layer(layer.name).out_channels, len(kept.filters(layer).index)
        if wanted != left:
            raise InputError(
                f"squeeze_to={arch} has {wanted} filters in {layer.name}, which keeps {left} of {layer.out_channels}"
                + (f" ({among.reasons[layer.name]})" if layer.name in among.reasons else ""),
            )
    return counts


def _graph_of(arch: str, like: Graph) -> Graph:
    """The graph of an architecture with the input and the classes of the network that is squeezed."""
    import torch

    from edgeprune.tracing.trace import trace
    from edgeprune.zoo import build

    channels, height, width = like.input_shape
    classes = like.layers[-1].out_channels
    built = build(arch, num_classes=classes, in_channels=channels, input_size=(height, width))
    return trace(built.model, torch.zeros(1, *like.input_shape)).graph


def _identity(unit: Unit) -> tuple[str, ...]:
    """What a unit is called in every width of an architecture: the coupled sets that its channels are in."""
    return tuple(name for name, _ in unit.sets)


# -- the outcome -------------------------------------------------------------------------------------------------------
def merging_plan(among: Prunable, clusters: Sequence[Clusters], settings: Mapping[str, Any]) -> Plan:
    """The plan that keeps the first filter of each cluster (11) and lets the others be read from it."""
    plan = plan_of([tuple(places[0] for places in of_unit) for of_unit in clusters], among, "csgd", settings)
    merged: dict[str, list[tuple[int, ...]]] = {entry.name: [] for entry in plan.sets}
    for unit, of_unit in zip(among.units, clusters, strict=True):
        for name, channels in unit.sets:
            if name in merged:  # a concatenation follows its parts
                merged[name] += [tuple(channels[place] for place in places) for places in of_unit if len(places) > 1]
    sets = tuple(msgspec.structs.replace(entry, merged=tuple(sorted(merged[entry.name]))) for entry in plan.sets)
    return msgspec.structs.replace(plan, sets=sets)


def _used_settings(hooks: CentripetalHooks, settings: Settings) -> dict[str, Any]:
    """Every setting with the value that was used."""
    request = dataclasses.asdict(hooks.among.request)
    for unused in ("seed", "groups", "share_partitions", "prices", "mixing_price"):
        del request[unused]
    used: dict[str, Any] = msgspec.to_builtins(request | dataclasses.asdict(settings))
    without_folder = {"squeeze_to": Path(settings.squeeze_to).name} if settings.squeeze_to else {}
    return used | without_folder | {"epsilon": hooks.epsilon, "epochs": hooks.epochs}


def _notes(hooks: CentripetalHooks) -> tuple[str, ...]:
    left = (
        f"{hooks.distance_left:.2g} of the distances in clusters were left after training (epsilon {hooks.epsilon:.3g})"
    )
    note = f"C-SGD: {left}; making filters equal moved the weights by {hooks.moved:.2g} of their norm."
    if hooks.moved <= FAR:
        return (note,)
    epsilon = hooks.advised_epsilon
    advice = f"--set epsilon={epsilon:.2g}, or more epochs" if epsilon > 1.05 * hooks.epsilon else "more epochs"
    return (note, f"That is far, and accuracy may have been lost there: use {advice}.")


def _record(hooks: CentripetalHooks, plan: Plan) -> MethodRecord:
    kept = KeptChannels(plan, hooks.among.graph)
    start, end = hooks.deviations[0], hooks.deviations[-1]
    rows = []
    for name, squared_norm in hooks.squared_norms.items():
        filters = kept.filters(hooks.among.graph.layer(name))
        largest = max((len(cluster) for cluster in filters.merged), default=1)
        away = math.sqrt(end[name] / squared_norm) if squared_norm else 0.0
        rows.append((name, filters.channels, len(filters.index), largest, start[name], end[name], away))
    table = RecordTable(
        "Clusters of filters",
        ("layer", "filters", "clusters", "largest cluster", "deviation at the start", "at the end", "moved"),
        tuple(rows),
        "The deviation is the sum of squared distances of the kernels to the mean of their cluster. At the end the "
        "filters were set to these means: `moved` is how far, as a share of the layer's norm.",
    )
    chi = [sum(epoch.values()) for epoch in hooks.deviations]
    curve = RecordCurve(
        "Deviation of the filters from the mean of their cluster",
        "epoch",
        "log10 of the deviation",
        tuple(float(epoch) for epoch in range(len(chi))),
        tuple(math.log10(max(value, SMALLEST)) for value in chi),
        text="Over all layers; a straight line while the learning rate is constant.",
    )
    return MethodRecord((table,), (curve,))


def _check_settings(settings: Settings, request: PruneRequest) -> None:
    """InputError for a value that means nothing, however the settings were made."""
    if settings.clusters not in SCHEMES:
        raise unknown_name("way to divide filters", settings.clusters, SCHEMES)
    epsilon = settings.epsilon
    if not isinstance(epsilon, str) and not (math.isfinite(epsilon) and epsilon > 0):
        raise InputError(f"setting epsilon is {epsilon!r}", expected="auto, or a number above 0")
    if settings.squeeze_to and request.budget.is_given:
        raise InputError(
            "squeeze_to and a budget were given", remedy="leave one out: both say how many filters survive"
        )
    if settings.squeeze_to and request.align > 1:
        raise InputError("squeeze_to and --align were given", remedy="leave one out: both say how many filters survive")
