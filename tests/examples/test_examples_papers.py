"""The examples of the papers' experiments: sound commands, results that are kept and continued, and the table."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import example_modules
import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import PAPERS

from edgeprune.cli import app
from edgeprune.methods import load_method, parse_settings
from edgeprune.methods.shared.channel_choice import kept_count
from edgeprune.zoo import ARCHS

NAMES = ("tmi_gkp", "gconv", "csgd", "filter_pruning")
TABLES = {"tmi_gkp": "PUBLISHED", "gconv": "RECIPES", "csgd": "SLIMMED", "filter_pruning": "CASES"}
"""Example -> its table of the networks that the paper has."""


def load(name: str) -> Any:
    return example_modules.load(PAPERS, name)


@pytest.fixture
def steps() -> Any:
    return load("steps")


def commands(example: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    """What a dry run prints, one list of words a command."""
    load("steps").main("", example.experiments, list(getattr(example, TABLES[example.__name__])), [*arguments])  # type: ignore[attr-defined]
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def assert_sound(words: Sequence[str]) -> None:
    """The command line takes the command, and the method its settings; nothing is run."""
    assert words[0] == "edgeprune"
    _, bound, _ = app.parse_args(list(words[1:]), exit_on_error=False, print_error=False)
    given, verb = bound.arguments, words[1]
    if verb == "train":
        choice = given["method"].choice(0) if "method" in given else None
        options = given["training"].options(choice, 0)
        options.training.check()
        if choice is not None:
            choice.settings()
    if verb == "prune":
        options = given["pruning"].options(0)
        options.request.check()
        assert hasattr(load_method(options.method), "prune")
        parse_settings(options.method, options.assignments)


@pytest.mark.parametrize("form", [("--data", "cifar10:DIR"), ("--short",), ("--short", "--data", "imagefolder:DIR")])
@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_one_that_the_command_line_takes(
    name: str, form: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    found = commands(load(name), capsys, *form, "-o", "runs", "--dry-run")
    assert {words[1] for words in found} >= {"train", "export", "profile", "report"}
    assert len({tuple(words) for words in found}) == len(found)
    for words in found:
        assert_sound(words)


@pytest.mark.parametrize("name", NAMES)
def test_every_bundle_is_written_before_it_is_used(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    written: set[str] = set()
    for words in commands(load(name), capsys, "--data", "cifar10:DIR", "-o", "runs", "--dry-run"):
        used = {word.removesuffix("/tickets") for word in words if word.startswith("runs/")}
        made = {words[words.index("-o") + 1]} if "-o" in words else set()
        assert used - made <= written, words
        assert not made & written, words
        written |= made


@pytest.mark.parametrize("name", NAMES)
def test_networks_of_the_papers_are_built_in(name: str) -> None:
    own = [network for network in getattr(load(name), TABLES[name]) if not network.startswith("torchvision:")]
    assert set(own) <= set(ARCHS)


def test_a_checkpoint_is_taken_instead_of_training(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--networks", "resnet20", "--checkpoint", "resnet20=mine.pt")
    first, *_ = commands(load("tmi_gkp"), capsys, "--data", "cifar10:DIR", "-o", "runs", *given, "--dry-run")
    assert first[1:3] == ["prune", "mine.pt"]
    assert "--tickets" not in first


@pytest.mark.parametrize(
    ("name", "network", "milestones"),
    [
        ("tmi_gkp", "resnet20", "100,200"),
        ("tmi_gkp", "torchvision:resnet50", "30,60"),
        ("gconv", "resnet164", "30,45"),
        ("gconv", "densenet86", "50,75"),
        ("gconv", "torchvision:resnet50", "10,20"),
    ],
)
def test_what_is_pruned_at_once_is_trained_on_with_steps(
    name: str, network: str, milestones: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--networks", network, "--checkpoint", f"{network}=mine.pt")
    prune, train, export, *_ = commands(load(name), capsys, "--data", "cifar10:DIR", "-o", "runs", *given, "--dry-run")
    assert (prune[1], train[1], export[1]) == ("prune", "train", "export")
    assert "--data" in prune, "else the accuracy before fine-tuning is not known"
    assert train[train.index("--from") + 1] == prune[prune.index("-o") + 1]
    assert export[2] == train[train.index("-o") + 1]
    assert train[train.index("--schedule") :][:4] == ["--schedule", "step", "--milestones", milestones]


def test_only_some_experiments_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    form = ("--data", "cifar10:DIR", "-o", "runs", "--networks", "resnet56", "--only", "lfpc, asfp", "--dry-run")
    found = commands(load("filter_pruning"), capsys, *form)
    methods = {words[words.index("--method") + 1] for words in found if "--method" in words}
    assert methods == {"lfpc", "asfp"}
    with pytest.raises(SystemExit, match="2"):
        commands(load("filter_pruning"), capsys, "--short", "-o", "runs", "--only", "tmi", "--dry-run")


def test_the_papers_form_asks_for_data(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        commands(load("csgd"), capsys, "-o", "runs")
    assert "--data is missing" in capsys.readouterr().err


@given(width=st.integers(1, 600), share=st.floats(0, 1))
def test_layer_rates_leave_the_filters_that_are_asked_for(width: int, share: float) -> None:
    kept = max(1, round(share * width))
    flag, text = load("csgd").layer_rates({"layer": (width, kept)})
    assert flag == "--layer-rate"
    assert kept_count(width, float(text.removeprefix("layer="))) == kept


def test_a_shorter_training_keeps_its_milestones_places(steps: Any) -> None:
    full = steps.Training(200, 128, 0.1, 5e-4, milestones=(60, 120, 160), gamma=0.2)
    assert full.shortened(20).milestones == (6, 12, 16)
    assert full.shortened(2).milestones == (1, 2)
    assert "--gamma 0.2" in shlex.join(full.flags())
    assert "--schedule cosine" in shlex.join(steps.Training(9, 64, 0.1, 0).flags())


class Commands:
    """Instead of processes: what was run, and its exit code; a command that works writes its result."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: Any) -> None:
        self.run: list[list[str]] = []
        self.code = 0
        self.result = Path()
        monkeypatch.setattr(steps.subprocess, "run", self._run)

    def _run(self, words: list[str], *, check: bool) -> subprocess.CompletedProcess[str]:
        self.run.append(words[3:])
        if self.code == 0:
            self.result.parent.mkdir(parents=True, exist_ok=True)
            self.result.write_text("{}")
        return subprocess.CompletedProcess(words, self.code)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, steps: Any) -> Commands:
    return Commands(monkeypatch, steps)


def test_what_is_done_is_not_done_again(
    steps: Any, fake: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step = steps.Step("prune", ("model.pt",), tmp_path / "pruned")
    fake.result = tmp_path / "pruned" / "manifest.json"
    steps.run_steps([step], tmp_path)
    steps.run_steps([step], tmp_path)
    assert fake.run == [["prune", "model.pt", "-o", f"{tmp_path}/pruned"]]
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"$ edgeprune prune model.pt -o {tmp_path}/pruned"
    assert second.startswith("# done: edgeprune prune model.pt")


def test_a_training_run_that_was_interrupted_is_resumed(steps: Any, fake: Commands, tmp_path: Path) -> None:
    step = steps.Step("train", ("--epochs", "9"), tmp_path / "dense")
    fake.code = 130
    with pytest.raises(SystemExit, match="130"):
        steps.run_steps([step], tmp_path)
    (tmp_path / "dense").mkdir()
    fake.code, fake.result = 0, tmp_path / "dense" / "manifest.json"
    steps.run_steps([step], tmp_path)
    assert [words[-1] == "--resume" for words in fake.run] == [False, True]
    steps.run_steps([step], tmp_path)
    assert len(fake.run) == 2


def test_a_step_that_fails_ends_the_run(steps: Any, fake: Commands, tmp_path: Path) -> None:
    fake.code = 1
    both = [steps.Step("prune", (name,), tmp_path / name) for name in ("a", "b")]
    with pytest.raises(SystemExit, match="exit code 1"):
        steps.run_steps(both, tmp_path)
    assert len(fake.run) == 1


def test_results_of_another_command_are_not_taken(steps: Any, fake: Commands, tmp_path: Path) -> None:
    fake.result = tmp_path / "dense" / "manifest.json"
    steps.run_steps([steps.Step("train", ("--epochs", "9"), tmp_path / "dense")], tmp_path)
    with pytest.raises(SystemExit, match="of another command"):
        steps.run_steps([steps.Step("train", ("--epochs", "2"), tmp_path / "dense")], tmp_path)


def test_the_output_folder_may_move(steps: Any, fake: Commands, tmp_path: Path) -> None:
    fake.result = tmp_path / "old" / "exported" / "profile.json"
    steps.run_steps([steps.Step("profile", (), tmp_path / "old" / "exported", "profile.json")], tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    steps.run_steps([steps.Step("profile", (), tmp_path / "new" / "exported", "profile.json")], tmp_path / "new")
    assert len(fake.run) == 1


def test_the_table_shows_our_numbers_beside_the_papers(steps: Any, tmp_path: Path) -> None:
    exported = tmp_path / "x" / "exported"
    exported.mkdir(parents=True)
    manifest = {
        "accuracy": {"dense": 91.5, "pruned": 90.25, "pruned_before_finetune": 20.5},
        "macs": {"dense": 200, "pruned": 100},
        "params": {"dense": 100, "pruned": 70},
    }
    (exported / "manifest.json").write_text(json.dumps(manifest))
    profile = {"results": [{"theoretical_speedup": 2.0, "realistic_speedup": 1.5}]}
    (exported / "profile.json").write_text(json.dumps(profile))
    published = steps.Published(92.35, 92.01, 43, before_finetuning=22.81)
    lines = steps.table([steps.Experiment("x", tmp_path / "x", (), ("prune",), published)]).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == ["x", "91.50 (92.35)", "20.50 (22.81)", "90.25 (92.01)", "50.0 (43)", "30.0", "2.00", "1.50"]
    assert len({len(line) for line in lines}) == 1


def test_the_dense_accuracy_of_a_method_from_scratch_is_that_of_the_dense_network(steps: Any, tmp_path: Path) -> None:
    for folder, dense in (("dense", 93.0), ("x/exported", 60.0)):
        (tmp_path / folder).mkdir(parents=True)
        manifest = {"accuracy": {"dense": dense, "pruned": 60.0}}
        (tmp_path / folder / "manifest.json").write_text(json.dumps(manifest))
    row = steps.Experiment("x", tmp_path / "x", (), ("train",), dense=tmp_path / "dense").row()
    assert row[1:4] == ("93.00", "-", "60.00")
    assert row[4:] == ("-",) * 4
