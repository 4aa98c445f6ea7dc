"""gkp-cal: pruned on calibration images, without labels and without training.

Without a budget every convolution that can be is put into groups; within one each layer becomes what costs
least there, dense, thinner or in groups (`budgeted`). Layer by layer in forward order, on what the layer reads in the
network pruned so far and with the dense network's outputs as target: the least-squares weights with all kernels, some
kernels removed with the others refitted (`elimination`), and the mean of the output restored. At the end of a residual
branch the target also makes up for what the stream has lost before.

A filter's error counts by the square of what BatchNorm multiplies it with.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from edgeprune.errors import InputError
from edgeprune.graph import Layer
from edgeprune.methods import setting
from edgeprune.methods.base import MethodInput, MethodResult
from edgeprune.methods.gkp_cal.assignment import Grouped, group
from edgeprune.methods.gkp_cal.budgeted import Decision, decide
from edgeprune.methods.gkp_cal.candidates import weights_in_groups
from edgeprune.methods.gkp_cal.elimination import Matrix, solved
from edgeprune.methods.gkp_cal.on_devices import OnDevices
from edgeprune.methods.on_images import Moments, Refitted
from edgeprune.methods.shared.alignment import Grouping
from edgeprune.methods.shared.groupings import kernels_to_group
from edgeprune.methods.shared.reach import exchange_note
from edgeprune.methods.shared.reconstruction import (
    DAMPING,
    ENOUGH,
    Reconstruction,
    columns_a_channel,
    filter_gains,
    held_by,
    refittable_from,
    refitted,
)
from edgeprune.plans.gather_free import needs_gathers
from edgeprune.plans.method_record import FILE_NAME, MethodRecord, RecordCurve, RecordTable
from edgeprune.plans.plan import LayerPlan, Plan

SUMMARY = (
    "Chooses on a few hundred images without labels what each layer becomes, and refits the others in closed form."
)
GROUPS, RATE = 8, 0.4375
NEEDS_IMAGES = True
TAKES = ("--for-devices",)
BUDGETS = ("macs", "params", "latency", "latency-ms")
UNCHANGED = Plan("gkp-cal", {}, 0, ())


@dataclass(frozen=True)
class Settings:
    """The settings of gkp-cal."""

    damping: float = setting(DAMPING, "how much the weights are held to the dense ones, as a share of what they read")
    refine: int = setting(3, "how often filters may change groups by their exact errors")


def prune(given: MethodInput, settings: Settings) -> MethodResult:
    """The plan for the given network; `given.images` has then refitted the layers.

    InputError as `kernels_to_group` or `decide` say, and for settings that make no sense.
    """
    given.request.check()
    _check_settings(settings)
    assert given.images is not None, "NEEDS_IMAGES"
    return _within_budget(given, settings) if given.request.budget.is_given else _uniform(given, settings)


def _uniform(given: MethodInput, settings: Settings) -> MethodResult:
    """All layers that can be in the groups and at the rate that were asked."""
    assert given.images is not None
    if not given.request.allows_gathers:
        raise needs_gathers("gkp-cal")
    _, groupings, reasons = kernels_to_group(given)
    work = _Work(given, settings, groupings.taken)
    given.images.refit(work.names, work)
    entries = [
        groupings.recorded(
            msgspec.structs.replace(work.entries[layer.name], note=groupings.note(layer.name))
            if layer.name in work.entries
            else LayerPlan(layer.name, note=reasons[layer.name])
        )
        for layer in given.graph.layers
    ]
    plan = Plan("gkp-cal", _used_settings(given, settings), given.request.seed, tuple(entries))
    notes = (*groupings.missed(given.graph), *work.notes(), *work.exchange_notes())
    return MethodResult(plan, {FILE_NAME: MethodRecord((work.table(),)).to_json()}, work.seconds, notes)


def _within_budget(given: MethodInput, settings: Settings) -> MethodResult:
    assert given.images is not None
    if given.request.mixing_price:
        raise InputError(
            "gkp-cal puts no layers on devices in a --budget", where="--for-devices",
            remedy="choose --groups and --rate, such as --groups 4 --rate 0.5",
        )  # fmt: skip
    decision = decide(given, settings.damping)
    drawn = decision.chosen.plan
    work = _Work(given, settings, decision.chosen.allocation.grouped, drawn)
    given.images.refit(work.names, work, left_out=decision.chosen.allocation.left_out)
    layers = tuple(work.entries.get(entry.name, entry) for entry in drawn.layers)
    plan = Plan("gkp-cal", _used_settings(given, settings), given.request.seed, layers, drawn.sets)
    record = MethodRecord((work.table(), _choices(decision)), (_front(decision),))
    return MethodResult(plan, {FILE_NAME: record.to_json()}, work.seconds, work.notes())


class _Work:
    """The layers of one run, one after another."""

    def __init__(
        self, given: MethodInput, settings: Settings, grouped: Mapping[str, Grouping], drawn: Plan = UNCHANGED
    ) -> None:
        """`grouped`: the layers to put into groups; `drawn`: what the others keep."""
        self.given, self.settings, self.grouped = given, settings, grouped
        self._others = Reconstruction(drawn, given.graph, given.weights, settings.damping)
        self.entries: dict[str, LayerPlan] = {}
        self.seconds: dict[str, float] = {}
        self._errors: dict[str, float] = {}
        self._ranks: dict[str, float] = {}
        """Columns seen for each that a layer reads."""
        self._rng = np.random.default_rng(given.request.seed)
        self._devices = OnDevices.of(given, grouped)

    @property
    def names(self) -> list[str]:
        if self._others.plan is UNCHANGED and self.grouped:
            return refittable_from(self.given.graph, next(iter(self.grouped)))
        return self._others.names

    def __call__(self, layer: Layer, moments: Moments) -> Refitted:
        started = time.perf_counter()
        in_groups = layer.name in self.grouped
        if in_groups or self._others.fits(layer, moments):
            self._ranks[layer.name] = moments.count / len(moments.covariance)
        found = self._in_groups(layer, moments) if in_groups else self._others(layer, moments)
        self.seconds[layer.name] = time.perf_counter() - started
        return found

    def _in_groups(self, layer: Layer, moments: Moments) -> Refitted:
        size = columns_a_channel(layer)
        dense = self.given.weights[layer.name].reshape(layer.out_channels, -1).astype(np.float64)
        added = held_by(moments, self.settings.damping)
        weights, inverse = solved(moments.covariance, moments.cross, dense, added)
        gains = filter_gains(layer, self.given.norms)
        weights *= gains[:, None]
        found = self._grouped(layer, weights, inverse, size)
        self.entries[layer.name] = found.entry(layer.name)
        variance = float(np.einsum("fc,cd,fd->", weights, moments.covariance, weights, optimize=True))
        self._errors[layer.name] = found.error / variance if variance > 0 else 0.0
        return refitted(layer, moments, weights_in_groups(found, layer, size) / gains[:, None])

    def _grouped(self, layer: Layer, weights: Matrix, inverse: Matrix, size: int) -> Grouped:
        taken, refine = self.grouped[layer.name], self.settings.refine
        if self._devices is not None:
            return self._devices.group(layer, (weights, inverse), size, taken, self._rng, refine)
        return group(weights, inverse, size, taken.groups, taken.kept, self._rng, refine)

    def notes(self) -> tuple[str, ...]:
        """A sentence if the images are too few for some layer."""
        name = min(self._ranks, key=self._ranks.__getitem__)
        if self._ranks[name] >= ENOUGH:
            return ()
        times = math.ceil(ENOUGH / self._ranks[name])
        return (
            f"gkp-cal: the images are few for {name}, which reads more than they tell: {times} times as many would do.",
        )

    def exchange_notes(self) -> tuple[str, ...]:
        """What devices get from each other, if there are several."""
        on = self._devices
        return (exchange_note(self.entries.values(), self.given.graph, on.placement),) if on else ()

    def table(self) -> RecordTable:
        rows = tuple((name, error) for name, error in self._errors.items())
        text = "The squared error that the removed kernels leave, as a share of the output's variance."
        return RecordTable("Error layer by layer", ("layer", "error"), rows, text)


def _choices(decision: Decision) -> RecordTable:
    """What each unit and layer could have become, at what cost."""
    chosen, rows = decision.chosen.allocation, list[tuple[str, str, float, str]]()
    for number, widths in decision.candidates.widths.items():
        unit = decision.among.units[number]
        for place, width in enumerate(widths):
            what = f"{len(width.kept)} of {unit.size} channels"
            rows.append((unit.name, what, width.cost, "chosen" if chosen.widths[number] == place else ""))
    for name, choices in decision.candidates.grouped.items():
        for choice in choices:
            what = f"{choice.grouping.groups} groups of {choice.grouping.kept} inputs"
            rows.append((name, what, choice.cost, "chosen" if chosen.grouped.get(name) == choice.grouping else ""))
    for name, cost in decision.candidates.left_out.items():
        rows.append((name, "its branch left out", cost, "chosen" if name in chosen.left_out else ""))
    text = "How far the outputs move if this alone is changed: of class scores the Kullback-Leibler divergence in nats."
    return RecordTable("What layers could become", ("layer", "choice", "divergence", ""), tuple(rows), text)


def _front(decision: Decision) -> RecordCurve:
    """What other budgets would have cost."""
    what = {"macs": "multiply-adds", "params": "parameters", "latency": "estimated latency"}[decision.front_of]
    x, y = zip(*decision.front, strict=True) if decision.front else ((), ())
    text = "The best choice for each budget: how far the outputs move if single changes add up, before healing."
    return RecordCurve(
        "Budgets and what they cost", f"share of the dense {what}", "estimated divergence", x, y, (), text
    )


def _check_settings(settings: Settings) -> None:
    if not (math.isfinite(settings.damping) and settings.damping > 0):
        raise InputError(f"setting damping is {settings.damping:g}", expected="a small number above 0, such as 0.001")
    if settings.refine < 0:
        raise InputError(f"setting refine is {settings.refine}", expected="0 or more")


def _used_settings(given: MethodInput, settings: Settings) -> dict[str, Any]:
    request = given.request
    amount: dict[str, Any] = {
        "groups": request.groups, "rate": request.rate, "layer_rates": [list(pair) for pair in request.layer_rates],
        **({"prices": request.prices.record()} if request.prices else {}),
        **({"devices": request.mixing_price.record()} if request.mixing_price else {}),
    }  # fmt: skip
    if request.budget.is_given:
        amount = {"budget": request.budget.settings}
    return {
        **amount, "align": request.align, "skip": list(request.skip), "include_first": request.include_first,
        "include_shortcuts": request.include_shortcuts, **dataclasses.asdict(settings),
    }  # fmt: skip
