"""gkp-cal: grouped kernels chosen on calibration images, without labels and without training.

Layer by layer in forward order, on what the layer reads in the network pruned so far and with the dense network's
outputs as target: the least-squares weights with all kernels, filters and input channels to groups by what it costs
(`assignment`), kernels removed one by one with the others refitted (`elimination`), and the mean of the output
restored. At the end of a residual branch the target also makes up for what the stream has lost before.

A filter's error counts by the square of what BatchNorm multiplies it with.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import InputError
from edgeprune.graph import Layer
from edgeprune.methods import setting
from edgeprune.methods.base import MethodInput, MethodResult, Moments, Refitted
from edgeprune.methods.gkp_cal.assignment import Grouped, group
from edgeprune.methods.gkp_cal.elimination import solved
from edgeprune.methods.shared.groupings import Groupings, kernels_to_group
from edgeprune.plans.method_record import FILE_NAME, MethodRecord, RecordTable
from edgeprune.plans.plan import LayerPlan, Plan

SUMMARY = "Chooses grouped kernels on a few hundred images without labels, and refits the others in closed form."
GROUPS, RATE = 8, 0.4375
NEEDS_IMAGES = True
ENOUGH = 4
"""Columns for each unknown weight of a filter, from which on least squares hardly follows chance."""
ROUNDING = 1e-7
"""Of a product in float32, as a share of what is read."""
SMALLEST = 1e-12
LEAST_WEIGHT = 1e-3
"""Of a filter's error, as a share of the mean, where BatchNorm makes nothing of the filter."""


@dataclass(frozen=True)
class Settings:
    """The settings of gkp-cal."""

    damping: float = setting(0.001, "how much the weights are held to the dense ones, as a share of what they read")
    refine: int = setting(3, "how often filters may change groups by their exact errors")


def prune(given: MethodInput, settings: Settings) -> MethodResult:
    """The plan for the given network; `given.layerwise` has then refitted the layers.

    InputError as `kernels_to_group` says, for settings that make no sense, and where there are no images.
    """
    given.request.check()
    _check_settings(settings)
    if given.request.budget.is_given:
        raise InputError("gkp-cal looks for no --budget", remedy="choose --groups and --rate, or --method gconv")
    assert given.layerwise is not None, "NEEDS_IMAGES"
    grouped, groupings, reasons = kernels_to_group(given)
    work = _Work(given, settings, groupings)
    given.layerwise([layer.name for layer in grouped], work.refitted)
    entries = [
        groupings.recorded(work.entries.get(layer.name) or LayerPlan(layer.name, note=reasons[layer.name]))
        for layer in given.graph.layers
    ]
    plan = Plan("gkp-cal", _used_settings(given, settings), given.request.seed, tuple(entries))
    notes = (*groupings.missed(given.graph), *work.notes())
    return MethodResult(plan, {FILE_NAME: work.record().to_json()}, work.seconds, notes)


class _Work:
    """The layers of one run, one after another."""

    def __init__(self, given: MethodInput, settings: Settings, groupings: Groupings) -> None:
        self.given, self.settings, self.groupings = given, settings, groupings
        self.entries: dict[str, LayerPlan] = {}
        self.seconds: dict[str, float] = {}
        self._errors: dict[str, float] = {}
        self._ranks: dict[str, float] = {}
        """Columns seen for each that a layer reads."""
        self._rng = np.random.default_rng(given.request.seed)

    def refitted(self, layer: Layer, moments: Moments) -> Refitted:
        started = time.perf_counter()
        size, taken = math.prod(layer.kernel_size), self.groupings.taken[layer.name]
        self._ranks[layer.name] = moments.count / len(moments.covariance)
        dense = self.given.weights[layer.name].reshape(layer.out_channels, -1).astype(np.float64)
        weights, inverse = solved(moments.covariance, moments.cross, dense, self._added(moments))
        counts = self._counts(layer)
        found = group(
            weights * counts[:, None], inverse, size, taken.groups, taken.kept, self._rng, self.settings.refine
        )
        weight = np.zeros((layer.out_channels, layer.in_channels, size))
        for rows, part in zip(_rows_of(found), found.groups, strict=True):
            weight[np.ix_(rows, part.kept)] = part.weights / counts[list(rows), None, None]
        self.entries[layer.name] = _entry(layer, found, self.groupings)
        variance = float(
            np.einsum("fc,cd,fd->", weights * counts[:, None], moments.covariance, weights * counts[:, None])
        )
        self._errors[layer.name] = found.error / variance if variance > 0 else 0.0
        self.seconds[layer.name] = time.perf_counter() - started
        shift = moments.wanted - weight.reshape(len(weight), -1) @ moments.read
        return Refitted(weight.reshape(layer.out_channels, layer.in_channels, *layer.kernel_size), shift)

    def _added(self, moments: Moments) -> float:
        """What holds the weights to the dense ones; more than rounding makes of moments that are zero."""
        variance = float(np.trace(moments.covariance)) / len(moments.covariance)
        return max(self.settings.damping * variance, ROUNDING * float(np.square(moments.read).mean()), SMALLEST)

    def _counts(self, layer: Layer) -> NDArray[np.float64]:
        """(filters,) what BatchNorm multiplies each with, which its error counts by."""
        norm = self.given.norms.get(layer.norm)
        if norm is None:
            return np.ones(layer.out_channels)
        gain = np.abs(norm.weight.astype(np.float64)) / np.sqrt(norm.running_var.astype(np.float64) + norm.eps)
        return gain + LEAST_WEIGHT * gain.mean() if gain.any() else np.ones(layer.out_channels)

    def notes(self) -> tuple[str, ...]:
        """A sentence if the images are too few for some layer."""
        name = min(self._ranks, key=self._ranks.__getitem__)
        if self._ranks[name] >= ENOUGH:
            return ()
        times = math.ceil(ENOUGH / self._ranks[name])
        return (
            f"gkp-cal: the images are few for {name}, which reads more than they tell: {times} times as many would do.",
        )

    def record(self) -> MethodRecord:
        rows = tuple((name, error) for name, error in self._errors.items())
        text = "The squared error that the removed kernels leave, as a share of the output's variance."
        return MethodRecord((RecordTable("Error layer by layer", ("layer", "error"), rows, text),))


def _rows_of(found: Grouped) -> list[tuple[int, ...]]:
    """Per group its filters, ascending."""
    return [tuple(np.flatnonzero(found.labels == number).tolist()) for number in range(len(found.groups))]


def _entry(layer: Layer, found: Grouped, groupings: Groupings) -> LayerPlan:
    parts = sorted(zip(_rows_of(found), (part.kept for part in found.groups), strict=True))
    return LayerPlan(
        layer.name, tuple(rows for rows, _ in parts), tuple(kept for _, kept in parts), groupings.note(layer.name)
    )


def _check_settings(settings: Settings) -> None:
    if not (math.isfinite(settings.damping) and settings.damping > 0):
        raise InputError(f"setting damping is {settings.damping:g}", expected="a small number above 0, such as 0.001")
    if settings.refine < 0:
        raise InputError(f"setting refine is {settings.refine}", expected="0 or more")


def _used_settings(given: MethodInput, settings: Settings) -> dict[str, Any]:
    request = given.request
    return {
        "groups": request.groups, "rate": request.rate, "align": request.align, "skip": list(request.skip),
        "layer_rates": [list(pair) for pair in request.layer_rates], "include_first": request.include_first,
        "include_shortcuts": request.include_shortcuts, **dataclasses.asdict(settings),
    }  # fmt: skip
