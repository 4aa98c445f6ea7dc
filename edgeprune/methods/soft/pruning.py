"""Soft filter pruning (paper 004, ch. 3-5): filters are zeroed while the network trains, and cut out at its end.

After every `interval` epochs the chosen filters of every unit (`channel_choice`) lose their weights and biases, and go
on training: what was chosen wrongly grows back, for the next choice is made afresh. With the last choice the BatchNorm
values of their channels are zeroed as well, and stay zero, so that the channels hold zero and cutting them out changes
nothing (behind ReLU, its relatives, SiLU, GELU and tanh; not behind a sigmoid that nothing is multiplied with).

SFP, ASFP, FPGM and FPGM-mix differ in how they choose, and in how the rate rises.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgeprune.errors import InputError
from edgeprune.methods import setting
from edgeprune.methods.base import MethodInput, MethodResult, PruneRequest, Weights, require_finite
from edgeprune.methods.shared.budget_rate import within_budget
from edgeprune.methods.shared.channel_alignment import aligned, alignment_notes, no_filter_goes
from edgeprune.methods.shared.channel_choice import final_rates, kept_count, kept_counts, plan_of, unit_rate
from edgeprune.methods.shared.filter_criteria import Choose
from edgeprune.methods.shared.units import Coupling, Numbers, Prunable, prunable
from edgeprune.plans.method_record import FILE_NAME, MethodRecord, RecordCurve, RecordTable

Schedule = Callable[[float, int], float]
"""(the rate at the end, epoch: 1 is the first) -> the rate after this epoch."""
Choice = tuple[Numbers, ...]
"""For every unit, the places that stay."""

# ResNet-8 on digits (fpgm, 0.6 of the MACs, from 96.4 %): 12.5 % with no epoch after the last zeroing, 67 to 81 % with
# one, 94.7 % with two.
SETTLING_EPOCHS = 2
"""Epochs after the last zeroing with which a short run recovers."""
MANY_ZEROINGS = 10
"""After so many, what is zeroed last has been small for long: the papers' way, without settling."""


@dataclass(frozen=True)
class SoftSettings:
    """The settings that all these methods have."""

    coupling: Literal["separate", "coupled"] = setting(
        "separate",
        "separate: ends of residual branches leave filters out of the add; coupled: whole streams get thinner",
        paper="separate",
    )
    interval: int = setting(1, "train: epochs from one zeroing to the next", paper="1")
    settle: float = setting(
        0.25,
        "train: share of the epochs, the last ones, in which zeroed filters stay zero, as they will be cut",
        paper="0",
    )
    limit_growth: bool = setting(
        True,
        "train: gradients of zeroed filters, which BatchNorm blows up, are no longer than the others'",
        paper="false",
    )


@dataclass(frozen=True)
class SoftPruning:
    """One of the methods with its settings."""

    name: str
    choose: Choose
    coupling: Coupling
    interval: int
    """Epochs from one zeroing to the next."""
    settle: float
    """Share of the epochs in which zeroed filters stay zero."""
    limit_growth: bool
    settings: Mapping[str, Any]
    """As the plan records them."""

    def soft_epochs(self, epochs: int) -> int:
        """After so many epochs filters are chosen for the last time."""
        return epochs - math.floor(self.settle * epochs)

    def settles(self, epochs: int) -> bool:
        """Whether a run of so many epochs has the time to recover: after the last zeroing, or from many before it."""
        soft = self.soft_epochs(epochs)
        return epochs - soft >= SETTLING_EPOCHS or math.ceil(soft / self.interval) >= MANY_ZEROINGS


def soft_pruning(name: str, settings: SoftSettings, choose: Choose) -> SoftPruning:
    """The method with these settings; InputError for a value that makes no sense."""
    if settings.interval < 1:
        raise InputError(f"setting interval is {settings.interval}", expected="an integer of 1 or more (epochs)")
    if not 0 <= settings.settle < 1:
        raise InputError(f"setting settle is {settings.settle:g}", expected="a share from 0 to below 1")
    return SoftPruning(
        name, choose, settings.coupling, settings.interval, settings.settle, settings.limit_growth,
        dataclasses.asdict(settings),
    )  # fmt: skip


def prune_once(given: MethodInput, method: SoftPruning) -> MethodResult:
    """The plan for the given weights, without training. InputError as `units_within_budget` says."""
    among = units_within_budget(given, method)
    choice = choose_filters(among, given.weights, method.choose, lambda goal: goal)
    return result_of(among, choice, method)


def units_within_budget(given: MethodInput, method: SoftPruning) -> Prunable:
    """What may be thinned, with the rate of the request, or where a budget is given, the lowest that holds it; with
    counts on the request's block.

    InputError if nothing can be thinned, the rate takes no filter, the budget cannot be met, or weights are not finite.
    """
    given.request.check()
    among = prunable(given.graph, given.request, method.coupling)
    require_finite(among.choosing, given.weights)
    among = aligned(within_budget(among), given.weights)
    if all(count == unit.size for count, unit in zip(kept_counts(among), among.units, strict=True)):
        raise no_filter_goes(among)
    return among


def choose_filters(among: Prunable, weights: Weights, choose: Choose, rate: Callable[[float], float]) -> Choice:
    """For every unit the places that stay, where `rate` turns a unit's rate at the end into the rate of now."""
    counts = [kept_count(unit.size, rate(end)) for unit, end in zip(among.units, final_rates(among), strict=True)]
    return tuple(
        choose([_rows(weights[name], filters) for name, filters in unit.layers], count)
        if count < unit.size
        else tuple(range(unit.size))
        for unit, count in zip(among.units, counts, strict=True)
    )


def _rows(weight: np.ndarray[Any, Any], filters: Numbers) -> np.ndarray[Any, Any]:
    return weight[list(filters)].reshape(len(filters), -1).astype(np.float64)


def result_of(
    among: Prunable, choice: Choice, method: SoftPruning, curves: tuple[RecordCurve, ...] = ()
) -> MethodResult:
    rows = tuple(
        (
            unit.name if len(unit.layers) == 1 else f"{unit.name} and {len(unit.layers) - 1} more",
            unit_rate(unit, among.request),
            unit.size,
            len(kept),
        )
        for unit, kept in zip(among.units, choice, strict=True)
    )
    table = RecordTable(
        "Kept filters", ("layers", "rate", "filters", "kept"), rows,
        text="Layers in one row keep the same channels.",
    )  # fmt: skip
    plan = plan_of(choice, among, method.name, _used_settings(among.request, method))
    record = MethodRecord((table,), curves)
    return MethodResult(plan, {FILE_NAME: record.to_json()}, notes=alignment_notes(among))


def _used_settings(request: PruneRequest, method: SoftPruning) -> dict[str, Any]:
    used = ("rate", "include_first", "include_shortcuts", "align")
    return {
        **{name: getattr(request, name) for name in used},
        "skip": list(request.skip),
        "layer_rates": [list(pair) for pair in request.layer_rates],
        "budget": dataclasses.asdict(request.budget),
        **method.settings,
    }
