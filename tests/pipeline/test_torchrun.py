"""The command line under torchrun: two processes write what one does, and a run that loses one goes on later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgeprune.bundles.bundle import open_bundle

TOY = '''
"""Images of three classes, and a network that ends the process of rank DIES_AS in the training batch DIES_IN."""
import os, signal
import torch
from torch import nn

INPUT_SHAPE = (3, 16, 16)

def load(split):
    count = 45 if split == "train" else 12
    images = torch.randint(0, 120, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    labels = torch.arange(count) % 3
    images[torch.arange(count), labels] += 120
    return images, labels

class Dies(nn.Identity):
    batches = 0

    def forward(self, x):
        self.batches += self.training
        if os.environ.get("DIES_AS") == os.environ.get("RANK") and self.batches == int(os.environ.get("DIES_IN", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        return x

def network(num_classes=3):
    conv = (nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2))
    return nn.Sequential(Dies(), *conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
'''
BATCHES = 3
"""An epoch, of 16 images."""

TRAIN = (
    *("train", "--arch", "toy.py:network", "--data", "toy.py:load", "--epochs", 3, "--batch-size", 16),
    *("--precision", "fp32", "--tickets", "1,3"),
)


def on_two_processes(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`edgeprune` with these arguments, started by torchrun in a folder."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return subprocess.run(
        [*torchrun, "-m", "edgeprune", *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a run of three epochs on two processes in `out`, and what it said."""
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "toy.py").write_text(TOY)
    done = on_two_processes(folder, *TRAIN, "-o", "out")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


def test_two_processes_leave_and_say_what_one_does(whole: tuple[Path, str]) -> None:
    folder, said = whole
    bundle = open_bundle(folder / "out")
    assert bundle.faults() == []
    assert set(bundle.manifest.files) == {
        "dense.safetensors", "log.jsonl", "tickets/epoch_1.pt", "tickets/epoch_3.pt",
    }  # fmt: skip
    assert {path.name for path in folder.iterdir()} == {"toy.py", "out"}
    for text in ("training on 45 images in fp32, 3 epochs on 2 processes", "epoch 3/3: loss", "Top-1"):
        assert said.count(text) == 1
    log = [json.loads(line) for line in (folder / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [1, 2, 3]
    assert log[-1]["test_accuracy"] == bundle.manifest.accuracy.dense  # type: ignore[union-attr]


def test_a_run_that_loses_a_process_ends_and_is_resumed(whole: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    died = on_two_processes(tmp_path, *TRAIN, "-o", "out", DIES_AS="1", DIES_IN=str(2 * BATCHES + 2))
    assert died.returncode != 0
    assert "after epoch 2 of 3; the same command with --resume continues" in died.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"checkpoint.safetensors", "log.jsonl", "tickets"}
    resumed = on_two_processes(tmp_path, *TRAIN, "-o", "out", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr.count("resumed after epoch 2 of 3") == 1
    weights, expected = (load_file(folder / "out" / "dense.safetensors") for folder in (tmp_path, whole[0]))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


def test_a_run_that_has_ended_is_told_again(whole: tuple[Path, str]) -> None:
    folder, _ = whole
    again = on_two_processes(folder, *TRAIN, "-o", "out", "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("finished already") == 1
    assert again.stdout.count("Top-1") == 1
