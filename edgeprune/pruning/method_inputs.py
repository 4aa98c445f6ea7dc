"""What a method may look at, gathered from a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeprune.graph import Graph
from edgeprune.methods import Method
from edgeprune.methods.base import Healed, MethodInput, NormValues, PruneRequest, Ticket
from edgeprune.methods.on_images import Clock, OnImages
from edgeprune.modules.norms import Norm
from edgeprune.plans.plan import Plan
from edgeprune.pruning.network import layer_biases, layer_weights
from edgeprune.tracing.constants import constants_by_reader, constants_by_set


@dataclass(frozen=True)
class FromImages:
    """What a method is given where there are images."""

    gradients: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    finetune: Callable[[Plan], Healed] | None = None
    calibration: OnImages | None = None


def method_input(
    method: Method,
    model: nn.Module,
    graph: Graph,
    request: PruneRequest,
    tickets: Sequence[Ticket] = (),
    images: FromImages = FromImages(),
    clock: Clock | None = None,
) -> MethodInput:
    """The model's weights, biases and BatchNorms, what else the method asks for, and what comes from images."""
    needs_constants = getattr(method, "NEEDS_CONSTANTS", False)
    return MethodInput(
        graph,
        layer_weights(model),
        request,
        tickets,
        norms={
            norm.name: norm_values(
                model.get_submodule(norm.name),
                graph.coupled_set(norm.coupled_set).channels * norm.features_per_channel,
            )
            for norm in graph.norms
        },
        biases=layer_biases(model),
        constants=constants_by_set(graph, constants_by_reader(model, graph)) if needs_constants else {},
        gradients=images.gradients,
        finetune=images.finetune,
        images=images.calibration,
        clock=clock,
    )


def norm_values(norm: Norm, channels: int) -> NormValues:
    """A BatchNorm's values; a mean of 0 and a variance of 1 where it keeps no statistics."""
    shape = torch.ones(channels)
    weight, bias = (shape if norm.weight is None else norm.weight, shape * 0 if norm.bias is None else norm.bias)
    mean = shape * 0 if norm.running_mean is None else norm.running_mean
    variance = shape if norm.running_var is None else norm.running_var
    arrays = [tensor.detach().float().cpu().numpy() for tensor in (weight, bias, mean, variance)]
    return NormValues(arrays[0], arrays[1], arrays[2], arrays[3], norm.eps)
