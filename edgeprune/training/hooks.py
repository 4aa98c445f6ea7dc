"""What a method does while a network is trained: the points at which the one training loop calls it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.datasets.images import Dataset


@dataclass(frozen=True)
class Step:
    """One optimisation step."""

    epoch: int
    """1 is the first."""
    index: int
    """In the epoch; 0 is the first."""
    learning_rate: float
    progress: float
    """Epochs done at the middle of this step, a fraction."""


class TrainingHooks:
    """Called by `training.fit` at its fixed points. Nothing is done here: methods override what they need.

    The order of one run: `split`, `begin`, (`restore` when a run is resumed,) then for each batch `before_batch`, the
    forward and backward pass, `before_update`, the optimizer's step; after each epoch `after_epoch`, then, for the
    checkpoint, `state`; at last `end`.

    Under torchrun all ranks call them alike, with the gradients of the whole batch: they must decide the same
    everywhere (`training.collectives`), and `state` must give the same bits.
    """

    def split(self, data: Dataset) -> Dataset:
        """The part of the training data to train on; a method that needs validation batches keeps the rest."""
        return data

    def begin(self, model: nn.Module, optimizer: torch.optim.SGD) -> None:
        """Training starts: `model` is the copy that is trained, on its device, `optimizer` its optimizer.

        A method may rearrange the optimizer's parameter groups here, and register forward hooks on the model's modules;
        it must not change the keys of the state dict.
        """

    def before_batch(self, step: Step) -> None:
        """A batch is about to be run. What is run here has the precision that the loop trains in."""

    def before_update(self, step: Step) -> None:
        """The gradients are there, the optimizer has not used them yet."""

    def after_epoch(self, epoch: int) -> None:
        """An epoch (1 is the first) is over. The weights may be changed."""

    def end(self) -> None:
        """Training is over: forward hooks are removed, the weights put into the form in which the plan cuts them."""

    def state(self) -> Mapping[str, Tensor]:
        """All that `restore` needs to continue bit for bit after an epoch, beside the model and the optimizer."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` gave; called after `begin`."""

    def log(self) -> Mapping[str, Any]:
        """Figures of the epoch that just ended, numbers or text by short names ({"pruned": 0.3}), for the run's log."""
        return {}
