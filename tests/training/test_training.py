"""The training loop, its tickets, and evaluation of modules and of plain functions."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Residual
from torch import Tensor, nn

from edgeprune.checkpoints.checkpoint import load_into, read_state_dict
from edgeprune.checkpoints.tickets import read_tickets
from edgeprune.datasets.images import Dataset, load_data
from edgeprune.errors import InputError
from edgeprune.io.progress import shown
from edgeprune.methods.base import PruneRequest, dense_reason
from edgeprune.plans.plan import LayerPlan, Plan
from edgeprune.rewriting.rewrite import rewrite
from edgeprune.tracing.trace import trace
from edgeprune.training.hooks import Step, TrainingHooks
from edgeprune.training.loop import RunFiles, TrainSettings, evaluate, fit
from edgeprune.training.settings import learning_rate_at
from edgeprune.zoo import build

SETTINGS = TrainSettings(epochs=2, batch_size=16, learning_rate=0.05, augment=False, precision="fp32", device="cpu")


def toy_data(count: int = 64, classes: int = 2) -> Dataset:
    """Images whose class is their brightest channel."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    images = torch.rand(count, 3, 8, 8, generator=generator) * 0.5
    images[torch.arange(count), labels] += 0.5
    return Dataset("toy", images, labels, (), (0.5,) * 3, (0.5,) * 3)


def toy_model(classes: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), pool, nn.Flatten(), nn.Dropout(0.1), nn.Linear(4, classes)
    ).eval()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


# -- training ----------------------------------------------------------------------------------------------------------
def test_training_learns_and_leaves_the_given_model_alone() -> None:
    model, data = toy_model(), toy_data()
    before = weights(model)
    result = fit(model, data, replace(SETTINGS, epochs=12))
    assert same(weights(model), before)
    assert not model.training
    assert not result.model.training
    assert evaluate(result.model, data).top1 > 95
    assert [record.epoch for record in result.history] == list(range(1, 13))
    assert result.history[-1].loss < result.history[0].loss
    assert all(record.seconds > 0 and 0 <= record.accuracy <= 100 for record in result.history)


def test_the_same_seed_gives_the_same_weights_whatever_the_global_state() -> None:
    data, settings = toy_data(), replace(SETTINGS, augment=True)
    first = fit(toy_model(), data, settings)
    model = toy_model()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second = fit(model, data, settings)
    assert same(weights(first.model), weights(second.model))
    assert torch.equal(torch.get_rng_state(), state), "training does not touch the caller's random state"
    assert not same(weights(first.model), weights(fit(toy_model(), data, replace(settings, seed=1)).model))


def test_one_step_is_the_step_of_plain_sgd() -> None:
    torch.manual_seed(0)
    data = toy_data(16)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    settings = replace(SETTINGS, epochs=1, momentum=0, weight_decay=0.01, schedule="constant", learning_rate=0.1)
    trained = fit(model, data, settings).model
    weight = model[1].weight
    F.cross_entropy(model((data.images - 0.5) / 0.5), data.labels).backward()
    assert weight.grad is not None
    expected = weight - 0.1 * (weight.grad + 0.01 * weight)
    assert torch.allclose(trained[1].weight, expected, atol=1e-6)  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "points"),
    [
        ({}, {0: 1.0, 5: 0.5, 10: 0.0}),
        ({"warmup_epochs": 2.0}, {0: 0.0, 1: 0.5, 2: 1.0, 6: 0.5, 10: 0.0}),
        ({"schedule": "step"}, {0: 1.0, 4.9: 1.0, 5: 0.1, 7.4: 0.1, 7.5: 0.01}),
        ({"schedule": "step", "milestones": (6, 7.5, 9), "gamma": 0.2}, {5.9: 1.0, 6: 0.2, 7.5: 0.04, 9: 0.008}),
        ({"schedule": "constant", "warmup_epochs": 1.0}, {0.25: 0.25, 1: 1.0, 10: 1.0}),
        ({"warmup_epochs": 20.0}, {10: 0.5}),
    ],
)
def test_schedules(options: dict[str, object], points: dict[float, float]) -> None:
    settings = replace(SETTINGS, epochs=10, learning_rate=1.0, **options)  # type: ignore[arg-type]
    for progress, expected in points.items():
        assert learning_rate_at(settings, progress) == pytest.approx(expected, abs=1e-12)


def test_label_smoothing_shows_in_the_loss() -> None:
    smooth = fit(toy_model(), toy_data(), replace(SETTINGS, epochs=12, label_smoothing=0.4)).history[-1].loss
    assert smooth > -(0.8 * math.log(0.8) + 0.2 * math.log(0.2)) - 0.01, "the entropy of the smoothed labels"


def test_mixed_precision_and_the_plain_memory_format_train_too() -> None:
    result = fit(toy_model(), toy_data(), replace(SETTINGS, epochs=10, precision="bf16"))
    assert evaluate(result.model, toy_data()).top1 > 90
    assert next(result.model.parameters()).dtype == torch.float32


def test_a_last_batch_of_one_sample_does_not_stop_batchnorm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    assert fit(model, toy_data(17), SETTINGS).history[0].epoch == 1


def test_a_rewritten_model_trains_and_keeps_its_groups() -> None:
    model = Residual().eval()
    example = torch.zeros(2, 3, 8, 8)
    graph = trace(model, example).graph
    request = PruneRequest(groups=2)

    def entry(name: str, out_channels: int, in_channels: int) -> LayerPlan:
        filters = (tuple(range(0, out_channels, 2)), tuple(range(1, out_channels, 2)))
        half = in_channels // 2
        return LayerPlan(name, filters, (tuple(range(half)), tuple(range(half, in_channels))))

    plans = tuple(
        entry(layer.name, layer.out_channels, layer.in_channels)
        if not dense_reason(layer, request)
        else LayerPlan(layer.name)
        for layer in graph.layers
    )
    plan = Plan("test", {}, 0, plans)
    pruned = rewrite(model, plan, graph)
    data = toy_data()
    result = fit(pruned, data, replace(SETTINGS, epochs=6))
    grouped = [m for m in result.model.modules() if isinstance(m, nn.Conv2d) and m.groups == 2]
    assert len(grouped) == len(plan.grouped()) > 0
    assert evaluate(result.model, data).top1 > 90
    assert not same(weights(result.model), weights(pruned))


class Recorder(TrainingHooks):
    """Writes down each call, and what the weights and gradients are then."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.progress: list[float] = []

    def split(self, data: Dataset) -> Dataset:
        self.calls.append("split")
        return data.first(32)

    def begin(self, model: nn.Module, optimizer: torch.optim.SGD) -> None:
        self.calls.append("begin")
        self.model, self.optimizer = model, optimizer
        self.weight = model.get_parameter("0.weight")
        assert self.weight.grad is None

    def before_batch(self, step: Step) -> None:
        assert self.model.training
        assert [group["lr"] for group in self.optimizer.param_groups] == [step.learning_rate]
        self.calls.append(f"batch {step.epoch}.{step.index}")
        self.progress.append(step.progress)
        self.before = self.weight.detach().clone()

    def before_update(self, step: Step) -> None:
        self.calls.append(f"update {step.epoch}.{step.index}")
        assert torch.equal(self.weight, self.before), "the optimizer has not run"
        assert self.weight.grad is not None
        self.weight.grad[1] = 0

    def after_epoch(self, epoch: int) -> None:
        self.calls.append(f"after {epoch}")
        with torch.no_grad():
            self.weight[0] = 0

    def log(self) -> dict[str, object]:
        return {"pruned": 0.25}

    def end(self) -> None:
        self.calls.append("end")
        with torch.no_grad():
            self.weight[2] = 7


def test_hooks_are_called_at_each_point_in_order_and_may_change_gradients_and_weights(tmp_path: Path) -> None:
    hooks, model = Recorder(), toy_model()
    settings = replace(SETTINGS, save_tickets=(1,), weight_decay=0, momentum=0)
    result = fit(model, toy_data(), settings, hooks=hooks, test=toy_data(10), files=RunFiles(tmp_path))
    steps = [[f"batch {e}.0", f"update {e}.0", f"batch {e}.1", f"update {e}.1", f"after {e}"] for e in (1, 2)]
    assert hooks.calls == ["split", "begin", *steps[0], *steps[1], "end"]
    assert hooks.progress == [0.25, 0.75, 1.25, 1.75]
    weight = result.model.get_parameter("0.weight")
    assert not weight[0].any()
    assert torch.equal(weight[1], model.get_parameter("0.weight")[1]), "its gradient was zeroed"
    assert (weight[2] == 7).all()
    ticket = read_state_dict(tmp_path / "tickets" / "epoch_1.pt").tensors["0.weight"]
    assert not ticket[0].any(), "a ticket holds what after_epoch left"
    assert [dict(record.figures) for record in result.history] == [{"pruned": 0.25}] * 2


def test_the_test_accuracy_is_that_of_the_weights_after_the_epoch() -> None:
    data = toy_data(40)
    result = fit(toy_model(), toy_data(), SETTINGS, test=data)
    assert result.history[-1].test_accuracy == evaluate(result.model, data).top1
    assert fit(toy_model(), toy_data(), SETTINGS).history[-1].test_accuracy is None


def test_measuring_on_test_data_does_not_change_the_training() -> None:
    plain, measured = fit(toy_model(), toy_data(), SETTINGS), fit(toy_model(), toy_data(), SETTINGS, test=toy_data(9))
    assert same(weights(plain.model), weights(measured.model))


def test_progress_shows_loss_and_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    fit(toy_model(), toy_data(), SETTINGS)
    assert capsys.readouterr().err == ""
    with shown():
        fit(toy_model(), toy_data(), SETTINGS)
    said = capsys.readouterr().err
    assert "epoch 2/2: loss" in said
    assert "accuracy" in said


# -- tickets -----------------------------------------------------------------------------------------------------------
def test_tickets_are_checkpoints_that_every_reader_takes(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "made")
    settings = replace(SETTINGS, epochs=4, save_tickets=(4, 1, 3))
    result = fit(toy_model(), toy_data(), settings, files=files)
    assert [path.name for path in result.tickets] == ["epoch_1.pt", "epoch_3.pt", "epoch_4.pt"]
    assert sorted(files.tickets.iterdir()) == sorted(result.tickets), "no staging file is left"
    tickets = read_tickets(files.tickets, {"0.weight": (4, 3, 3, 3)})
    assert [ticket.epoch for ticket in tickets] == [1, 3, 4]
    assert not torch.equal(tickets[0].tensors["0.weight"], tickets[1].tensors["0.weight"])
    state = read_state_dict(result.tickets[-1])
    assert state.key_used == "model_state_dict"
    model = toy_model()
    load_into(model, state, where="ticket")
    assert same(weights(model), weights(result.model)), "the last epoch's ticket is the trained model"
    assert state.tensors["0.weight"].is_contiguous()


def test_a_ticket_that_cannot_be_written_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeprune.io.files.os.fsync", fails)
    with pytest.raises(InputError, match="No space left"):
        fit(toy_model(), toy_data(), replace(SETTINGS, save_tickets=(1,)), files=RunFiles(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# -- what is refused ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"epochs": 0}, "epochs 0"),
        ({"batch_size": -1}, "batch size -1"),
        ({"batch_size": 1}, "batch size 1; expected 2 or more"),
        ({"learning_rate": float("nan")}, "learning rate nan"),
        ({"momentum": 1.0}, "momentum 1.0"),
        ({"label_smoothing": -0.1}, "label smoothing"),
        ({"weight_decay": -1e-4}, "weight decay"),
        ({"warmup_epochs": -1.0}, "warmup epochs"),
        ({"save_tickets": (1, 3)}, "epoch 3"),
        ({"milestones": (1,)}, "step schedule"),
        ({"schedule": "step", "milestones": (1, 30)}, "milestone asked for at epoch 30"),
        ({"gamma": 0.0}, "gamma 0"),
        ({"device": "tpu"}, "unknown device"),
        ({"device": "cuda:x"}, "cuda:x"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, object], expected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        fit(toy_model(), toy_data(), replace(SETTINGS, **options), files=RunFiles(tmp_path))  # type: ignore[arg-type]
    assert expected in str(error.value)


def test_training_that_diverges_names_the_epoch_and_the_learning_rate() -> None:
    with pytest.raises(InputError, match=r"diverged in epoch \d+.*below 1e\+30"):
        fit(toy_model(), toy_data(), replace(SETTINGS, learning_rate=1e30))


def test_training_that_diverges_in_its_last_step_is_not_handed_out(tmp_path: Path) -> None:
    data = toy_data(16)  # one step: its loss is that of the sound weights before it
    with pytest.raises(InputError, match=r"diverged in epoch 1: .*not finite.*below 1e\+40"):
        fit(toy_model(), data, replace(SETTINGS, epochs=1, learning_rate=1e40), files=RunFiles(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_labels_and_outputs_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="labels 0..2, and the network has 2 classes"):
        fit(toy_model(2), toy_data(12, classes=3), SETTINGS)
    with pytest.raises(InputError, match="labels 0..2, and the network has 2 classes"):
        evaluate(toy_model(2), toy_data(12, classes=3))
    with pytest.raises(InputError, match=r"\(16, 4, 6, 6\).*logits of shape \(16, classes\)"):
        fit(nn.Conv2d(3, 4, 3), toy_data(), SETTINGS)
    with pytest.raises(InputError, match="no parameters"):
        fit(nn.Flatten(), toy_data(), SETTINGS)


# -- evaluation --------------------------------------------------------------------------------------------------------
def test_accuracy_and_loss_are_means_over_all_images_whatever_the_batch_size() -> None:
    data, model = toy_data(50), toy_model()
    logits = model((data.images - 0.5) / 0.5)
    expected_loss = F.cross_entropy(logits, data.labels).item()
    expected_top1 = 100 * (logits.argmax(1) == data.labels).float().mean().item()
    for batch_size in (7, 50, 64):
        result = evaluate(model, data, batch_size=batch_size)
        assert result.n == 50
        assert result.top1 == pytest.approx(expected_top1)
        assert result.loss == pytest.approx(expected_loss, rel=1e-5)


def test_a_function_is_evaluated_on_numpy_batches_and_agrees_with_the_module() -> None:
    data, model = toy_data(20), toy_model()
    shapes: list[tuple[int, ...]] = []

    def run(batch: np.ndarray) -> np.ndarray:
        assert isinstance(batch, np.ndarray)
        assert batch.dtype == np.float32
        assert batch.flags.c_contiguous
        shapes.append(batch.shape)
        return model(torch.from_numpy(batch)).numpy()

    result = evaluate(run, data, batch_size=8)
    assert shapes == [(8, 3, 8, 8), (8, 3, 8, 8), (4, 3, 8, 8)]
    assert result.loss == pytest.approx(evaluate(model, data).loss, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_runs_in_eval_mode_and_restores_every_modules_mode(training: bool) -> None:
    model = toy_model().train(training)
    model[1].train(not training)
    before = weights(model)
    assert evaluate(model, toy_data()) == evaluate(model, toy_data()), "dropout is off"
    assert model.training == training
    assert model[1].training != training
    assert same(weights(model), before), "BatchNorm statistics are not touched"


# -- real images -------------------------------------------------------------------------------------------------------
def test_a_small_resnet_learns_the_digits() -> None:
    train = load_data("digits", split="train", input_shape=(1, 16, 16), limit=600)
    test = load_data("digits", split="test", input_shape=(1, 16, 16))
    torch.manual_seed(0)
    settings = TrainSettings(epochs=6, batch_size=32, learning_rate=0.1, warmup_epochs=1, device="cpu")
    result = fit(build("resnet8", in_channels=1).model, train, settings)
    assert evaluate(result.model, test).top1 > 90
