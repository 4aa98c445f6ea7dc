"""C-SGD in the training loop: the update at every step, the deviation at every epoch, equal filters at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeprune.errors import InputError
from edgeprune.methods.csgd.clusters import channel_clusters, clusters_from, labels_from
from edgeprune.methods.csgd.update import CentripetalUpdate, ClusteredRows
from edgeprune.methods.shared.clustering import Clusters
from edgeprune.methods.shared.units import Prunable
from edgeprune.modules.norms import NORM_TENSORS
from edgeprune.training.hooks import Step, TrainingHooks

PAPER_EPSILON = 3e-3
DISTANCE_LEFT = 1e-3
"""What is to be left of the distances in a cluster, or less, where epsilon is chosen for it."""
MEAN_LEARNING_RATE = 1 / 3
"""Of a run, as a share of its peak: at least so much with a cosine, or with a tenth after a third of the epochs."""


@dataclass(frozen=True)
class Pace:
    """How fast a run's steps can draw clusters together."""

    peak: float
    """Its highest learning rate."""
    momentum: float
    decay: float
    """Weight decay."""

    @property
    def strongest_epsilon(self) -> float:
        """At the peak one step without momentum then takes filters right to the mean of their cluster."""
        return 1 / self.peak - self.decay

    def epsilon_for(self, steps: int) -> float:
        """The paper's, or what leaves DISTANCE_LEFT of the distances after so many steps.

        A distance falls as exp(-(epsilon + decay) * sum of learning rates / (1 - momentum)).
        """
        travelled = steps * MEAN_LEARNING_RATE * self.peak / (1 - self.momentum)
        return min(max(PAPER_EPSILON, -math.log(DISTANCE_LEFT) / travelled - self.decay), self.strongest_epsilon)

    def stronger_epsilon(self, epsilon: float, distance_left: float) -> float:
        """What would have left DISTANCE_LEFT where this one left more."""
        factor = math.log(DISTANCE_LEFT) / math.log(distance_left)
        return min((epsilon + self.decay) * factor - self.decay, self.strongest_epsilon)


class CentripetalHooks(TrainingHooks):
    """Trains the filters of each cluster to become equal, and makes them equal to the last bit at the end."""

    def __init__(
        self, among: Prunable, clusters: tuple[Clusters, ...], epsilon: float | Literal["auto"], epochs: int
    ) -> None:
        self.among, self.epochs = among, epochs
        self.clusters = clusters
        """Per unit, of its places."""
        self.deviations: list[dict[str, float]] = []
        """The deviation (7) of each clustered layer at the start and after each epoch, before the projection."""
        self.squared_norms: dict[str, float] = {}
        """Of each clustered layer's weight, before the projection."""
        self._wanted_epsilon = epsilon

    # -- called by the loop ------------------------------------------------------------------------------------------
    def begin(self, model: nn.Module, optimizer: torch.optim.SGD) -> None:
        self._model, self._optimizer = model, optimizer
        options = optimizer.param_groups[0]
        self._pace = Pace(float(options["lr"]), float(options["momentum"]), float(options["weight_decay"]))
        wanted = math.nan if isinstance(self._wanted_epsilon, str) else self._wanted_epsilon
        if wanted > self._pace.strongest_epsilon:
            raise InputError(
                f"setting epsilon is {wanted:g}",
                expected=f"at most {self._pace.strongest_epsilon:.4g} with learning rate {options['lr']:g}: with more, "
                "filters jump past the mean of their cluster",
            )
        self._follow(wanted)
        self.deviations = [self._measured()]

    def before_batch(self, step: Step) -> None:
        if math.isnan(self.epsilon):  # the first step tells how many there will be
            steps_an_epoch = (step.index + 0.5) / (step.progress - (step.epoch - 1))
            self._update.epsilon = self._pace.epsilon_for(round(steps_an_epoch * self.epochs))

    def before_update(self, step: Step) -> None:
        self._update.apply()

    def after_epoch(self, epoch: int) -> None:
        self.deviations.append(self._measured())

    def end(self) -> None:
        """Every filter becomes the mean of its cluster, and so do BatchNorm's statistics."""
        self.squared_norms = {name: float(rows.rows.double().square().sum()) for name, rows in self._kernels.items()}
        for rows in self._rows:
            rows.collapse()

    def state(self) -> Mapping[str, Tensor]:
        tensors = {f"clusters.{i}": torch.from_numpy(labels_from(clusters)) for i, clusters in enumerate(self.clusters)}
        tensors["epsilon"] = torch.tensor(self.epsilon, dtype=torch.float64)
        tensors["deviations"] = torch.tensor([list(d.values()) for d in self.deviations], dtype=torch.float64)
        return tensors

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """The clusters stay those of the weights with which the run once began."""
        labels = [state[f"clusters.{i}"].cpu().numpy() for i in range(len(self.clusters))]
        self.clusters = tuple(clusters_from(of_unit) for of_unit in labels)
        self._follow(float(state["epsilon"]))
        self.deviations = [dict(zip(self._kernels, row, strict=True)) for row in state["deviations"].tolist()]

    def log(self) -> Mapping[str, Any]:
        return {"deviation": sum(self.deviations[-1].values())}

    # -- what it did ---------------------------------------------------------------------------------------------------
    @property
    def epsilon(self) -> float:
        """The centripetal strength in use; NaN before the first step where it is to be chosen."""
        return self._update.epsilon

    @property
    def distance_left(self) -> float:
        """What training left of the distances in clusters, as a share of those at its start."""
        start, now = (sum(self.deviations[place].values()) for place in (0, -1))
        return math.sqrt(now / start) if start > 0 else 0.0

    @property
    def moved(self) -> float:
        """How far the projection at the end moved the weights, as a share of their norm."""
        return math.sqrt(sum(self.deviations[-1].values()) / sum(self.squared_norms.values()))

    @property
    def advised_epsilon(self) -> float:
        """The centripetal strength with which the same run would bring the clusters together."""
        left = min(self.distance_left, 0.999)
        return self._pace.stronger_epsilon(self.epsilon, left)

    # -- inside --------------------------------------------------------------------------------------------------------
    def _follow(self, epsilon: float) -> None:
        """Find all that follows the clusters in the model, and train it so from the next step on."""
        graph, firsts = self.among.graph, channel_clusters(self.among, self.clusters)
        self._kernels: dict[str, ClusteredRows] = {}
        self._rows: list[ClusteredRows] = []
        """Weights, biases and BatchNorm's parameters and statistics."""
        for layer in graph.layers:
            if layer.writes in firsts:
                found = self._rows_of(layer.name, ("weight", "bias"), firsts[layer.writes])
                self._kernels[layer.name] = found[0]
                self._rows += found
        for norm in graph.norms:
            if norm.coupled_set in firsts:
                self._rows += self._rows_of(norm.name, NORM_TENSORS, firsts[norm.coupled_set])
        self._update = CentripetalUpdate(self._optimizer, self._rows, epsilon)

    def _rows_of(self, module: str, names: Sequence[str], clusters: NDArray[np.int64]) -> list[ClusteredRows]:
        tensors = [getattr(self._model.get_submodule(module), name) for name in names]
        return [ClusteredRows(tensor, tuple(clusters.tolist())) for tensor in tensors if tensor is not None]

    def _measured(self) -> dict[str, float]:
        return {name: rows.deviation() for name, rows in self._kernels.items()}
