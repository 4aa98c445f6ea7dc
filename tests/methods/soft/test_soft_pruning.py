"""SFP, ASFP, FPGM and FPGM-mix: what they choose, what training with them does, and that cutting then loses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeprune.datasets.images import Dataset
from edgeprune.errors import InputError
from edgeprune.io import progress
from edgeprune.methods import OneShot, Trained, load_method
from edgeprune.methods.base import MethodInput, MethodResult, PruneRequest
from edgeprune.methods.budget import Budget
from edgeprune.methods.shared.filter_criteria import by_both, by_distance, by_norm, distance_sums, norms
from edgeprune.methods.soft.asymptotic_rate import asymptotic_rate
from edgeprune.methods.soft.training import SoftPruningHooks
from edgeprune.plans.check import check_plan
from edgeprune.plans.costs import planned_macs
from edgeprune.plans.method_record import load_method_record
from edgeprune.plans.plan import Plan, load_plan
from edgeprune.pruning.method_inputs import method_input
from edgeprune.rewriting.rewrite import rewrite
from edgeprune.tracing.trace import trace
from edgeprune.training.hooks import Step
from edgeprune.training.loop import TrainSettings, fit
from edgeprune.training.state import RunFiles
from edgeprune.zoo import build

METHODS = ("sfp", "asfp", "fpgm", "fpgm-mix")
ALL = PruneRequest(rate=0.4, include_first=True, include_shortcuts=True)


def given_of(model: nn.Module, request: PruneRequest = ALL, size: int = 16) -> MethodInput:
    graph = trace(model.eval(), torch.zeros(1, 3, size, size)).graph
    return method_input(load_method("sfp"), model, graph, request)


def prune(method: str, given: MethodInput, **chosen: Any) -> MethodResult:
    module = load_method(method)
    assert isinstance(module, OneShot)
    return module.prune(given, module.Settings(**chosen))


def train(method: str, given: MethodInput, epochs: int, **chosen: Any) -> Any:
    module = load_method(method)
    assert isinstance(module, Trained)
    return module.train(given, module.Settings(**chosen), epochs)


def noise() -> Dataset:
    """24 random images of 10 classes."""
    pixels = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Dataset("noise", pixels, torch.arange(24) % 10, (), (0.0,) * 3, (1.0,) * 3)


# -- criteria ----------------------------------------------------------------------------------------------------------
def plain_distance(a: np.ndarray, b: np.ndarray, kind: str) -> float:
    if kind == "l1":
        return sum(abs(x - y) for x, y in zip(a.tolist(), b.tolist(), strict=True))
    if kind == "l2":
        return sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True)) ** 0.5
    return 1 - float(a @ b) / (float(a @ a) * float(b @ b)) ** 0.5


@pytest.mark.parametrize("kind", ["l2", "l1", "cosine"])
def test_distance_sums_equal_those_of_a_double_loop(kind: str) -> None:
    filters = np.random.default_rng(0).normal(size=(13, 18))
    expected = [sum(plain_distance(a, b, kind) for j, b in enumerate(filters) if j != i) for i, a in enumerate(filters)]
    np.testing.assert_allclose(distance_sums(filters, kind), expected, rtol=1e-12)


def test_a_zero_filter_has_cosine_distance_1_to_all_others() -> None:
    filters = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    np.testing.assert_allclose(distance_sums(filters, "cosine"), [2.0, 1.0, 1.0])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(4, 40), st.sampled_from(["l2", "l1", "cosine"]))
def test_of_equal_filters_the_first_stay(seed: int, size: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    kinds = np.concatenate([rng.normal(size=(2, 27)), np.zeros((1, 27))])
    which = rng.integers(3, size=size)
    sums = distance_sums(kinds[which], kind)
    for number in range(3):
        assert len(set(sums[which == number].tolist())) <= 1
        equal = np.flatnonzero(which == number).tolist()
        kept = [place for place in equal if place in by_distance(kind)([kinds[which]], size // 2)]
        assert kept == equal[: len(kept)]


def test_norms_are_those_of_equation_3_2() -> None:
    filters = np.array([[3.0, -4.0], [0.0, 1.0]])
    assert norms(filters, "l2").tolist() == [5.0, 1.0]
    assert norms(filters, "l1").tolist() == [7.0, 1.0]


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 9), st.integers(1, 3), st.integers(0, 10_000), st.data())
def test_fpgm_takes_the_filters_that_brute_force_finds(size: int, layers: int, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, size))
    stacked = [np.random.default_rng([seed, layer]).normal(size=(size, 6)) for layer in range(layers)]
    sums = [
        sum(plain_distance(filters[i], filters[j], "l2") for filters in stacked for j in range(size))
        for i in range(size)
    ]
    assert list(by_distance("l2")(stacked, count)) == sorted(sorted(range(size), key=lambda i: -sums[i])[:count])


def test_fpgm_takes_what_the_norm_would_keep_where_filters_crowd() -> None:
    crowd = np.array([[5.0, 5.0], [5.1, 5.0], [5.0, 5.1], [0.1, 0.0], [-4.0, 0.0]])
    assert by_norm("l2")([crowd], 3) == (0, 1, 2)
    assert 3 in by_distance("l2")([crowd], 3)


def test_the_mix_takes_by_norm_first_and_then_by_the_distances_among_what_is_left() -> None:
    filters = np.random.default_rng(1).normal(size=(20, 9)) * np.linspace(0.5, 2, 20)[:, None]
    kept = by_both("l2", "l2", 0.75)([filters], 12)  # 40% of 20 go: 6 by their norms, 2 by distance
    by_norm_gone = set(np.argsort(norms(filters, "l2"))[:6].tolist())
    left = [i for i in range(20) if i not in by_norm_gone]
    sums = distance_sums(filters[left], "l2")
    by_distance_gone = {left[i] for i in np.argsort(sums)[:2].tolist()}
    assert set(kept) == set(range(20)) - by_norm_gone - by_distance_gone
    assert by_both("l2", "l2", 1.0)([filters], 12) == by_norm("l2")([filters], 12)
    assert by_both("l2", "l2", 0.0)([filters], 12) == by_distance("l2")([filters], 12)


# -- the rate of ASFP --------------------------------------------------------------------------------------------------
@settings(deadline=None)
@given(st.floats(0.01, 0.99), st.floats(0, 0.7), st.floats(0.02, 0.98), st.integers(1, 400))
def test_the_asymptotic_rate_goes_through_its_three_points_and_never_falls(
    goal: float, first_share: float, knee: float, epochs: int
) -> None:
    first = first_share * goal
    rate = asymptotic_rate(first, goal, epochs, knee)
    assert rate(0) == pytest.approx(first, abs=1e-9)
    assert rate(knee * epochs) == pytest.approx(0.75 * goal, abs=1e-9)
    assert rate(epochs) == pytest.approx(goal, abs=1e-9)
    curve = np.array([rate(epoch) for epoch in np.linspace(0, epochs, 50)])
    assert (np.diff(curve) >= -1e-12).all()


def test_the_asymptotic_rate_is_the_exponential_of_equation_4_7() -> None:
    rate = asymptotic_rate(0.0, 0.3, 100, 1 / 8)
    for epoch in (0, 1, 12.5, 50, 100):
        assert rate(epoch) == pytest.approx(rate.a * np.exp(-rate.k * epoch) + rate.b, abs=1e-12)
    assert rate.k > 0 > rate.a


# -- on given weights --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("coupling", ["separate", "coupled"])
@pytest.mark.parametrize("method", METHODS)
def test_each_method_gives_a_sound_plan_that_survives_its_file(method: str, coupling: str, tmp_path: Path) -> None:
    inputs = given_of(build("resnet20").model, PruneRequest(rate=0.4), 32)
    result = prune(method, inputs, coupling=coupling)
    assert check_plan(result.plan, inputs.graph) == []
    assert result.plan == prune(method, inputs, coupling=coupling).plan
    assert (result.plan.method, result.plan.settings["rate"]) == (method, 0.4)
    path = tmp_path / "plan.json"
    path.write_bytes(result.plan.to_readable_json())
    assert load_plan(path).sha256() == result.plan.sha256()
    (tmp_path / "method.json").write_bytes(result.records["method.json"])
    record = load_method_record(tmp_path / "method.json")
    assert record.tables[0].rows[-1][2:] == (64, 39)  # floor(0.4 * 64) = 25 filters go


def test_sfp_leaves_out_the_smallest_norms_of_every_layer() -> None:
    model = networks.Residual()
    inputs = given_of(model)
    plan = prune("sfp", inputs).plan
    for name in ("a", "c"):
        found = next(entry.kept for entry in plan.sets if entry.name == inputs.graph.layer(name).writes)
        assert list(found) == largest(model.get_submodule(name), 0.4)
    for entry in plan.layers:
        if entry.name in ("b", "d", "e", "project"):
            assert list(entry.kept_filters) == largest(model.get_submodule(entry.name), 0.4)


def largest(layer: nn.Module, rate: float) -> list[int]:
    lengths = layer.weight.detach().double().flatten(1).norm(dim=1)
    return sorted(lengths.argsort(descending=True)[: len(lengths) - int(rate * len(lengths))].tolist())


def test_untrained_asfp_decides_as_sfp() -> None:
    inputs = given_of(networks.Residual())
    assert prune("asfp", inputs).plan.sets == prune("sfp", inputs).plan.sets


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_is_met_as_closely_as_the_layers_allow(method: str) -> None:
    request = PruneRequest(budget=Budget(macs=0.55))
    inputs = given_of(build("resnet20").model, request, 32)
    plan = prune(method, inputs).plan
    share = sum(planned_macs(plan, inputs.graph).values()) / inputs.graph.macs
    assert 0.5 < share <= 0.55
    run = train(method, inputs, 5)
    assert run.hooks.among.request.rate == plan.settings["rate"]


@pytest.mark.parametrize(
    ("method", "request_", "chosen", "message"),
    [
        ("sfp", PruneRequest(rate=0.01), {}, "--rate 0.01 takes no filter of any layer; expected 0.031 or more"),
        ("sfp", PruneRequest(rate=1.0), {}, "--rate 1.0 is out of range"),
        ("sfp", PruneRequest(), {"interval": 0}, "setting interval is 0"),
        ("sfp", PruneRequest(), {"settle": 1.0}, "setting settle is 1"),
        ("fpgm-mix", PruneRequest(), {"norm_share": 1.5}, "setting norm_share is 1.5"),
        ("asfp", PruneRequest(), {"knee": 1.0}, "setting knee is 1"),
        ("fpgm", PruneRequest(budget=Budget(macs=0.01)), {}, "--budget macs=0.01 cannot be met; expected macs=0."),
    ],
)
def test_what_makes_no_sense_is_refused(method: str, request_: PruneRequest, chosen: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        prune(method, given_of(networks.Residual(), request_), **chosen)
    assert message in str(caught.value)


def test_asfp_refuses_a_first_rate_that_is_no_start() -> None:
    with pytest.raises(InputError, match="first_rate is 0.35; expected 0 or more, and less than 3/4 of the rate 0.4"):
        train("asfp", given_of(networks.Residual()), 8, first_rate=0.35)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = networks.Residual()
    with torch.no_grad():
        model.c.weight[3, 2, 1, 1] = float("nan")
    with pytest.raises(InputError, match="c: the weights hold NaN"):
        prune("fpgm", given_of(model))


# -- while training ----------------------------------------------------------------------------------------------------
def zero_rows(layer: nn.Module) -> list[int]:
    return (layer.weight.flatten(1) == 0).all(1).nonzero().flatten().tolist()


def stir(model: nn.Module, seed: int) -> None:
    """What an epoch of training does to weights, as far as these tests care."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def begun(run: Any, model: nn.Module) -> None:
    run.hooks.begin(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_zeroed_filters_grow_back_and_the_choice_is_fresh_each_time() -> None:
    model = networks.settled(networks.Residual())
    run = train("sfp", given_of(model), 4, interval=2, settle=0.0)
    begun(run, model)
    run.hooks.after_epoch(1)
    assert zero_rows(model.a) == []
    assert run.hooks.log() == {}
    stir(model, 1)
    run.hooks.after_epoch(2)
    first = zero_rows(model.a)
    assert len(first) == len(zero_rows(model.b)) == 6
    assert model.b.bias[zero_rows(model.b)].abs().max() == 0
    assert model.a_bn.weight[first].abs().min() > 0, "BatchNorm is zeroed after the last epoch only"
    stir(model, 2)
    assert zero_rows(model.a) == []
    with torch.no_grad():
        model.a.weight[first] *= 10
    run.hooks.after_epoch(4)
    assert set(zero_rows(model.a)).isdisjoint(first)
    assert run.hooks.epochs_zeroed == [2, 4]
    assert run.hooks.log() == {"zeroed": pytest.approx(66 / 176)}  # 16, 16, 32, 32, 32, 32 filters, 16 in the stem


def test_asfp_zeroes_more_and_more_filters() -> None:
    model = networks.settled(networks.Residual())
    run = train("asfp", given_of(model), 16, settle=0.0)
    begun(run, model)
    counts = []
    for epoch in range(1, 17):
        run.hooks.after_epoch(epoch)
        counts.append(len(zero_rows(model.e)))
        stir(model, epoch)
    assert counts == sorted(counts)
    assert (counts[0], counts[1], counts[-1]) == (6, 9, 12)  # 3/4 of 0.4 * 32 after an eighth of the epochs
    curve = json.loads(run.result(model).records["method.json"])["curves"][0]
    assert curve["x"] == list(range(1, 17))


NETWORKS = [networks.Residual, networks.Concatenating, networks.Mobile, networks.Shuffled, networks.Bare]


@pytest.mark.parametrize("coupling", ["separate", "coupled"])
@pytest.mark.parametrize("factory", NETWORKS)
def test_after_the_last_epoch_cutting_changes_nothing(factory: Callable[[], nn.Module], coupling: str) -> None:
    model = networks.settled(factory())
    inputs = given_of(model)
    run = train("fpgm", inputs, 1, coupling=coupling)
    begun(run, model)
    run.hooks.after_epoch(1)
    run.hooks.end()
    small = rewrite(model, run.result(model).plan, inputs.graph)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(small(images), model(images), rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


class Affineless(nn.Module):
    """BatchNorm without parameters, and one that reads flattened features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_bn = nn.Conv2d(3, 8, 3, bias=True), nn.BatchNorm2d(8, affine=False)
        self.b, self.b_bn, self.head = nn.Conv2d(8, 8, 3), nn.BatchNorm1d(8 * 144), nn.Linear(8 * 144, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a_bn(self.a(x)))
        return self.head(torch.relu(self.b_bn(torch.flatten(self.b(x), 1))))


def test_batch_norms_without_parameters_and_behind_flattening_come_to_zero_too() -> None:
    model = Affineless().eval()
    stir(model, 0)
    for norm in (model.a_bn, model.b_bn):
        norm.running_mean += 1.0
    inputs = given_of(model)
    run = train("sfp", inputs, 1)
    begun(run, model)
    run.hooks.after_epoch(1)
    small = rewrite(model, run.result(model).plan, inputs.graph)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(small(images), model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_in_the_training_loop_the_small_network_computes_what_the_trained_one_does(method: str) -> None:
    model = networks.Residual()
    inputs = given_of(model)
    run = train(method, inputs, 3)
    settings_ = TrainSettings(epochs=3, batch_size=12, learning_rate=0.02, device="cpu")
    trained = fit(model, noise(), settings_, hooks=run.hooks)
    plan: Plan = run.result(trained.model).plan
    assert check_plan(plan, inputs.graph) == []
    small = rewrite(trained.model, plan, inputs.graph)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(small(images), trained.model(images), rtol=1e-5, atol=1e-5)
    assert trained.history[-1].figures["zeroed"] == pytest.approx(66 / 176)


def test_in_the_last_epochs_zeroed_filters_stay_zero_with_their_batch_norms() -> None:
    model = networks.settled(networks.Residual())
    run = train("sfp", given_of(model), 8, settle=0.25)
    begun(run, model)
    for epoch in range(1, 7):
        stir(model, epoch)
        run.hooks.after_epoch(epoch)
    gone = zero_rows(model.a)
    for epoch in (7, 8):
        stir(model, epoch)
        run.hooks.before_batch(Step(epoch, 0, 0.1, epoch - 0.5))
        assert zero_rows(model.a) == gone
        assert model.a_bn.weight[gone].abs().max() == model.a_bn.bias[gone].abs().max() == 0
        stir(model, -epoch)
        run.hooks.after_epoch(epoch)
    assert zero_rows(model.a) == gone
    assert run.hooks.epochs_zeroed == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("limit_growth", [True, False])
def test_gradients_of_zeroed_filters_are_limited_to_the_mean_of_the_kept_ones(limit_growth: bool) -> None:
    model = networks.settled(networks.Residual()).train()
    run = train("sfp", given_of(model), 8, limit_growth=limit_growth)
    begun(run, model.train())
    run.hooks.after_epoch(1)
    gone = zero_rows(model.a)
    kept = [f for f in range(16) if f not in gone]
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model(images).square().sum().backward()
    before = model.a.weight.grad.flatten(1).norm(dim=1)
    run.hooks.before_update(Step(2, 0, 0.1, 1.1))
    after = model.a.weight.grad.flatten(1).norm(dim=1)
    assert before[gone].max() > 20 * before[kept].mean(), "BatchNorm behind a zero filter amplifies"
    assert torch.equal(after[kept], before[kept])
    if limit_growth:
        torch.testing.assert_close(after[gone], before[gone].minimum(before[kept].mean()))
    else:
        assert torch.equal(after[gone], before[gone])


@pytest.mark.parametrize("settle", [0.0, 0.5])
def test_asfp_reaches_its_rate_when_the_network_settles(settle: float) -> None:
    run = train("asfp", given_of(networks.Residual()), 8, settle=settle)
    soft = 8 - int(settle * 8)
    assert run.hooks.soft_epochs == soft
    assert run.hooks.schedule(0.4, soft) == pytest.approx(0.4)
    assert run.hooks.schedule(0.4, 1) < 0.4


@pytest.mark.parametrize(
    ("epochs", "chosen", "advised"),
    [
        (1, {}, 8),
        (7, {}, 8),
        (8, {}, None),
        (3, {"settle": 0.5}, 4),
        (9, {"settle": 0.0}, 10),
        (10, {"settle": 0.0}, None),
        (10, {"settle": 0.0, "interval": 2}, 19),
    ],
)
def test_a_run_too_short_to_recover_from_its_zeroing_says_what_to_do(
    capsys: pytest.CaptureFixture[str], epochs: int, chosen: dict[str, Any], advised: int | None
) -> None:
    with progress.shown():
        train("fpgm", given_of(networks.Residual()), epochs, **chosen)
    said = capsys.readouterr().err
    if advised is None:
        assert said == ""
    else:
        assert f"Use --epochs {advised} or more, or prune at once" in said
        assert "`edgeprune prune --method fpgm --finetune-epochs N`" in said


def test_a_resumed_run_ends_with_the_same_plan() -> None:
    whole, model = (
        train("sfp", given_of(networks.Residual()), 4, interval=2, settle=0.0),
        networks.settled(networks.Residual()),
    )
    begun(whole, model)
    whole.hooks.after_epoch(2)
    state = dict(whole.hooks.state())
    resumed = train("sfp", given_of(networks.Residual()), 4, interval=2, settle=0.0)
    begun(resumed, model)
    resumed.hooks.restore(state)
    assert resumed.result(model) == whole.result(model)
    for run in (whole, resumed):
        run.hooks.after_epoch(3)
    assert resumed.hooks.log() == whole.hooks.log()
    assert {key: value.tolist() for key, value in resumed.hooks.state().items()} == {
        key: value.tolist() for key, value in state.items()
    }


class StoppedError(Exception):
    """The run is interrupted."""


def test_a_run_that_was_interrupted_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = networks.Residual()
    inputs = given_of(model)
    settings_ = TrainSettings(epochs=4, batch_size=12, learning_rate=0.02, device="cpu", precision="fp32")

    def trained(folder: str, *, resume: bool) -> tuple[nn.Module, MethodResult]:
        run = train("fpgm-mix", inputs, 4, settle=0.5)
        files = RunFiles(tmp_path / folder, resume=resume)
        result = fit(model, noise(), settings_, hooks=run.hooks, files=files)
        return result.model, run.result(result.model)

    whole, plan = trained("whole", resume=False)
    original = SoftPruningHooks.before_batch

    def stop_in_epoch_4(hooks: SoftPruningHooks, step: Step) -> None:
        if step.epoch == 4:
            raise StoppedError
        original(hooks, step)

    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        patched.setattr(SoftPruningHooks, "before_batch", stop_in_epoch_4)
        trained("parts", resume=False)
    resumed, resumed_plan = trained("parts", resume=True)
    assert resumed_plan == plan
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
