"""`edgeprune train` through the command line: plain, with a method, stopped and resumed."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgeprune.bundles.bundle import open_bundle
from edgeprune.checkpoints.checkpoint import read_state_dict
from edgeprune.cli import main
from edgeprune.datasets.images import RGB_MEAN, RGB_STD, Dataset
from edgeprune.errors import InputError
from edgeprune.methods import METHODS
from edgeprune.methods.base import PruneRequest
from edgeprune.pruning.network import load_network
from edgeprune.pruning.options import NetworkSource
from edgeprune.pruning.while_training import MethodChoice, train_network
from edgeprune.training.loop import TrainSettings

DATA = """
import torch

def load(split):
    count = 40 if split == "train" else 12
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 120, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 3
    images[torch.arange(count), labels] += 120
    return images, labels
"""

Train = Callable[..., tuple[int, str]]


@pytest.fixture
def train(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Train:
    """Runs `edgeprune train` on 40 images of three classes; gives the exit code and what was said."""
    monkeypatch.setitem(METHODS, "halving", "halving_method")  # type: ignore[arg-type]
    (tmp_path / "toy.py").write_text(DATA)

    def run(*arguments: object, out: Path | None = None) -> tuple[int, str]:
        flags = ["--data", f"{tmp_path / 'toy.py'}:load", "--batch-size", 16, "--precision", "fp32"]
        network = [] if "--from" in arguments else ["--arch", "resnet8", "--input-size", "16,16"]
        classes = [] if {"--from", "--num-classes"} & set(arguments) else ["--num-classes", 3]
        code = main([*map(str, ["train", *network, *classes, *flags, *arguments, "-o", out or tmp_path / "out"])])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# -- plain -------------------------------------------------------------------------------------------------------------
def test_a_plain_run_ends_in_a_bundle_that_the_other_verbs_take(train: Train, tmp_path: Path) -> None:
    out, result = tmp_path / "out", tmp_path / "result.json"
    code, said = train("--epochs", 3, "--tickets", "1:3:2", "--json", result)
    assert code == 0, said
    bundle = open_bundle(out)
    assert bundle.faults() == []
    assert set(bundle.manifest.files) == {
        "dense.safetensors", "log.jsonl", "tickets/epoch_1.pt", "tickets/epoch_3.pt",
    }  # fmt: skip
    manifest = bundle.manifest
    assert (manifest.arch, manifest.method, manifest.num_classes, manifest.input_shape) == (
        "resnet8",
        "",
        3,
        (3, 16, 16),
    )
    assert manifest.training["epochs"] == 3
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    summary = json.loads(result.read_text())
    assert set(summary) == {"epochs", "history", "accuracy", "macs", "params", "seconds", "plan_sha256"}
    assert summary["history"] == log(out)
    assert summary["accuracy"]["dense"] == summary["history"][-1]["test_accuracy"]
    weights = load_file(out / "dense.safetensors")
    ticket = read_state_dict(out / "tickets" / "epoch_3.pt").tensors
    assert all(torch.equal(weights[key], ticket[key]) for key in weights)

    data = f"{tmp_path / 'toy.py'}:load"
    assert run("eval", out, "--data", data, "--json", result) == 0
    assert json.loads(result.read_text())["top1"] == pytest.approx(summary["accuracy"]["dense"])
    pruned = tmp_path / "pruned"
    prune = ("--groups", 2, "--rate", 0.5, "--tickets", out / "tickets")
    assert run("prune", out, *prune, "-o", pruned) == 0
    assert open_bundle(pruned).manifest.arch == "resnet8"
    assert run("export", out, *prune, "-o", tmp_path / "exported") == 0
    assert train("--from", out, "--epochs", 1, out=tmp_path / "more")[0] == 0
    assert log(tmp_path / "more")[0]["learning_rate"] <= 0.01, "a tenth of 0.1"


def test_a_pruned_network_is_trained_on_and_keeps_its_plan(train: Train, tmp_path: Path) -> None:
    assert train("--epochs", 1, out=tmp_path / "plain")[0] == 0
    assert run("prune", tmp_path / "plain", "--groups", 2, "--rate", 0.5, "-o", tmp_path / "pruned") == 0
    code, said = train("--from", tmp_path / "pruned", "--epochs", 2, out=tmp_path / "tuned")
    assert code == 0, said
    before, after = open_bundle(tmp_path / "pruned"), open_bundle(tmp_path / "tuned")
    assert after.manifest.macs == before.manifest.macs
    assert after.path("plan.json").read_bytes() == before.path("plan.json").read_bytes()
    assert after.path("dense.safetensors").read_bytes() == before.path("dense.safetensors").read_bytes()
    assert after.path("weights.safetensors").read_bytes() != before.path("weights.safetensors").read_bytes()
    assert after.manifest.accuracy is not None
    assert after.manifest.accuracy.pruned == log(tmp_path / "tuned")[-1]["test_accuracy"]
    assert run("export", tmp_path / "tuned", "-o", tmp_path / "exported") == 0
    code, said = train("--from", tmp_path / "pruned", "--epochs", 1, "--method", "halving", out=tmp_path / "twice")
    assert code == 1
    assert "is pruned already" in said


def test_training_says_what_it_does_unless_it_is_to_be_quiet(train: Train, tmp_path: Path) -> None:
    said = train("--epochs", 1)[1]
    assert "training on 40 images in fp32, 1 epochs" in said
    assert "epoch 1/1: loss" in said
    assert "Top-1" in said
    said = train("--epochs", 1, "--quiet", out=tmp_path / "quiet")[1]
    assert "epoch 1/1" not in said
    assert "Top-1" in said


def test_data_with_fewer_classes_than_the_network_trains_with_a_note(train: Train, tmp_path: Path) -> None:
    code, said = train("--epochs", 1, "--num-classes", 5)
    assert code == 0
    assert said.count("has 3 classes and the network 5") == 1
    code, said = train("--epochs", 1, "--num-classes", 2, out=tmp_path / "other")
    assert code == 1
    assert "labels 0..2, and the network has 2 classes" in said


# -- with a method -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("start", [False, True])
def test_a_method_at_work_ends_in_a_small_network_that_exports(train: Train, tmp_path: Path, start: bool) -> None:
    origin: tuple[object, ...] = ()
    if start:
        assert train("--epochs", 1, "--seed", 5, out=tmp_path / "start")[0] == 0
        origin = ("--from", tmp_path / "start")
    out, result = tmp_path / "out", tmp_path / "result.json"
    code, said = train(*origin, "--epochs", 2, "--method", "halving", "--json", result)
    assert code == 0, said
    bundle = open_bundle(out)
    assert set(bundle.manifest.files) == {
        "dense.safetensors", "log.jsonl", "method.json", "plan.json", "weights.safetensors",
    }  # fmt: skip
    assert bundle.faults() == []
    assert [record["figures"] for record in log(out)] == [{"zeroed": 1}, {"zeroed": 2}]
    accuracy, macs = bundle.manifest.accuracy, bundle.manifest.macs
    assert accuracy is not None
    assert macs is not None
    assert accuracy.pruned == accuracy.full_shape, "zero filters change nothing when they are cut out"
    assert macs.pruned < 0.7 * macs.dense
    assert "as trained in full shape" in said
    assert "layer1.0.conv1" in said
    assert "8 of 16" in said
    summary = json.loads(result.read_text())
    assert len(summary["plan_sha256"]) == 64
    dense = load_file(out / "dense.safetensors")
    assert load_file(out / "weights.safetensors")["layer1.0.conv1.weight"].shape == (8, 16, 3, 3)
    if start:
        origin_weights = load_file(tmp_path / "start" / "dense.safetensors")
        assert all(torch.equal(dense[key], origin_weights[key]) for key in dense)
    else:
        assert accuracy.dense == accuracy.full_shape
        assert not dense["layer1.0.conv1.weight"][1::2].any()
    assert run("export", out, "-o", tmp_path / "exported") == 0
    assert run("eval", out, "--data", f"{tmp_path / 'toy.py'}:load", "--json", result) == 0
    assert json.loads(result.read_text())["top1"] == pytest.approx(accuracy.pruned)


def test_top_1_in_full_shape_is_that_of_the_last_epoch_before_the_method_makes_ready_to_cut(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def always_class_3(hooks: Any) -> None:
        with torch.no_grad():
            hooks.model.get_parameter("linear.bias")[3] = 1e6

    monkeypatch.setattr("halving_method.Hooks.end", always_class_3, raising=False)
    code, said = train("--epochs", 2, "--method", "halving", "--num-classes", 4)
    assert code == 0, said
    accuracy = open_bundle(tmp_path / "out").manifest.accuracy
    assert accuracy is not None
    assert accuracy.full_shape == log(tmp_path / "out")[-1]["test_accuracy"] > 0
    assert (accuracy.dense, accuracy.pruned) == (0, 0), "no image is of class 3"


def test_a_network_is_trained_and_cut_as_a_function_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "halving", "halving_method")  # type: ignore[arg-type]
    network = load_network(NetworkSource("resnet8", random_init=True, input_size=(16, 16), num_classes=2))
    before = {key: value.clone() for key, value in network.model.state_dict().items()}
    images = torch.randint(0, 256, (32, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = Dataset("toy", images, torch.arange(32) % 2, (), RGB_MEAN, RGB_STD)
    settings = TrainSettings(epochs=1, batch_size=16, precision="fp32", device="cpu")
    pruned = train_network(network, data, settings, MethodChoice("halving", PruneRequest(rate=0.5)))
    assert pruned.network is network
    assert all(torch.equal(before[key], value) for key, value in network.model.state_dict().items())
    assert pruned.macs.pruned < 0.7 * pruned.macs.dense
    assert pruned.model(network.example_input(2)).shape == (2, 2)
    with pytest.raises(InputError, match="trained already"):
        train_network(network, data, settings, MethodChoice("tmi-gkp", PruneRequest()))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--method", "tmi-gkp"), "then `edgeprune prune DIR --method tmi-gkp`"),
        (("--method", "halvign"), "did you mean halving"),
        (("--method", "halving", "--set", "stop=1"), "unknown setting of halving"),
        (("--rate", "0.3"), "no method; pass --method"),
        (("--tickets", "9"), "ticket asked for at epoch 9"),
        (("--tickets", "3:1"), "--tickets '3:1' names no epochs"),
        (("--milestones", "1"), "use the step schedule"),
        (("--random-init", "--from", "x.pt", "--arch", "resnet8"), "both a checkpoint and --random-init"),
        (("--from", "x.pt"), "no such file or folder"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    train: Train, tmp_path: Path, flags: tuple[str, ...], expected: str
) -> None:
    code, said = train("--epochs", 2, *flags)
    assert code == 1
    assert expected in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


# -- stopped and resumed -----------------------------------------------------------------------------------------------
def test_a_stopped_run_says_how_to_go_on_and_ends_as_if_it_had_not_stopped(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--epochs", 4, "--method", "halving", "--tickets", "1,2")
    assert train(*flags, out=tmp_path / "whole")[0] == 0
    out = tmp_path / "out"
    monkeypatch.setattr("halving_method.Hooks.after_epoch", stopping_in(3))
    code, said = train(*flags)
    assert code == 130
    assert "interrupted after epoch 2 of 4; the same command with --resume continues" in said
    assert {path.name for path in out.iterdir()} == {"checkpoint.safetensors", "log.jsonl", "tickets"}
    monkeypatch.undo()
    monkeypatch.setitem(METHODS, "halving", "halving_method")  # type: ignore[arg-type]

    code, said = train(*flags)
    assert code == 1
    assert "stopped after epoch 2; --resume continues it" in said
    for verb in (("prune", "-o", tmp_path / "x"), ("export", "-o", tmp_path / "x"), ("inspect",), ("eval",)):
        assert run(verb[0], out, *(("--data", "digits") if verb[0] == "eval" else ()), *verb[1:]) == 1
        said = capsys.readouterr().err
        assert "is an unfinished training run" in said
        assert "the same `edgeprune train` command with --resume" in said
    code, said = train(*flags, "--learning-rate", 0.05, "--resume")
    assert code == 1
    assert "learning rate: 0.1 -> 0.05" in said
    code, said = train(*flags, "--resume")
    assert code == 0, said
    assert "resumed after epoch 2 of 4" in said
    for name in ("weights.safetensors", "dense.safetensors"):
        whole, resumed = load_file(tmp_path / "whole" / name), load_file(out / name)
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert open_bundle(out).manifest.files.keys() == open_bundle(tmp_path / "whole").manifest.files.keys()


def test_resuming_a_run_that_has_ended_tells_its_result_again(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again, out = tmp_path / "first.json", tmp_path / "again.json", tmp_path / "out"
    flags = ("--epochs", 2, "--method", "halving", "--resume", "--json")
    assert train(*flags, first)[0] == 0
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    code, said = train(*flags, again)
    assert code == 0, said
    assert "finished already, after all of its 2 epochs" in " ".join(said.split())
    assert again.read_bytes() == first.read_bytes()
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files
    code, said = train("--epochs", 3, "--method", "halving", "--rate", 0.3, "--resume")
    assert code == 1
    assert "epochs: 2 -> 3" in said
    assert "request rate: 0.5 -> 0.3" in said
    data = ("--data", f"{tmp_path / 'toy.py'}:load")
    assert run("train", "--arch", "resnet14", *data, "--epochs", 2, "--resume", "-o", out) == 1
    assert "architecture: resnet8 -> resnet14" in capsys.readouterr().err
    assert run("prune", "--arch", "resnet8", "--random-init", "--groups", 2, "-o", tmp_path / "pruned") == 0
    code, said = train("--epochs", 1, "--resume", out=tmp_path / "pruned")
    assert code == 1
    assert "`edgeprune train` did not write" in said


def test_the_seconds_of_a_resumed_run_hold_those_of_its_earlier_parts(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tmp_path / "result.json"
    with monkeypatch.context() as patch:
        patch.setattr("halving_method.Hooks.after_epoch", stopping_in(2))
        patch.setattr("edgeprune.training.loop.time.perf_counter", itertools.count(step=500).__next__)
        assert train("--epochs", 2, "--method", "halving")[0] == 130
    earlier = log(tmp_path / "out")[0]["seconds"]
    assert earlier >= 500
    assert train("--epochs", 2, "--method", "halving", "--resume", "--json", result)[0] == 0
    assert earlier < json.loads(result.read_text())["seconds"] < earlier + 200


def stopping_in(epoch: int) -> Callable[[Any, int], None]:
    from halving_method import Hooks

    usual = Hooks.after_epoch

    def after_epoch(hooks: Hooks, done: int) -> None:
        if done == epoch:
            raise KeyboardInterrupt
        usual(hooks, done)

    return after_epoch


def test_a_run_stopped_in_its_first_epoch_keeps_nothing(train: Train, tmp_path: Path) -> None:
    code, said = train("--epochs", 2, "--method", "halving", "--set", "stop-in=1")
    assert code == 130
    assert "nothing was kept" in said
    assert not (tmp_path / "out").exists()


def test_overwriting_starts_anew(train: Train, tmp_path: Path) -> None:
    assert train("--epochs", 2, "--method", "halving", "--set", "stop-in=2")[0] == 130
    assert train("--epochs", 1, "--overwrite")[0] == 0
    assert len(log(tmp_path / "out")) == 1
    assert train("--epochs", 1)[0] == 1
    assert train("--epochs", 2, "--overwrite")[0] == 0
    assert len(log(tmp_path / "out")) == 2


def test_a_folder_that_is_no_run_is_left_alone(train: Train, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".git").mkdir(parents=True)
    (out / "tickets").mkdir()
    for flags in ((), ("--overwrite",), ("--resume",)):
        assert train("--epochs", 1, *flags)[0] == 1
    assert (out / ".git").is_dir()


def test_a_folder_with_names_like_those_of_a_run_is_left_alone(train: Train, tmp_path: Path) -> None:
    other = tmp_path / "out" / "tickets_of_another_run"
    other.mkdir(parents=True)
    (tmp_path / "out" / "log.jsonl").write_text("")
    assert "will not replace it" in train("--epochs", 1, "--overwrite")[1]
    assert other.is_dir()


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_a_second_process_is_kept_out_of_the_folder_until_the_first_ends(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("halving_method.Hooks.after_epoch", stopping_in(2))
        assert train("--epochs", 2, "--method", "halving")[0] == 130
    left = {path: path.read_bytes() for path in out.iterdir()}
    holds = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); print(flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{holds}; input()", str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        first.stdout.readline()
        code, said = train("--epochs", 2, "--method", "halving", flag)
        assert code == 1
        assert "another process is training there" in said
        assert {path: path.read_bytes() for path in out.iterdir()} == left
        first.kill()
    assert train("--epochs", 2, "--method", "halving", flag)[0] == 0
    assert open_bundle(out).faults() == []


def test_a_run_holds_its_folder(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from halving_method import Hooks

    def after_epoch(hooks: Hooks, epoch: int) -> None:
        folder = os.open(tmp_path / "out", os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(folder)
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Hooks, "after_epoch", after_epoch)
    assert train("--epochs", 1, "--method", "halving")[0] == 130


def test_an_error_at_the_end_leaves_the_run_to_be_resumed(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise InputError("cannot be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr("edgeprune.pipeline.train.save_weights", fails)
        assert train("--epochs", 1)[0] == 1
    assert (tmp_path / "out" / "checkpoint.safetensors").is_file()
    assert train("--epochs", 1, "--resume")[0] == 0
    assert open_bundle(tmp_path / "out").faults() == []
