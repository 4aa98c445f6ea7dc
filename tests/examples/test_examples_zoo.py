"""The sweep over families of networks: six of them through the whole path, and what it keeps and tells."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import example_modules
import pytest
from places import BENCHMARKS

SIX = {
    "yolo-like": "gconv",
    "fpn": "fpgm",
    "unet": "fpgm",
    "torchvision:regnet_x_400mf": "fpgm",
    "torchvision:shufflenet_v2_x0_5": "fpgm",
    "torchvision:squeezenet1_1": "gconv",
}


@pytest.fixture(scope="module")
def zoo() -> Any:
    return example_modules.load(BENCHMARKS, "zoo")


@pytest.mark.parametrize("name", SIX)
def test_it_goes_the_whole_path(zoo: Any, name: str) -> None:
    found = zoo.one(name, SIX[name])
    assert found["reached"] == "profiled", found
    assert found["parity"] <= 1e-4
    if SIX[name] == "fpgm":
        assert found["left"] <= zoo.THINNED
    else:
        assert found["grouped"] > 0


def test_what_is_there_is_not_run_again_and_what_fails_is_told(
    zoo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        ran.append(command[command.index("--one") + 1])
        if ran[-1] == "fpn":
            return subprocess.CompletedProcess(command, 1, "", "Killed")
        told = {"reached": "profiled", "left": 0.5, "parity": 1e-6, "grouped": 0, "layers": 3}
        return subprocess.CompletedProcess(command, 0, f"noise\n{json.dumps(told)}\n", "")

    monkeypatch.setattr(zoo.subprocess, "run", run)
    first = zoo.sweep(["unet", "fpn"], ["fpgm"], tmp_path)
    assert zoo.sweep(["unet", "fpn"], ["fpgm"], tmp_path) == first
    assert ran == ["unet", "fpn"]
    assert first[1]["traceback"] == "Killed"
    assert zoo.summary(first) == [
        "fpgm: 1 of 2 all the way, 1 without a traceback, 1 with at most 80% of their MACs",
    ]
    assert "| unet | fpgm | profiled | 0.50 |" in zoo.line(first[0])
