"""What soft filter pruning does while a network is trained: zeroes filters after epochs, and BatchNorms at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeprune.graph import Graph
from edgeprune.methods.shared.units import Numbers, Prunable, Unit
from edgeprune.methods.soft.pruning import Choice, Schedule, SoftPruning, choose_filters
from edgeprune.modules.filters import FILTER_LAYERS, filters_first, filters_of, is_transposed
from edgeprune.training.hooks import Step, TrainingHooks


class SoftPruningHooks(TrainingHooks):
    """First the soft epochs: the chosen filters are zeroed after every `interval` of them, and grow back.

    Behind a zero filter BatchNorm sees no variance and multiplies the gradient by 1 / sqrt(eps), about 300: unchecked,
    filters come back far larger than those that stayed, which then go in their place. So their gradients are limited.
    BatchNorm also makes much of filters that are small again, so that the network relies on them. In the last epochs,
    therefore, what the last soft epoch zeroed stays zero, its BatchNorm values included: the network is trained as it
    will be cut.
    """

    def __init__(self, among: Prunable, method: SoftPruning, schedule: Schedule, epochs: int) -> None:
        self.among, self.method, self.schedule = among, method, schedule
        self.soft_epochs = method.soft_epochs(epochs)
        self.choice: Choice = tuple(tuple(range(unit.size)) for unit in among.units)
        """Of the last zeroing."""
        self.epochs_zeroed: list[float] = []
        self.shares_zeroed: list[float] = []

    def begin(self, model: nn.Module, optimizer: torch.optim.SGD) -> None:
        self._model = model

    def before_batch(self, step: Step) -> None:
        if step.epoch > self.soft_epochs:
            self._zero(with_norms=True)

    def before_update(self, step: Step) -> None:
        if step.epoch <= self.soft_epochs and self.method.limit_growth:
            for unit, kept in zip(self.among.units, self.choice, strict=True):
                if len(kept) < unit.size:
                    limit_gradients(self._model, unit, kept)

    def after_epoch(self, epoch: int) -> None:
        if epoch < self.soft_epochs and epoch % self.method.interval:
            return
        if epoch <= self.soft_epochs:
            weights = {name: _weight(self._model, name) for name in self.among.choosing}
            self.choice = choose_filters(
                self.among, weights, self.method.choose, lambda goal: self.schedule(goal, epoch)
            )
            self.epochs_zeroed.append(float(epoch))
            self.shares_zeroed.append(1 - sum(map(len, self.choice)) / sum(unit.size for unit in self.among.units))
        self._zero(with_norms=epoch >= self.soft_epochs)

    def _zero(self, *, with_norms: bool) -> None:
        for unit, kept in zip(self.among.units, self.choice, strict=True):
            gone = sorted(set(range(unit.size)) - set(kept))
            zero_filters(self._model, unit, gone)
            if with_norms:
                zero_norms(self._model, unit, gone, self.among.graph)

    def log(self) -> Mapping[str, Any]:
        return {"zeroed": self.shares_zeroed[-1]} if self.shares_zeroed else {}

    def state(self) -> Mapping[str, Tensor]:
        kept = [np.isin(np.arange(u.size), k) for u, k in zip(self.among.units, self.choice, strict=True)]
        return {
            "kept": torch.from_numpy(np.concatenate(kept)),
            "epochs_zeroed": torch.tensor(self.epochs_zeroed, dtype=torch.float64),
            "shares_zeroed": torch.tensor(self.shares_zeroed, dtype=torch.float64),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        masks = torch.split(state["kept"].cpu(), [unit.size for unit in self.among.units])
        self.choice = tuple(tuple(mask.nonzero().flatten().tolist()) for mask in masks)
        self.epochs_zeroed = state["epochs_zeroed"].tolist()
        self.shares_zeroed = state["shares_zeroed"].tolist()


@torch.no_grad()
def zero_filters(model: nn.Module, unit: Unit, gone: list[int]) -> None:
    """Weights and biases of these filters become zero, in every layer of the unit."""
    for name, filters in unit.layers:
        _zero_rows(model.get_submodule(name), filters, gone)


@torch.no_grad()
def zero_norms(model: nn.Module, unit: Unit, gone: list[int], graph: Graph) -> None:
    """What still makes something of these zero filters becomes zero, too: BatchNorm, and depthwise convolutions."""
    for name, filters in unit.followers:
        _zero_rows(model.get_submodule(name), filters, gone)
    for norm in graph.norms:
        if unit.is_branch_end:
            read = [filters for name, filters in unit.layers if graph.layer(name).norm == norm.name]
        else:
            read = [channels for name, channels in unit.sets if name == norm.coupled_set]
        for channels in read:
            module = model.get_submodule(norm.name)
            _zero_norm(module, [channels[place] for place in gone], norm.features_per_channel)


@torch.no_grad()
def limit_gradients(model: nn.Module, unit: Unit, kept: Numbers) -> None:
    """The gradient of each zeroed filter gets no longer than those of the kept ones are on average."""
    gone = sorted(set(range(unit.size)) - set(kept))
    for name, filters in unit.layers:
        module = model.get_submodule(name)
        if not isinstance(module, FILTER_LAYERS) or module.weight.grad is None:
            continue
        gradient = filters_first(module.weight.grad, transposed=is_transposed(module))
        lengths = gradient.flatten(1).norm(dim=1)  # (filters,)
        limit = lengths[[filters[place] for place in kept]].mean()
        rows = [filters[place] for place in gone]
        factors = (limit / lengths[rows].clamp_min(torch.finfo(lengths.dtype).tiny)).clamp_max(1.0)
        gradient[rows] *= factors.reshape(-1, *[1] * (gradient.dim() - 1))


def _zero_rows(module: nn.Module, filters: Numbers, gone: list[int]) -> None:
    rows = [filters[place] for place in gone]
    for tensor in (filters_of(module), module.bias):
        if isinstance(tensor, Tensor):
            tensor[rows] = 0


def _zero_norm(norm: nn.Module, channels: list[int], features: int) -> None:
    rows = [channel * features + feature for channel in channels for feature in range(features)]
    # The mean as well: without affine parameters it alone decides what becomes of a zero.
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        if isinstance(tensor, Tensor):
            tensor[rows] = 0


def _weight(model: nn.Module, name: str) -> NDArray[np.float32]:
    return filters_of(model.get_submodule(name)).detach().float().cpu().numpy()
