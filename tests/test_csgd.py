"""C-SGD through the training loop: trimming without loss, widths, resuming, squeezing, and what it tells."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from networks import Concatenating, Flattening, Inception, Mobile, Residual, settled
from torch import Tensor, nn

from edgeprune.data import Dataset
from edgeprune.methods.base import MethodInput, PruneRequest
from edgeprune.methods.csgd import RATE, Centripetal, Settings, train
from edgeprune.network import layer_weights
from edgeprune.plan import Plan
from edgeprune.plan_check import check_plan
from edgeprune.rewrite import masked, rewrite
from edgeprune.trace import trace
from edgeprune.training import TrainResult, fit
from edgeprune.training_settings import TrainSettings
from edgeprune.zoo import build

REQUEST = PruneRequest(rate=RATE, include_first=True)
RUN = TrainSettings(epochs=2, batch_size=16, learning_rate=0.05, augment=False, precision="fp32", device="cpu")


def images(count: int, size: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(count, 3, size, size, generator=generator)
    return Dataset("noise", pixels, torch.arange(count) % 5, (), (0.0,) * 3, (1.0,) * 3)


def built(network: type[nn.Module] | str) -> tuple[nn.Module, int]:
    """A network with some weights, and the side of its images."""
    torch.manual_seed(0)
    if isinstance(network, str):
        return settled(build(network, num_classes=5).model), 32
    return settled(network()), 16


def started(
    model: nn.Module, size: int, *, request: PruneRequest = REQUEST, settings: Settings | None = None, epochs: int = 2
) -> Centripetal:
    graph = trace(model, torch.randn(1, 3, size, size)).graph
    return train(MethodInput(graph, layer_weights(model), request), settings or Settings(), epochs)


def trained(model: nn.Module, size: int, method: Centripetal, run: TrainSettings = RUN) -> tuple[TrainResult, Plan]:
    result = fit(model, images(48, size), dataclasses.replace(run, epochs=method.hooks.epochs), hooks=method.hooks)
    return result, method.result(result.model).plan


def outputs(model: nn.Module, size: int) -> Tensor:
    with torch.no_grad():
        return model(torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(1)))


NETWORKS = ["resnet8", "resnet8-stage", "resnet8-b", Residual, Concatenating, Mobile, Flattening, Inception]


@pytest.mark.parametrize("network", NETWORKS, ids=str)
@pytest.mark.parametrize("clusters", ["kmeans", "imbalanced"])
def test_trimming_after_training_loses_nothing(network: type[nn.Module] | str, clusters: str) -> None:
    model, size = built(network)
    method = started(model, size, settings=Settings(clusters=clusters))
    views_maps = network is Flattening  # as rows of features, which channels_last does not allow
    result, plan = trained(model, size, method, dataclasses.replace(RUN, channels_last=not views_maps))
    graph = method.hooks.among.graph
    assert check_plan(plan, graph) == []
    assert any(entry.merged for entry in plan.sets)
    small = rewrite(result.model, plan, graph).eval()
    before, after = outputs(result.model, size), outputs(small, size)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in result.model.parameters())
    assert (after - before).abs().max() < 1e-5 * (before.max() - before.min())
    shown = outputs(masked(small, model, plan, graph), size)
    assert (shown - before).abs().max() < 1e-5 * (before.max() - before.min())
