"""The benchmark of theoretical beside realistic speed-up, on a network of milliseconds."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import example_modules
import pytest
import small_bundle
from places import BENCHMARKS, DEVICE_PROFILES
from remembered_exports import remember_exports

from edgeprune.deployment.lower_bundle import LowerOptions
from edgeprune.devices.device_profile import load_profile
from edgeprune.errors import InputError
from edgeprune.onnx_files.model import check_model, load_model
from edgeprune.pipeline.tune import tune as tune_bundle
from edgeprune.profiling.estimating.estimates import estimate
from edgeprune.tuning import timer, tuner
from edgeprune.tuning.options import TuneOptions

SETTING = {"runtime": "ort", "threads": 1, "batch_size": 1}
KEYS = {
    "network", "method", "groups", "setting", "variant", "theoretical", "realistic", "interval", "efficiency",
    "bound_speedup", "realistic_over_bound", "dense_ms", "p50_ms", "rounds", "noise", "load", "macs",
    "executed_macs", "gathers", "parity", "forms", "same_as",
}  # fmt: skip


def load(name: str) -> Any:
    return example_modules.load(BENCHMARKS, name)


@pytest.fixture
def realistic(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark with measurements as short as they can be, without packages that may be installed or not."""
    return shortened(monkeypatch)


def shortened(monkeypatch: pytest.MonkeyPatch) -> Any:
    module, roofline = load("realistic"), load("roofline")
    monkeypatch.setattr(timer, "RUNS", 1)
    monkeypatch.setattr(timer, "REPEATS", 1)
    monkeypatch.setattr(tuner, "SECONDS_A_NETWORK", 0.001)
    remember_exports(monkeypatch)
    monkeypatch.setattr(roofline, "ELEMENTS", 2**16)
    monkeypatch.setattr(roofline, "SIZE", 7)
    monkeypatch.setattr(module.rival, "is_installed", lambda: False)
    return module


def run(module: Any, out: Path, *more: str) -> dict[str, Any]:
    asked = ("--networks", "resnet8", "--methods", "gconv", "--groups", "2", "--runtimes", "ort", "--rounds", "4")
    module.main([*asked, "--threads", "1", "--batch-sizes", "1", "-o", str(out), *more])
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """The folder of a run, its results, and what it printed."""
    out, printed = tmp_path_factory.mktemp("realistic"), io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(printed):
        results = run(shortened(monkeypatch), out)
    return out, results, printed.getvalue()


def test_rows_are_complete_and_agree_with_each_other(finished: tuple[Path, dict[str, Any], str]) -> None:
    _, results, _ = finished
    assert {row["variant"] for row in results["rows"]} == {"plain", "predicted", "tuned"}
    for row in results["rows"]:
        assert set(row) == KEYS
        assert row["setting"] == SETTING
        assert row["efficiency"] == pytest.approx(row["realistic"] / row["theoretical"])
        assert row["realistic_over_bound"] == pytest.approx(row["realistic"] / row["bound_speedup"])
        assert row["interval"][0] <= row["realistic"] <= row["interval"][1]
        assert row["theoretical"] > 1
        assert row["executed_macs"] >= row["macs"]
        assert 0 <= row["parity"] < 1e-4
        assert row["rounds"] == 4
    plain, *_ = results["rows"]
    assert plain["executed_macs"] == plain["macs"]
    assert set(plain["forms"]) == {"grouped"}


def test_the_same_is_shown_printed_and_drawn(finished: tuple[Path, dict[str, Any], str]) -> None:
    out, results, printed = finished
    assert set(results["left_out"]["resnet8-gconv-2"]) == {"torch-pruning", "torch-pruning aligned"}
    assert "pip install --no-deps torch-pruning" in printed
    table = (out / "results.md").read_text()
    assert len([line for line in table.splitlines() if line.startswith("| resnet8")]) == len(results["rows"])
    assert results["summary"]
    assert all(line in printed and line in table for line in results["summary"])
    assert (out / "results.svg").read_text().lstrip().startswith("<?xml")


def test_only_what_is_missing_is_measured(
    finished: tuple[Path, dict[str, Any], str], realistic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, first, _ = finished
    folder = shutil.copytree(out, tmp_path / "copy")
    with monkeypatch.context() as nothing:
        nothing.setattr(realistic, "CaseModels", None)  # no case may be worked on
        assert run(realistic, folder) == first
    more = run(realistic, folder, "--batch-sizes", "1,2")
    assert more["rows"][: len(first["rows"])] == first["rows"]
    assert {row["setting"]["batch_size"] for row in more["rows"]} == {1, 2}


def test_a_network_that_cannot_be_pruned_is_left_out_with_the_reason(realistic: Any, tmp_path: Path) -> None:
    results = run(realistic, tmp_path, "--networks", "resnet8-w3")
    assert results["rows"] == []
    assert "groups" in results["left_out"]["resnet8-w3-gconv-2"]["resnet8-w3-gconv-2"]


def test_cases_of_the_command_line(realistic: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = [case.name for case in realistic.cases(realistic.NETWORKS, ["gconv-3x3", "tmi-gkp-paper"], [2, 4])]
    assert len(set(found)) == len(found) == 2 * 2 + len(realistic.NETWORKS)
    assert "torchvision-resnet50-gconv-3x3-4" in found
    assert "resnet56-tmi-gkp-paper-8" in found
    with pytest.raises(SystemExit, match="2"):
        realistic.main(["--methods", "gconf", "-o", str(tmp_path)])
    assert "known are gconv" in capsys.readouterr().err


def test_layers_other_than_3x3_can_stay_dense(realistic: Any) -> None:
    (case,) = realistic.cases(["torchvision:resnet18"], ["gconv-3x3"], [2])
    network = realistic.load_network(realistic.NetworkSource("resnet8-b", random_init=True))
    grouped = case.prune(network).plan.grouped()
    assert grouped
    assert not any("shortcut" in name or "downsample" in name for name in grouped)


def test_the_bound_of_a_layer_is_its_arithmetic_or_its_memory() -> None:
    roofline = load("roofline")
    model = check_model(roofline._convolutions(32))
    macs = roofline.CHAIN * 9 * 32 * 32 * roofline.SIZE**2
    assert roofline.Roofline(1, macs_per_s=1e6, bytes_per_s=1e15).bound_ms(model, 1) == pytest.approx(macs / 1e3)
    moved = roofline.CHAIN * 4 * (2 * 32 * roofline.SIZE**2 + 9 * 32 * 32)
    assert roofline.Roofline(1, macs_per_s=1e15, bytes_per_s=1e6).bound_ms(model, 1) == pytest.approx(moved / 1e3)


def test_estimates_stand_beside_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = small_bundle.write_bundle(tmp_path / "small", profiled=False, lowered=small_bundle.lowering())
    core = min(os.sched_getaffinity(0))
    asked = ["--bundles", str(bundle), "--profile", str(DEVICE_PROFILES / "x86-avx512.toml"), "--cores", str(core)]
    rows = load("estimates").main([*asked, "--rounds", "4", "-o", str(tmp_path / "out")])
    assert [row.variant for row in rows] == ["dense", "as planned", "predicted forms"]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    for row, kept in zip(rows, results["rows"], strict=True):
        assert row.error == kept["error"] == pytest.approx(abs(row.estimate_ms / row.p50_ms - 1))
        assert row.undisturbed_error == pytest.approx(abs(row.estimate_ms / row.undisturbed_ms - 1))
        assert row.p50_ms > 0
    profile = load_profile("x86-avx512")
    models = [load_model(bundle / name) for name in ("dense.onnx", "plain.onnx", "model.onnx")]
    expected = [estimate(None, model, profile).pruned_ms for model in models]
    assert [row.estimate_ms for row in rows] == pytest.approx(expected, abs=1e-5)
    assert results["profile"]["name"] == "x86-avx512"
    table = (tmp_path / "out" / "results.md").read_text()
    assert len([line for line in table.splitlines() if line.startswith("| small")]) == 3
    assert all(line in table and line in capsys.readouterr().out for line in results["summary"][:1])


@pytest.mark.parametrize("block", [1, 16])
def test_torch_pruning_is_asked_until_the_multiply_adds_are_equal(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Torch-Pruning itself is replaced by what it does to multiply-adds: each of two channel counts scales them."""
    rival, realistic = load("torch_pruning_baseline"), load("realistic")
    network = realistic.load_network(realistic.NetworkSource("resnet8", random_init=True))
    dense = rival.trace(network.model, network.example_input(1)).graph.macs
    rates: list[float] = []

    def pruned(network: Any, rate: float, round_to: int | None) -> Any:
        rates.append(rate)
        return rival.Thinned(network.model, round(dense * (int(256 * (1 - rate)) // block * block / 256) ** 2))

    monkeypatch.setattr(rival, "_pruned", pruned)
    found = rival.thinned(network, dense // 3, block)
    assert found.macs / (dense // 3) == pytest.approx(1, abs=0.02 if block == 1 else 0.12)
    assert len(rates) <= rival.ATTEMPTS


def test_a_case_that_breaks_does_not_end_the_others(
    realistic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(realistic, "CaseModels", None)
    with pytest.raises(SystemExit, match="failed: resnet8-gconv-2"):
        run(realistic, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == []


def test_forms_of_a_layer_are_timed_alone_beside_their_times_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shortened(monkeypatch)
    bundle = small_bundle.write_bundle(tmp_path / "bundle")
    tune_bundle(bundle, LowerOptions(tune=TuneOptions()))
    module = load("layer_forms")
    module.main([str(bundle)])
    heads, _, row, *_ = capsys.readouterr().out.splitlines()
    cells = dict(enumerate(cell.strip() for cell in row.strip("|").split("|")))
    assert len(cells) == len(heads.strip("|").split("|"))
    assert cells[0] == small_bundle.MIDDLE
    assert {cells[4], cells[8]} <= {"grouped", "split", "dense"}
    assert all(float(cells[number]) > 0 for number in (1, 2, 3, 5, 6, 7, 9))
    assert float(cells[3]) <= float(cells[2])
    with pytest.raises(InputError, match="unknown grouped layer 'nothing'"):
        module.main([str(bundle), "nothing"])
