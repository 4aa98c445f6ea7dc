"""A detector through the command line: trained, pruned, exported and measured in its own metric."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from places import ROOT
from shared_by_workers import made_once

from edgeprune.bundles.bundle import open_bundle
from edgeprune.cli import main
from edgeprune.errors import InputError
from edgeprune.pruning.images import dataset
from edgeprune.pruning.network import load_network
from edgeprune.pruning.options import NetworkSource

EXAMPLE = ROOT / "examples" / "detector.py"
ARCH = ("--arch", f"{EXAMPLE}:network")
MINE = """
import sys
sys.path.insert(0, {folder!r})
import detector

def scenes(split):
    return detector.scenes(split, 32)

def lossless(split):
    given = scenes(split)
    del given["loss"]
    return given

def broken(split):
    def measure(outputs, targets):
        return outputs.mean()
    return scenes(split) | {{"metric": measure}}
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "detector", make) / "out"


@pytest.fixture(scope="module")
def mine(exported: Path) -> Path:
    return exported.parent / "mine.py"


def make(folder: Path) -> None:
    """`prune` with fine-tuning, then `export`, of a network that was trained for an epoch."""
    mine = folder / "mine.py"
    mine.write_text(MINE.format(folder=str(EXAMPLE.parent)))
    data = ("--data", f"{mine}:scenes", "--learning-rate", "0.02", "--quiet")
    trained, pruned, out = (mine.parent / name for name in ("trained", "pruned", "out"))
    assert main(["train", *ARCH, *data, "--epochs", "1", "-o", str(trained)]) == 0
    method = ("--method", "fpgm", "--rate", "0.4", "--finetune-epochs", "1")
    assert main(["prune", str(trained), *ARCH, *data, *method, "-o", str(pruned)]) == 0
    report = ("--data", f"{mine}:scenes", "--as-planned", "--quiet")
    assert main(["export", str(pruned), *ARCH, *report, "-o", str(out)]) == 0


def test_the_manifest_tells_the_metric(exported: Path) -> None:
    manifest = open_bundle(exported).manifest
    accuracy = manifest.accuracy
    assert accuracy is not None
    assert (accuracy.metric, accuracy.higher_is_better, accuracy.n, accuracy.data) == ("mAP50", True, 32, "mine.py")
    assert accuracy.metrics["mAP50"].pruned == accuracy.pruned
    assert manifest.num_classes == 0  # nothing in the network tells it
    log = [json.loads(line) for line in (exported.parent / "trained" / "log.jsonl").read_text().splitlines()]
    assert log[0]["accuracy"] is None
    assert log[0]["test_accuracy"] >= 0


@pytest.mark.parametrize("model", ["out", "out/dense.onnx", "pruned"])
def test_eval_measures_files_and_bundles_alike(mine: Path, exported: Path, model: str, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    arch = ARCH if model == "pruned" else ()
    data = ("--data", f"{mine}:scenes", "--json", str(told))
    assert main(["eval", str(mine.parent / model), *arch, *data, "--quiet"]) == 0
    found, accuracy = json.loads(told.read_text()), open_bundle(exported).manifest.accuracy
    assert sorted(found) == ["higher_is_better", "loss", "metric", "metrics", "n"]
    assert accuracy is not None
    expected = accuracy.dense if model.endswith("dense.onnx") else accuracy.pruned
    assert found["metrics"]["mAP50"] == pytest.approx(expected, abs=1e-3)


def test_the_report_tells_it_too(exported: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(exported, tmp_path / "out")
    assert main(["report", str(copied), "--quiet"]) == 0
    page = (copied / "report.md").read_text()
    assert "mAP50 goes from" in page
    assert "Top-1" not in page


def test_gates_are_in_the_unit_of_the_metric(mine: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, data = mine.parent / "pruned", ("--data", f"{mine}:scenes", "--quiet")
    gate = ("--max-drop", "-2", "-o", str(mine.parent / "never"))  # it would have to rise by 2
    assert main(["export", str(bundle), *ARCH, *data, *gate]) == 3
    assert "mAP50 went from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "more", "expected"),
    [
        ("lossless", ("--finetune-epochs", "1"), "training needs a loss"),
        ("lossless", ("--method", "gconv", "--set", "importance=taylor"), "gradients needs a loss"),
        ("broken", (), "mine.py:broken, line 16: the metric raised AttributeError: 'tuple' object"),
    ],
)
def test_what_cannot_be_is_said_before_pruning(
    mine: Path, data: str, more: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("edgeprune.pruning.pruned.prune_network", pytest.fail)
    out = ("-o", str(mine.parent / "never"))
    assert main(["prune", *ARCH, "--random-init", "--data", f"{mine}:{data}", *more, *out, "--quiet"]) == 1
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.strip().splitlines()) == 1


def test_labels_do_not_fit_a_detector(mine: Path, tmp_path: Path) -> None:
    network = load_network(NetworkSource(f"{EXAMPLE}:network", random_init=True))
    labelled = tmp_path / "labelled.py"
    labelled.write_text("import torch\ndef load(split): return torch.zeros(4, 1, 64, 64), [0, 1, 2, 3]\n")
    assert dataset(f"{labelled}:load", "test", network).task is None  # nothing is known of its classes
    told = ("--data", f"{labelled}:load", "-o", str(mine.parent / "never"), "--quiet")
    assert main(["prune", *ARCH, "--random-init", *told]) == 1


def test_torchvision_detector_is_pruned_without_what_filters_boxes() -> None:
    source = NetworkSource(f"{EXAMPLE}:ssdlite", random_init=True, num_classes=5)
    network = load_network(source)
    assert network.num_classes == 5
    with torch.no_grad():
        outputs = network.model(network.example_input(1))
    assert {name: tuple(value.shape[1:]) for name, value in outputs.items()} == {
        "bbox_regression": (3234, 4), "cls_logits": (3234, 5),
    }  # fmt: skip
    with pytest.raises(InputError, match="takes a list of images"):
        load_network(NetworkSource("torchvision:ssdlite320_mobilenet_v3_large", random_init=True))
