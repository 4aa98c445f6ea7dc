"""C-SGD through the training loop: trimming without loss, widths, resuming, squeezing, and what it tells."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest
import torch
from networks import Concatenating, Flattening, Inception, Mobile, Residual, settled
from torch import Tensor, nn

from edgeprune.datasets.images import Dataset, load_data
from edgeprune.errors import InputError
from edgeprune.methods import OneShot, Trained, load_method, parse_settings
from edgeprune.methods.base import MethodInput, PruneRequest
from edgeprune.methods.budget import Budget
from edgeprune.methods.csgd.method import RATE, Centripetal, Settings, train
from edgeprune.plans.check import check_plan
from edgeprune.plans.costs import planned_macs
from edgeprune.plans.kept_channels import KeptChannels
from edgeprune.plans.method_record import FILE_NAME, MethodRecord
from edgeprune.plans.plan import Plan
from edgeprune.pruning.network import layer_weights
from edgeprune.rewriting.rewrite import masked, rewrite
from edgeprune.tracing.trace import trace
from edgeprune.training.loop import TrainResult, fit
from edgeprune.training.settings import TrainSettings
from edgeprune.training.state import RunFiles
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
    result, plan = trained(model, size, method, RUN)
    graph = method.hooks.among.graph
    assert check_plan(plan, graph) == []
    assert any(entry.merged for entry in plan.sets)
    small = rewrite(result.model, plan, graph).eval()
    before, after = outputs(result.model, size), outputs(small, size)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in result.model.parameters())
    assert (after - before).abs().max() < 1e-5 * (before.max() - before.min())
    shown = outputs(masked(small, model, plan, graph), size)
    assert (shown - before).abs().max() < 1e-5 * (before.max() - before.min())


# -- how many filters survive ------------------------------------------------------------------------------------------
def widths(method: Centripetal, plan: Plan) -> dict[str, int]:
    graph = method.hooks.among.graph
    kept = KeptChannels(plan, graph)
    return {layer.name: len(kept.filters(layer).index) for layer in graph.layers}


def test_the_papers_rate_makes_ten_twenty_forty_of_a_cifar_resnet() -> None:
    model, size = built("resnet8")
    method = started(model, size)
    _, plan = trained(model, size, method)
    found = widths(method, plan)
    assert [found[name] for name in ("conv1", "layer1.0.conv1", "layer2.0.conv2", "layer3.0.conv1")] == [10, 10, 20, 40]
    assert found["linear"] == 5
    for entry in plan.sets:
        merged = {channel for cluster in entry.merged for channel in cluster}
        assert merged | set(entry.kept) == set(range(method.hooks.among.graph.coupled_set(entry.name).channels))
        assert all(cluster[0] in entry.kept for cluster in entry.merged)


def test_a_budget_and_rates_of_layers_are_met() -> None:
    model, size = built("resnet8")
    method = started(model, size, request=dataclasses.replace(REQUEST, budget=Budget(macs=0.5)))
    _, plan = trained(model, size, method)
    graph = method.hooks.among.graph
    assert 0.4 < sum(planned_macs(plan, graph).values()) / graph.macs <= 0.5
    method = started(model, size, request=dataclasses.replace(REQUEST, layer_rates=(("layer2.0.conv1", 0.75),)))
    _, plan = trained(model, size, method)
    assert widths(method, plan)["layer2.0.conv1"] == 8
    assert widths(method, plan)["layer1.0.conv1"] == 10


def test_a_budget_leaves_the_rates_of_layers_alone_and_the_plan_tells_the_rate_that_holds_it() -> None:
    model, size = built("resnet8")
    request = dataclasses.replace(REQUEST, budget=Budget(macs=0.6), layer_rates=(("layer2.0.conv1", 0.0),))
    method = started(model, size, request=request)
    _, plan = trained(model, size, method)
    graph = method.hooks.among.graph
    assert 0.5 < sum(planned_macs(plan, graph).values()) / graph.macs <= 0.6
    assert widths(method, plan)["layer2.0.conv1"] == 32
    again = started(model, size, request=dataclasses.replace(request, rate=plan.settings["rate"], budget=Budget()))
    assert again.hooks.clusters == method.hooks.clusters


def test_a_wider_network_is_squeezed_into_the_widths_of_the_narrower() -> None:
    model, size = built("resnet8-w24")
    method = started(model, size, settings=Settings(squeeze_to="resnet8"))
    result, plan = trained(model, size, method)
    narrow = trace(build("resnet8", num_classes=5).model, torch.randn(1, 3, size, size)).graph
    assert widths(method, plan) == {layer.name: layer.out_channels for layer in narrow.layers}
    assert plan.settings["squeeze_to"] == "resnet8"
    small = rewrite(result.model, plan, method.hooks.among.graph).eval()
    assert sum(p.numel() for p in small.parameters()) == narrow.params
    before, after = outputs(result.model, size), outputs(small, size)
    assert (after - before).abs().max() < 1e-5 * (before.max() - before.min())


@pytest.mark.parametrize(
    ("arch", "to", "request_", "message"),
    [
        ("resnet8", "resnet14", REQUEST, "another network"),
        ("resnet8", "resnet8-w24", REQUEST, "24 filters in conv1, which keeps 16 of 16"),
        ("resnet8-w24", "resnet8", dataclasses.replace(REQUEST, skip=("layer1.0.conv1",)), "skipped by request"),
        ("resnet8", "resnet8", REQUEST, "squeeze_to=resnet8 leaves every layer all"),
        ("resnet8", "", dataclasses.replace(REQUEST, rate=0.01), "--rate 0.01 takes no filter of any layer"),
        ("resnet8-w24", "resnet8", dataclasses.replace(REQUEST, budget=Budget(macs=0.5)), "squeeze_to and a budget"),
    ],
)
def test_what_cannot_be_squeezed_is_refused_with_the_reason(
    arch: str, to: str, request_: PruneRequest, message: str
) -> None:
    model, size = built(arch)
    with pytest.raises(InputError, match=message):
        started(model, size, request=request_, settings=Settings(squeeze_to=to))


# -- one run -----------------------------------------------------------------------------------------------------------
def test_a_resumed_run_keeps_its_clusters_and_ends_with_the_same_weights_and_plan(tmp_path: Path) -> None:
    model, size = built("resnet8")

    def run(folder: Path, *, stop: bool = False, resume: bool = False) -> tuple[TrainResult, Plan, MethodRecord]:
        # Another seed for the clusters of the resumed run: those of the checkpoint count.
        request = dataclasses.replace(REQUEST, seed=7 if resume else 0)
        method = started(model, size, request=request, epochs=3)
        if stop:
            ordinary = method.hooks.after_epoch

            def stopping(epoch: int) -> None:
                if epoch == 3:
                    raise KeyboardInterrupt
                ordinary(epoch)

            method.hooks.after_epoch = stopping
        settings = dataclasses.replace(RUN, epochs=3)
        result = fit(model, images(48, size), settings, hooks=method.hooks, files=RunFiles(folder, resume))
        told = method.result(result.model)
        return result, told.plan, msgspec.json.decode(told.records[FILE_NAME], type=MethodRecord)

    whole, plan, record = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop=True)
    resumed, same_plan, same_record = run(tmp_path / "stopped", resume=True)
    assert same_plan.sets == plan.sets
    assert same_plan.settings["epsilon"] == plan.settings["epsilon"]
    assert same_record == record
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[key]), key


def test_epsilon_auto_brings_the_clusters_together_in_a_short_run() -> None:
    model, size = built("resnet8")
    method = started(model, size, epochs=12)
    result, plan = trained(model, size, method)
    assert plan.settings["epsilon"] > 0.003
    assert 1e-6 < method.hooks.distance_left < 0.005  # a thousandth would need more than 36 steps: momentum lags
    assert method.hooks.moved < 0.005
    deviations = [sum(epoch.values()) for epoch in method.hooks.deviations]
    assert len(deviations) == 13
    told = method.result(result.model)
    assert len(told.notes) == 1
    record = msgspec.json.decode(told.records[FILE_NAME], type=MethodRecord)
    assert record.curves[0].x == tuple(map(float, range(13)))
    assert {row[0] for row in record.tables[0].rows} == {layer.name for layer in method.hooks.among.graph.layers[:-1]}


def test_a_run_too_weak_for_its_clusters_says_so_and_its_advice_helps() -> None:
    model, size = built("resnet8")
    method = started(model, size, settings=Settings(epsilon=0.003), epochs=12)
    result, _ = trained(model, size, method)
    note, advice = method.result(result.model).notes
    assert "epsilon 0.003" in note
    assert "--set epsilon=" in advice
    better = started(model, size, settings=Settings(epsilon=method.hooks.advised_epsilon), epochs=12)
    trained(model, size, better)
    assert method.hooks.distance_left > 0.1
    assert better.hooks.distance_left < 0.01


def test_a_network_learns_while_its_clusters_draw_together() -> None:
    model = build("resnet8", num_classes=10, in_channels=1).model
    torch.manual_seed(0)
    data = load_data("digits", split="train", input_shape=(1, 16, 16), limit=640)
    graph = trace(model, torch.randn(1, 1, 16, 16)).graph
    method = train(MethodInput(graph, layer_weights(model), REQUEST), Settings(), 8)
    run = dataclasses.replace(RUN, epochs=8, batch_size=32)
    result = fit(model, data, run, hooks=method.hooks)
    assert result.history[-1].accuracy > 80
    assert method.hooks.distance_left < 0.0015
    assert method.hooks.moved < 0.001
    figures = [record.figures["deviation"] for record in result.history]
    assert figures == [sum(epoch.values()) for epoch in method.hooks.deviations[1:]]


# -- the method as the registry sees it --------------------------------------------------------------------------------
def test_csgd_works_during_training_only() -> None:
    method = load_method("csgd")
    assert isinstance(method, Trained)
    assert not isinstance(method, OneShot)


def test_settings_are_read_and_those_that_mean_nothing_refused() -> None:
    assert parse_settings("csgd", ["epsilon=0.01", "clusters=even"]) == Settings("even", 0.01)
    assert parse_settings("csgd", ["epsilon=auto"]) == Settings()
    with pytest.raises(InputError, match="kmeans or even or imbalanced"):
        parse_settings("csgd", ["clusters=kmean"])
    model, size = built("resnet8")
    with pytest.raises(InputError, match="epsilon is -1.0"):
        started(model, size, settings=Settings(epsilon=-1.0))


def test_an_epsilon_that_throws_filters_past_their_mean_is_refused() -> None:
    model, size = built("resnet8")
    method = started(model, size, settings=Settings(epsilon=25.0))
    with pytest.raises(InputError, match="at most 20 with learning rate 0.05"):
        trained(model, size, method)
