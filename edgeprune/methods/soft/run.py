"""Soft filter pruning in one training run: the hooks while it trains, the plan at its end."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from edgeprune.io import progress
from edgeprune.methods.base import MethodInput, MethodResult
from edgeprune.methods.soft.pruning import Schedule, SoftPruning, result_of, units_within_budget
from edgeprune.plans.method_record import RecordCurve

if TYPE_CHECKING:
    from torch import nn

    from edgeprune.methods.soft.training import SoftPruningHooks


class SoftPruningRun:
    """The method in one training run: `hooks` for the training loop, then `result`."""

    hooks: SoftPruningHooks

    def __init__(self, given: MethodInput, method: SoftPruning, schedule: Schedule, epochs: int) -> None:
        from edgeprune.methods.soft.training import SoftPruningHooks  # torch, which pruning once does not need

        self.method = method
        self.hooks = SoftPruningHooks(units_within_budget(given, method), method, schedule, epochs)
        if not method.settles(epochs):
            progress.note(_too_short(method, epochs))

    def result(self, model: nn.Module) -> MethodResult:
        """The plan of the last zeroing; `model` holds zeros wherever it cuts."""
        hooks = self.hooks
        curve = RecordCurve(
            "Zeroed filters", "epoch", "share", tuple(hooks.epochs_zeroed), tuple(hooks.shares_zeroed),
            text="Share of the filters in the layers that can be thinned which was set to zero after each epoch.",
        )  # fmt: skip
        return result_of(hooks.among, hooks.choice, self.method, (curve,))


def _too_short(method: SoftPruning, epochs: int) -> str:
    """What to do about a run that ends before the network has recovered."""
    left = epochs - method.soft_epochs(epochs)
    trained = f"only {left} epoch trains" if left else "nothing trains"
    enough = next(more for more in itertools.count(epochs) if method.settles(more))
    return (
        f"{method.name} in {epochs} epoch{'s' if epochs > 1 else ''}: {trained} the network after its filters are "
        f"zeroed for the last time, so that accuracy will be lost. Use --epochs {enough} or more, or prune at once and "
        f"fine-tune: `edgeprune prune --method {method.name} --finetune-epochs N`."
    )
