"""LFPC's work during training: weights on training batches, the sampler of criteria on held-out batches, by turns.

Each training batch runs through pruned versions drawn anew (`sampler`). Before it, one validation batch does, and
the sampler's own Adam follows the gradient of (6.14). When the search is over, each unit keeps what its most probable
criterion says, and the rest of the epochs train what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from edgeprune.datasets.images import Dataset
from edgeprune.datasets.targets import moved
from edgeprune.methods.lfpc.cost import (
    candidate_counts,
    check_reachable,
    computation_loss,
    counts_for_budget,
    expected_macs,
)
from edgeprune.methods.lfpc.sampler import CriteriaSampler
from edgeprune.methods.lfpc.scales import ChannelScales
from edgeprune.methods.lfpc.settings import Criterion, Settings
from edgeprune.methods.lfpc.validation import ValidationBatches, split_off
from edgeprune.methods.shared.channel_alignment import aligned_counts
from edgeprune.methods.shared.filter_criteria import Filters, distance_sums, norms
from edgeprune.methods.shared.units import Numbers, Prunable
from edgeprune.methods.soft.training import zero_filters, zero_norms
from edgeprune.modules.filters import filters_of
from edgeprune.training.collectives import average
from edgeprune.training.evaluation import mean_loss
from edgeprune.training.hooks import Step, TrainingHooks

SCORES: Mapping[Criterion, Callable[[Filters], NDArray[np.float64]]] = {
    "l1": lambda filters: norms(filters, "l1"),
    "l2": lambda filters: norms(filters, "l2"),
    # Chapter 5's sum of distances. The root of the sum of squares in 6.4.1 would rank by the distance from the mean.
    "gm": lambda filters: distance_sums(filters, "l2"),
}


@dataclass(frozen=True)
class EpochFigures:
    """One epoch of the search."""

    validation_loss: float
    """Mean loss of its validation batches in nats, through the pruned versions that were drawn."""
    macs: float
    """Expected multiply-adds at its end, as a share of the dense network's."""
    entropy: float
    """Mean entropy of the criteria's probabilities at its end, as a share of the most that it can be."""


class LfpcHooks(TrainingHooks):
    """The search for criteria and rates, then training with what was chosen."""

    def __init__(self, among: Prunable, settings: Settings, epochs: int) -> None:
        self.among, self.settings = among, settings
        self.search_epochs = min(max(round(settings.search_share * epochs), 1), epochs)
        counts = candidate_counts(among, settings.rates)
        check_reachable(among, counts)
        self.sampler = CriteriaSampler([unit.size for unit in among.units], counts, len(settings.criteria))
        self.choice: tuple[Numbers, ...] | None = None
        """Of each unit the filters that it keeps; None while they are searched for."""
        self.history: list[EpochFigures] = []
        self._adam = torch.optim.Adam(
            self.sampler.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._draws = torch.Generator().manual_seed(among.request.seed)
        self._computation_loss = computation_loss(among, settings.tolerance)
        self._macs = expected_macs(among)
        self._losses: list[float] = []
        self._figures: dict[str, float] = {}

    # -- the search --------------------------------------------------------------------------------------------------
    def split(self, data: Dataset) -> Dataset:
        seed = self.among.request.seed
        self._data = data
        train, held_out = split_off(data, self.settings.validation_share, seed)
        self._validation = ValidationBatches(held_out, self.settings.validation_batch, seed)
        return train

    def begin(self, model: nn.Module, optimizer: torch.optim.SGD) -> None:
        self._model = model
        self._scales = ChannelScales(model, self.among)

    def before_batch(self, step: Step) -> None:
        if self.choice is not None:
            return
        if step.index == 0:
            self._rank()
        share = min(step.progress / self.search_epochs, 1.0)
        first, last = self.settings.first_temperature, self.settings.last_temperature
        temperature = first + (last - first) * share
        if step.index % self.settings.every == 0:
            self._train_sampler(temperature)
        with torch.no_grad():
            self._scales.set(self.sampler.sample(temperature, self._draws))

    def _train_sampler(self, temperature: float) -> None:
        """One step of Adam on (6.14) with a validation batch. The model's gradients and statistics are not touched."""
        images, labels = self._validation.draw()
        device = next(self._model.parameters()).device
        self._scales.set(self.sampler.sample(temperature, self._draws))
        tensors = {name: parameter.detach() for name, parameter in self._model.named_parameters()}
        tensors |= {name: buffer.clone() for name, buffer in self._model.named_buffers()}
        logits = functional_call(self._model, tensors, (images.to(device),))
        loss = mean_loss(logits, moved(labels, device), self._data).cpu()
        computation = self._computation_loss(self.sampler.expected_counts())
        self._adam.zero_grad()
        (loss + self.settings.computation_weight * computation).backward()  # type: ignore[no-untyped-call]
        # All ranks draw the same images and noise, but GPUs may add up a gradient in another order each time.
        average([loss, *(p.grad for p in self.sampler.parameters() if p.grad is not None)])
        self._losses.append(loss.item())
        self._adam.step()

    def before_update(self, step: Step) -> None:
        if self.choice is None and self.settings.weights == "fixed":
            for parameter in self._model.parameters():
                parameter.grad = None  # which the optimizer leaves alone

    def after_epoch(self, epoch: int) -> None:
        """The network stands as the sampler would cut it now; after the search it stays so."""
        self._figures = {}
        if self.choice is not None:
            return
        self._rank()
        macs = float(self._macs(self.sampler.expected_counts().detach()))
        loss = sum(self._losses) / max(len(self._losses), 1)
        self.history.append(EpochFigures(loss, macs, self.sampler.entropy()))
        self._figures = {"validation loss": loss, "expected macs": macs, "entropy": self.sampler.entropy()}
        self._losses = []
        choice = self.most_probable()
        self._scales.set(self.sampler.as_mask(choice))  # for the accuracy that is measured now
        if epoch >= self.search_epochs:
            self.choice = choice

    def most_probable(self) -> tuple[Numbers, ...]:
        """Of each unit the filters that stay, ascending: its most probable criterion decides which, its rate how many.

        With a budget, it keeps its expected number, and all units a little more or less in proportion, so that the
        budget holds. The expectation is what the computation loss has steered to the budget; the most probable rates
        alone may be far from it as long as the sampler is undecided.
        """
        return self.sampler.chosen(self.among.kept or self._on_blocks(self.asked_counts()))

    def asked_counts(self) -> tuple[int, ...]:
        """How many filters each unit would keep now if it had not to be a multiple of a block."""
        expected = self.sampler.expected_counts().tolist()
        return self.among.asked or counts_for_budget(expected, self.sampler.counts, self.among)

    def _on_blocks(self, counts: tuple[int, ...]) -> tuple[int, ...]:
        if self.among.request.align == 1:
            return counts
        weights = {name: _filters(self._model, name) for name in self.among.choosing}
        return aligned_counts(self.among, counts, weights, self.sampler.counts.min(1).values.tolist())

    def _rank(self) -> None:
        """Let every criterion order each unit's filters by the weights as they are; layers of a unit add up."""
        scores = []
        for unit in self.among.units:
            layers = [_filters(self._model, name)[list(filters)] for name, filters in unit.layers]
            of_unit = [sum(SCORES[criterion](layer) for layer in layers) for criterion in self.settings.criteria]
            scores.append(torch.from_numpy(np.stack(of_unit)))
        self.sampler.rank(scores)

    # -- around it ---------------------------------------------------------------------------------------------------
    def end(self) -> None:
        """The filters that were not chosen become zero, with all that still makes something of them."""
        self._scales.remove()
        for unit, kept in zip(self.among.units, self.choice or (), strict=True):
            gone = sorted(set(range(unit.size)) - set(kept))
            zero_filters(self._model, unit, gone)
            zero_norms(self._model, unit, gone, self.among.graph)

    def log(self) -> Mapping[str, Any]:
        return self._figures

    def state(self) -> Mapping[str, Tensor]:
        chosen = torch.empty(0) if self.choice is None else self.sampler.as_mask(self.choice)
        adam = self._adam.state_dict()["state"]
        return {
            "criteria": self.sampler.criteria.detach().clone(),
            "rates": self.sampler.rates.detach().clone(),
            "chosen": chosen,
            "draws": self._draws.get_state(),
            "history": torch.tensor([list(vars(figures).values()) for figures in self.history], dtype=torch.float64),
            **{f"adam.{number}.{name}": value.clone() for number, one in adam.items() for name, value in one.items()},
            **self._validation.state(),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.sampler.load_state_dict({"criteria": state["criteria"], "rates": state["rates"]})
        self._draws.set_state(state["draws"])
        self._validation.restore(state)
        self.history = [EpochFigures(*row) for row in state["history"].tolist()]
        adam: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("adam."):
                _, number, name = key.split(".")
                adam.setdefault(int(number), {})[name] = value
        self._adam.load_state_dict({**self._adam.state_dict(), "state": adam})
        if len(state["chosen"]):
            self.choice = self.sampler.from_mask(state["chosen"])
            self._scales.set(state["chosen"])


def _filters(model: nn.Module, name: str) -> Filters:
    return filters_of(model.get_submodule(name)).detach().double().cpu().flatten(1).numpy()
