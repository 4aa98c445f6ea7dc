"""Training runs that are stopped and resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from edgeprune.datasets.images import Dataset
from edgeprune.errors import InputError
from edgeprune.io.progress import shown
from edgeprune.training.hooks import Step, TrainingHooks
from edgeprune.training.loop import RunFiles, TrainResult, TrainSettings, fit
from edgeprune.training.state import epochs_done, require_same_run

SETTINGS = TrainSettings(
    epochs=4, batch_size=16, learning_rate=0.05, warmup_epochs=1, label_smoothing=0.1, precision="fp32", device="cpu"
)


def images(count: int = 40, seed: int = 0) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return Dataset("toy", pixels, torch.arange(count) % 2, (), (0.5,) * 3, (0.5,) * 3)


def network() -> nn.Module:
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(2)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), pool, nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 2)
    )


class Drift(TrainingHooks):
    """Pushes the weights by a vector that grows from step to step, at random: state that a run must not lose."""

    def __init__(self, stop_in: int = 0) -> None:
        self.push, self.stop_in = torch.zeros(4), stop_in

    def begin(self, model: nn.Module, optimizer: torch.optim.SGD) -> None:
        self.bias = model.get_parameter("0.bias")
        by_size = sorted(model.parameters(), key=lambda p: p.numel())
        optimizer.param_groups[0]["params"] = by_size  # a method may rearrange the optimizer's parameters

    def before_update(self, step: Step) -> None:
        if step.epoch == self.stop_in and step.index == 1:
            raise KeyboardInterrupt
        self.push += torch.rand(4) * 1e-3
        assert self.bias.grad is not None
        self.bias.grad += self.push

    def state(self) -> Mapping[str, Tensor]:
        return {"push": self.push}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.push = state["push"].clone()

    def log(self) -> Mapping[str, Any]:
        return {"push": self.push.sum().item()}


def run(folder: Path, hooks: TrainingHooks, *, resume: bool = False, **options: Any) -> TrainResult:
    files = RunFiles(folder, resume, {"method": "drift"})
    return fit(network(), images(), replace(SETTINGS, **options), hooks=hooks, test=images(10, 1), files=files)


def stopped(folder: Path, stop_in: int, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(folder, Drift(stop_in), **options)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"precision": "bf16"}])
def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_stopped(tmp_path: Path, options: dict[str, Any]) -> None:
    whole = run(tmp_path / "whole", Drift(), save_tickets=(1, 4), **options)
    folder = tmp_path / "parts"
    stopped(folder, 3, save_tickets=(1, 4), **options)
    assert epochs_done(folder) == 2
    stopped(folder, 2, save_tickets=(1, 4), **options)  # from the start again
    assert epochs_done(folder) == 1
    with pytest.raises(KeyboardInterrupt):
        run(folder, Drift(4), resume=True, save_tickets=(1, 4), **options)
    parts = run(folder, Drift(), resume=True, save_tickets=(1, 4), **options)
    expected, got = whole.model.state_dict(), parts.model.state_dict()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert [replace(r, seconds=0) for r in whole.history] == [replace(r, seconds=0) for r in parts.history]
    assert [path.name for path in parts.tickets] == ["epoch_1.pt", "epoch_4.pt"]
    assert all(path.is_file() for path in parts.tickets)


def test_a_run_stopped_after_its_last_epoch_only_has_its_end_to_do(tmp_path: Path) -> None:
    class EndsBadly(Drift):
        def end(self) -> None:
            raise KeyboardInterrupt

    class EndsWell(Drift):
        def end(self) -> None:
            self.ended = True

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, EndsBadly())
    assert epochs_done(tmp_path) == 4
    hooks = EndsWell()
    assert len(run(tmp_path, hooks, resume=True).history) == 4
    assert hooks.ended


def test_the_log_holds_a_line_an_epoch(tmp_path: Path) -> None:
    stopped(tmp_path, 3)
    run(tmp_path, Drift(), resume=True)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert lines[0].keys() == {"epoch", "learning_rate", "loss", "accuracy", "seconds", "test_accuracy", "figures"}
    assert lines[3]["figures"]["push"] > lines[2]["figures"]["push"] > 0


def test_resuming_where_nothing_is_starts_a_run(tmp_path: Path) -> None:
    assert epochs_done(tmp_path) == 0
    assert len(run(tmp_path / "new", Drift(), resume=True).history) == 4


def test_the_checkpoint_is_plain_tensors_and_json(tmp_path: Path) -> None:
    stopped(tmp_path, 2)
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as file:
        names, meta = set(file.keys()), json.loads(file.metadata()["edgeprune"])
    assert {"model.0.weight", "model.1.running_var", "momentum.6.bias", "hooks.push", "random.shuffle"} <= names
    assert meta["described"]["method"] == "drift"
    assert meta["described"]["learning_rate"] == 0.05
    assert [record["epoch"] for record in meta["history"]] == [1]


def test_all_that_differs_from_the_run_that_is_resumed_is_listed(tmp_path: Path) -> None:
    stopped(tmp_path, 2)
    other = network()
    torch.nn.init.zeros_(other.get_parameter("0.bias"))
    settings = replace(SETTINGS, learning_rate=0.07, epochs=9)
    with pytest.raises(InputError) as error:
        fit(other, images(seed=5), settings, files=RunFiles(tmp_path, True, {"method": "other"}))
    text = str(error.value)
    for part in ("learning rate: 0.05 -> 0.07", "epochs: 4 -> 9", "method: drift -> other"):
        assert part in text
    assert "starting weights: " in text
    assert ", data: toy, 40 images" in text
    assert "test data: " in text
    assert "batch size" not in text


def test_differences_in_what_a_method_is_told_are_listed_one_by_one(tmp_path: Path) -> None:
    told = {"method_settings": {"settle": 0.25, "norm": "l2"}, "request": {"budget": {"macs": None}, "skip": ["a"]}}
    asked = {"method_settings": {"settle": 0.5, "norm": "l2"}, "request": {"budget": {"macs": 0.5}, "skip": []}}
    with pytest.raises(InputError) as error:
        require_same_run(tmp_path, told, asked)
    listed = "method settings settle: 0.25 -> 0.5, request budget macs: none -> 0.5, request skip: a -> none;"
    assert f"(was -> is): {listed}" in str(error.value)


def test_going_on_with_another_number_of_threads_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(tmp_path, 2)
    threads = torch.get_num_threads()
    with shown(), pytest.raises(KeyboardInterrupt):
        run(tmp_path, Drift(3), resume=True)
    assert "same bits" not in capsys.readouterr().err
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    with shown():
        run(tmp_path, Drift(), resume=True)
    said = " ".join(capsys.readouterr().err.split())
    assert f"the run went on {threads} threads so far and goes on with {threads + 1}" in said
    assert f"OMP_NUM_THREADS={threads} would" in said


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="no sound checkpoint"):
        run(tmp_path, Drift(), resume=True)
