"""LFPC (paper 004, chapter 6): each layer learns which criterion prunes it, while the network is trained.

For every unit of filters (`channel_choice`) a distribution over criteria is trained on held-out images: filters go by
the smallest L1 norm, by the smallest L2 norm, or as the nearest to the geometric median. With a budget, a distribution
over rates is trained, too, and a computation loss draws the network's expected cost towards the budget. In the end each
unit loses the filters that its most probable criterion names. `sampler` has the distributions, `cost` the
costs, `search` the work during training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec
from torch import nn

from edgeprune.methods.base import MethodInput, MethodResult
from edgeprune.methods.lfpc.search import EpochFigures, LfpcHooks
from edgeprune.methods.lfpc.settings import Settings
from edgeprune.methods.shared.channel_alignment import aligned, alignment_notes
from edgeprune.methods.shared.channel_choice import plan_of
from edgeprune.methods.shared.units import Numbers, prunable
from edgeprune.plans.method_record import FILE_NAME, MethodRecord, RecordCurve, RecordTable
from edgeprune.plans.plan import Plan

__all__ = ["RATE", "SUMMARY", "Lfpc", "Settings", "train"]

SUMMARY = "Learns while training, on held-out images, which criterion (L1, L2, geometric median) prunes each layer."
RATE = 0.4


def train(given: MethodInput, settings: Settings, epochs: int) -> Lfpc:
    """LFPC at work in a training run of so many epochs.

    InputError for settings that mean nothing, a network without a filter to spare, and a budget out of reach.
    """
    given.request.check()
    settings.check()
    among = prunable(given.graph, given.request, settings.coupling)
    if not given.request.budget.is_given:  # else the counts are learned
        among = aligned(among, given.weights)
    return Lfpc(LfpcHooks(among, settings, epochs))


@dataclasses.dataclass(frozen=True)
class Lfpc:
    """One run of LFPC: `hooks` for the training loop, `result` afterwards."""

    hooks: LfpcHooks

    def result(self, model: nn.Module) -> MethodResult:
        """The plan for the criteria that were learned, and the record of how they were."""
        hooks = self.hooks
        if hooks.choice is None:
            raise RuntimeError("training ended before the search did")
        plan = _plan(hooks, hooks.choice)
        record = _record(hooks, hooks.choice)
        return MethodResult(plan, {FILE_NAME: record.to_json()}, notes=alignment_notes(hooks.among))


def _plan(hooks: LfpcHooks, choice: Sequence[Numbers]) -> Plan:
    request, settings = hooks.among.request, hooks.settings
    names = ("rate", "include_first", "include_shortcuts", "skip", "layer_rates", "budget", "align")
    used = {name: getattr(request, name) for name in names}
    values: dict[str, Any] = msgspec.to_builtins(used | dataclasses.asdict(settings))
    among = hooks.among
    if request.align > 1:
        among = dataclasses.replace(among, asked=hooks.asked_counts(), kept=tuple(map(len, choice)))
    plan = plan_of(choice, among, "lfpc", values)
    notes: dict[str, str] = {}
    for unit, kept, asked in zip(among.units, choice, among.asked or map(len, choice), strict=True):
        if len(kept) == asked == unit.size:
            notes |= {name: "the search leaves none of its filters out" for name, _ in (*unit.layers, *unit.followers)}
    layers = (msgspec.structs.replace(entry, note=notes.get(entry.name, entry.note)) for entry in plan.layers)
    return msgspec.structs.replace(plan, layers=tuple(layers))


def _winners(hooks: LfpcHooks) -> list[tuple[str, float]]:
    """The most probable criterion of each unit, and its probability."""
    best, number = hooks.sampler.probabilities().max(1)
    return [(hooks.settings.criteria[int(n)], float(p)) for n, p in zip(number, best, strict=True)]


def _record(hooks: LfpcHooks, choice: Sequence[Numbers]) -> MethodRecord:
    probabilities = hooks.sampler.probabilities().tolist()
    rows = tuple(
        (unit.name, winner, *(round(p, 4) for p in of_unit), unit.size, len(kept))
        for unit, (winner, _), of_unit, kept in zip(
            hooks.among.units, _winners(hooks), probabilities, choice, strict=True
        )
    )
    columns = ("layer", "criterion", *(f"p({name})" for name in hooks.settings.criteria), "filters", "kept")
    text = "The most probable criterion of each unit prunes it. A unit is named by the first of its layers."
    return MethodRecord((RecordTable("Learned criteria", columns, rows, text),), _curves(hooks.history))


def _curves(history: Sequence[EpochFigures]) -> tuple[RecordCurve, ...]:
    epochs = tuple(float(epoch) for epoch in range(1, len(history) + 1))

    def values(name: str) -> tuple[float, ...]:
        return tuple(getattr(figures, name) for figures in history)

    return tuple(
        RecordCurve(title, "epoch of the search", label, epochs, values(name), text=text)
        for title, label, name, text in (
            (
                "Loss on held-out images", "cross-entropy", "validation_loss",
                "Mean over the epoch, through pruned versions of the layers that were drawn anew for every batch.",
            ),
            (
                "Expected multiply-adds", "share of the dense network", "macs",
                "With the learned probabilities of the rates.",
            ),
            (
                "Indecision between criteria", "entropy", "entropy",
                "Mean entropy of the criteria's probabilities: 1 where all are as probable, 0 where one is certain.",
            ),
        )
    )  # fmt: skip
