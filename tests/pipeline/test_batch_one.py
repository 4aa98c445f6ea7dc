"""Networks for a batch of 1, and files that are written for one."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from edgeprune.cli import main

SOURCE = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8 * 64, 5)
    def forward(self, x):
        x = torch.relu(self.b(torch.relu(self.a(x))))
        if self.how == "one":
            return self.c(x.view(1, -1))
        return self.c(x.view({"counted": lambda: len(x), "fixed": lambda: int(x.shape[0])}.get(self.how, lambda: x.shape[0])(), -1))
def one(): return Net("one")
def counted(): return Net("counted")
def fixed(): return Net("fixed")
def any_batch(): return Net("any")
"""
INPUT_SHAPE = (3, 8, 8)


def export(folder: Path, name: str, *flags: str) -> int:
    (folder / "net.py").write_text(SOURCE + f"INPUT_SHAPE = {INPUT_SHAPE}\n")
    how = ("--arch", f"{folder / 'net.py'}:{name}", "--random-init", "--method", "gconv", "--groups", "2")
    return main(["export", *how, "-o", str(folder / "out"), "--quiet", *flags])


@pytest.mark.parametrize("name", ["one", "any_batch"])
def test_static_batch_writes_a_file_for_one_image(name: str, tmp_path: Path) -> None:
    assert export(tmp_path, name, "--static-batch") == 0
    for file in ("model.onnx", "dense.onnx"):
        (value,) = onnx.load(tmp_path / "out" / file).graph.input
        assert [dim.dim_value for dim in value.type.tensor_type.shape.dim] == [1, 3, 8, 8]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["parity"]["passed"]
    assert main(["inspect", str(tmp_path / "out" / "model.onnx"), "--quiet"]) == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one", "runs on a batch of 1 alone: on 2 images"),
        ("counted", "its forward takes len() of a tensor"),
        ("fixed", "the exporter fixed the batch at 2"),
    ],
)
def test_a_batch_that_cannot_be_dynamic_is_refused_with_the_cause(
    name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(tmp_path, name) == 1
    told = capsys.readouterr().err
    assert words in told
    assert not (tmp_path / "out").exists()
