"""LFPC at work in the training loop."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.datasets.images import Dataset
from edgeprune.errors import InputError
from edgeprune.methods import Trained, load_method, parse_settings
from edgeprune.methods.base import MethodInput, PruneRequest
from edgeprune.methods.budget import Budget
from edgeprune.methods.lfpc.method import Lfpc, Settings, train
from edgeprune.plans.check import check_plan
from edgeprune.plans.costs import planned_macs
from edgeprune.plans.kept_channels import KeptChannels
from edgeprune.plans.method_record import FILE_NAME, load_method_record
from edgeprune.plans.plan import load_plan
from edgeprune.pruning.method_inputs import method_input
from edgeprune.rewriting.rewrite import rewrite
from edgeprune.tracing.trace import trace
from edgeprune.training.hooks import Step
from edgeprune.training.loop import TrainResult, TrainSettings, fit
from edgeprune.training.state import RunFiles

LOOP = TrainSettings(epochs=4, batch_size=16, learning_rate=0.05, augment=False, device="cpu", precision="fp32")
SMALL = Settings(validation_share=0.5, validation_batch=16)


def given(model: nn.Module, shape: tuple[int, int, int] = (3, 8, 8), **request: object) -> MethodInput:
    graph = trace(model, torch.zeros(1, *shape)).graph
    return method_input(load_method("lfpc"), model, graph, PruneRequest(**request))  # type: ignore[arg-type]


def images(count: int = 64) -> Dataset:
    """Ten classes, told apart by brightness."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (count,), generator=draw)
    pixels = labels[:, None, None, None] / 5 - 1 + 0.1 * torch.randn(count, 3, 8, 8, generator=draw)
    return Dataset("bright", pixels, labels, (), (0.0,) * 3, (1.0,) * 3)


def residual() -> nn.Module:
    torch.manual_seed(0)
    return networks.Residual()


def trained(settings: Settings = SMALL, loop: TrainSettings = LOOP, **request: object) -> tuple[Lfpc, TrainResult]:
    model = residual()
    lfpc = train(given(model, **request), settings, loop.epochs)
    return lfpc, fit(model, images(), loop, hooks=lfpc.hooks)


# -- learning ------------------------------------------------------------------------------------------------------------
def minus(values: list[float]) -> list[float]:
    return [-value for value in values]


class Two(nn.Module):
    """A layer of four filters that read single pixels, and a linear layer."""

    def __init__(self, filters: list[list[float]], head: list[list[float]]) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(4, 4, 1, bias=False), nn.Linear(4, 2, bias=False)
        self.conv.weight.data = torch.tensor(filters)[:, :, None, None]
        self.head.weight.data = torch.tensor(head)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


PEAKED, EVEN = [2.0, 0.0, 0.0, 0.0], [0.7, 0.7, 0.7, 0.7]  # of the larger L2 norm, of the larger L1 norm
SIDEWAYS = [0.0, 1.0, 0.0, 0.0]
ALIKE = [[3.0, 0.0, 0.0, 0.0], [3.0, 0.1, 0.0, 0.0]]  # the largest norms, and the nearest to the others
# The criterion that should win -> those to choose from, the filters, and the pixel values (times 1 or -1, the class)
# that only the filters see which it keeps.
RIGGED = {
    "l1": (("l1", "l2"), [PEAKED, minus(PEAKED), EVEN, minus(EVEN)], [0.0, 1.0, 1.0, 1.0]),
    "l2": (("l1", "l2"), [PEAKED, minus(PEAKED), EVEN, minus(EVEN)], [1.0, -1 / 3, -1 / 3, -1 / 3]),
    "gm": (("l2", "gm"), [*ALIKE, SIDEWAYS, minus(SIDEWAYS)], [0.0, 1.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("best", RIGGED)
def test_the_criterion_that_keeps_what_the_loss_needs_wins(best: str) -> None:
    criteria, filters, signal = RIGGED[best]
    pair = [0.0, 0.0] if best == "gm" else [3.0, -3.0]
    head = [*pair, 3.0, -3.0]
    model = Two(filters, [head, minus(head)])
    labels = torch.arange(64) % 2
    pixels = (1.0 - 2.0 * labels)[:, None, None, None] * torch.tensor(signal)[None, :, None, None].expand(64, 4, 2, 2)
    data = Dataset("rigged", pixels, labels, (), (0.0,) * 4, (1.0,) * 4)
    settings = Settings(criteria=criteria, weights="fixed", learning_rate=0.1, validation_share=0.5, search_share=1.0)  # type: ignore[arg-type]
    loop = dataclasses.replace(LOOP, epochs=20, batch_size=8)
    lfpc = train(given(model, (4, 2, 2), rate=0.5, include_first=True), settings, loop.epochs)
    result = fit(model, data, loop, hooks=lfpc.hooks)
    (probabilities,) = lfpc.hooks.sampler.probabilities().tolist()
    assert dict(zip(criteria, probabilities, strict=True))[best] > 0.8
    kept = KeptChannels(lfpc.result(result.model).plan, lfpc.hooks.among.graph)
    assert kept.filters(lfpc.hooks.among.graph.layer("conv")).index == ((0, 1) if best == "l2" else (2, 3))


def test_the_computation_loss_moves_the_expected_cost_to_the_budget() -> None:
    settings = dataclasses.replace(SMALL, computation_weight=50.0, learning_rate=0.1, search_share=1.0)
    lfpc, _ = trained(settings, dataclasses.replace(LOOP, epochs=12), budget=Budget(macs=0.85))
    expected = [figures.macs for figures in lfpc.hooks.history]
    assert expected[0] < 0.7
    assert expected[-1] == pytest.approx(0.85, abs=0.06)


def test_the_temperature_falls_linearly_through_the_search() -> None:
    settings = dataclasses.replace(SMALL, search_share=0.75)
    lfpc = train(given(residual()), settings, LOOP.epochs)
    sample, temperatures = lfpc.hooks.sampler.sample, []

    def noted(temperature: float, generator: torch.Generator) -> Tensor:
        temperatures.append(temperature)
        return sample(temperature, generator)

    lfpc.hooks.sampler.sample = noted  # type: ignore[method-assign]
    fit(residual(), images(), LOOP, hooks=lfpc.hooks)
    steps = 3 * 2  # epochs of search, batches in each
    middles = [(step + 0.5) / steps for step in range(steps)]
    expected = [5.0 - 4.9 * share for share in middles for _ in range(2)]  # for the sampler, and for the weights
    assert temperatures == pytest.approx(expected)


def test_the_sampler_leaves_gradients_statistics_and_weights_alone() -> None:
    model = residual()
    lfpc = train(given(model), SMALL, 2)
    hooks = lfpc.hooks
    hooks.split(images())
    model.train()
    hooks.begin(model, torch.optim.SGD(model.parameters(), lr=0.1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    hooks.before_batch(Step(1, 0, 0.1, 0.1))
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert hooks.sampler.criteria.abs().max() > 0


def test_weights_can_be_fixed_during_the_search() -> None:
    settings = dataclasses.replace(SMALL, weights="fixed", search_share=1.0)
    lfpc, result = trained(settings)
    dense = residual().state_dict()
    kept = rewrite(residual(), lfpc.result(result.model).plan, lfpc.hooks.among.graph).state_dict()
    cut = rewrite(result.model, lfpc.result(result.model).plan, lfpc.hooks.among.graph).state_dict()
    assert not cut["a_bn.running_mean"].equal(kept["a_bn.running_mean"])  # statistics follow the pruned versions
    assert all(cut[name].equal(kept[name]) for name in cut if "running" not in name and "num_batches" not in name)
    assert not result.model.state_dict()["a.weight"].equal(dense["a.weight"])  # some filters were zeroed


# -- the end -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("coupling", ["separate", "coupled"])
def test_what_is_cut_was_zero_and_the_plan_is_sound(coupling: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, coupling=coupling)
    lfpc, result = trained(settings, rate=0.5)
    decided = lfpc.result(result.model)
    graph = lfpc.hooks.among.graph
    assert check_plan(decided.plan, graph) == []
    assert decided.plan.thins
    sample = images().images[:8]
    thin = rewrite(result.model, decided.plan, graph)
    torch.testing.assert_close(thin(sample), result.model(sample), atol=1e-5, rtol=1e-4)
    assert not any(module._forward_hooks for module in result.model.modules())

    path = tmp_path / "plan.json"
    path.write_bytes(decided.plan.to_readable_json())
    assert load_plan(path).sha256() == decided.plan.sha256()


def test_training_goes_on_with_what_was_chosen() -> None:
    """After the search the masked filters play no part: the trained model is the one that is cut."""
    model = residual()
    lfpc = train(given(model, rate=0.5), SMALL, LOOP.epochs)
    result = fit(model, images(), LOOP, hooks=lfpc.hooks, test=images(32))
    assert lfpc.hooks.search_epochs == 2
    assert [bool(record.figures) for record in result.history] == [True, True, False, False]
    thin = rewrite(result.model, lfpc.result(result.model).plan, lfpc.hooks.among.graph)
    held = images(32)
    right = (thin(held.images).argmax(1) == held.labels).float().mean() * 100
    assert float(right) == pytest.approx(result.history[-1].test_accuracy, abs=0.01)


@pytest.mark.parametrize("macs", [0.45, 0.7])
def test_a_budget_holds_and_is_used(macs: float) -> None:
    lfpc, result = trained(budget=Budget(macs=macs), include_first=True)
    plan = lfpc.result(result.model).plan
    graph = lfpc.hooks.among.graph
    needed = sum(planned_macs(plan, graph).values()) / graph.macs
    assert macs - 0.1 < needed <= macs


def test_the_record_shows_each_layers_criterion_and_the_path_there(tmp_path: Path) -> None:
    lfpc, result = trained(rate=0.5)
    path = tmp_path / FILE_NAME
    decided = lfpc.result(result.model)
    path.write_bytes(decided.records[FILE_NAME])
    record = load_method_record(path)
    (table,) = record.tables
    assert table.columns == ("layer", "criterion", "p(l1)", "p(l2)", "p(gm)", "filters", "kept")
    for row in table.rows:
        probabilities = dict(zip(("l1", "l2", "gm"), row[2:5], strict=True))
        assert probabilities[str(row[1])] == max(probabilities.values())
    assert [curve.x for curve in record.curves] == [(1.0, 2.0)] * 3
    notes = {entry.name: entry.note for entry in decided.plan.layers}
    assert not notes["a"], "a note says why a layer stays as it is"
    assert notes["stem"].startswith(("the first", "writes a residual stream"))


# -- the same again ------------------------------------------------------------------------------------------------------
def test_the_same_seed_gives_the_same_plan_and_another_seed_other_samples() -> None:
    (first, one), (second, two) = trained(rate=0.5), trained(rate=0.5)
    assert first.result(one.model).plan.sha256() == second.result(two.model).plan.sha256()
    third, _ = trained(rate=0.5, seed=1)
    assert not third.hooks.sampler.criteria.equal(first.hooks.sampler.criteria)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_an_interrupted_run_goes_on_bit_for_bit(epoch: int, tmp_path: Path) -> None:
    """Interrupted in the search, after its last epoch, and when the choice is made."""
    budget = {"budget": Budget(macs=0.6), "include_first": True}
    straight, expected = trained(**budget)  # type: ignore[arg-type]

    model = residual()
    lfpc = train(given(model, **budget), SMALL, LOOP.epochs)
    before_batch = lfpc.hooks.before_batch

    def stopping(step: Step) -> None:
        if step.epoch > epoch:
            raise KeyboardInterrupt
        before_batch(step)

    lfpc.hooks.before_batch = stopping  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fit(model, images(), LOOP, hooks=lfpc.hooks, files=RunFiles(tmp_path))

    resumed = train(given(model, **budget), SMALL, LOOP.epochs)
    result = fit(model, images(), LOOP, hooks=resumed.hooks, files=RunFiles(tmp_path, resume=True))
    assert all(value.equal(expected.model.state_dict()[key]) for key, value in result.model.state_dict().items())
    assert resumed.hooks.sampler.rates.equal(straight.hooks.sampler.rates)
    assert resumed.result(result.model) == straight.result(expected.model)


# -- the user's input ----------------------------------------------------------------------------------------------------
def test_it_is_a_method_that_works_while_training() -> None:
    assert isinstance(load_method("lfpc"), Trained)
    settings = parse_settings("lfpc", ["criteria=l2,gm", "weights=fixed", "rates=0,0.25,0.5"])
    assert settings == Settings(criteria=("l2", "gm"), weights="fixed", rates=(0.0, 0.25, 0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"criteria": ("l1", "l1")}, "criteria"),
        ({"rates": (0.5, 1.0)}, "rates"),
        ({"search_share": 0.0}, "search_share"),
        ({"validation_share": 1.0}, "validation_share"),
        ({"every": 0}, "every"),
        ({"last_temperature": 0.0}, "last_temperature"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"setting {message} is"):
        train(given(residual()), dataclasses.replace(SMALL, **change), 4)  # type: ignore[arg-type]


def test_a_rate_that_takes_no_filter_is_refused() -> None:
    with pytest.raises(InputError, match="take no filter"):
        train(given(residual(), rate=0.01), SMALL, 4)
