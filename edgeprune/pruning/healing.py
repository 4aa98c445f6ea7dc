"""What a method asks of a network and its images: the loss's gradients, and fine-tuning between two decisions."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeprune.datasets.images import Dataset, batches
from edgeprune.graph import Graph
from edgeprune.methods.base import Healed
from edgeprune.modules.filters import filters_first, is_transposed
from edgeprune.plans.plan import Plan
from edgeprune.pruning.network import layer_weights
from edgeprune.rewriting.rewrite import masked, rewrite
from edgeprune.training.evaluation import mean_loss
from edgeprune.training.loop import TrainSettings, fit

BATCH_SIZE = 64


def loss_gradients(model: nn.Module, images: Dataset) -> dict[str, NDArray[np.float32]]:
    """Gradients of the mean loss over the images by every layer's weight, in eval mode, on a copy."""
    observed = copy.deepcopy(model).eval().requires_grad_(True)
    for pixels, labels in batches(images, BATCH_SIZE):
        loss = mean_loss(observed(pixels), labels, images) * (len(pixels) / len(images))
        loss.backward()  # type: ignore[no-untyped-call]
    gradients = {}
    for name in layer_weights(observed):
        module = observed.get_submodule(name)
        weight = observed.get_parameter(f"{name}.weight")
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        gradients[name] = filters_first(gradient, transposed=is_transposed(module)).float().numpy()
    return gradients


class Healer:
    """A network that is pruned and fine-tuned in steps, always in its original shape: zeros in the pruned places."""

    def __init__(
        self, model: nn.Module, graph: Graph, train: Dataset, settings: TrainSettings, calibration: Dataset | None
    ) -> None:
        self.model = model
        """As healed last; at first the model given, which is never changed."""
        self._graph, self._train, self._settings, self._calibration = graph, train, settings, calibration

    def __call__(self, plan: Plan) -> Healed:
        """Prune by the plan, fine-tune, and keep the result."""
        tuned = fit(rewrite(self.model, plan, self._graph), self._train, self._settings).model
        self.model = masked(tuned, self.model, plan, self._graph)
        gradients: Mapping[str, NDArray[np.float32]] = {}
        if self._calibration is not None:
            gradients = loss_gradients(self.model, self._calibration)
        return Healed(layer_weights(self.model), gradients)
