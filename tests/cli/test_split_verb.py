"""`edgeprune split` from the command line to what `run` makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from edgeprune.bundles.bundle import open_bundle
from edgeprune.cli import main

DEVICES = """
[[device]]
name = "hub"
profile = "raspberry-pi-5"
threads = 1
[[device]]
name = "cam"
profile = "raspberry-pi-5"
threads = 1
[[link]]
bandwidth_mbit_per_s = 10000.0
round_trip_ms = 0.02
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    body = "a = Conv<pads=[1,1,1,1]>(x, w0)"
    weights = {"w0": (64, 3, 3, 3)}
    for layer in range(1, 5):
        body += f" c{layer} = Conv<group=4, pads=[1,1,1,1]>({'a' if layer == 1 else f'r{layer - 1}'}, w{layer})"
        body += f" r{layer} = Relu(c{layer})"
        weights[f"w{layer}"] = (64, 16, 3, 3)
    text = '<ir_version: 9, opset_import: ["" : 20]> g (float[batch,3,64,64] x) => (float[batch,c,h,w] y) '
    network = parser.parse_model(f"{text}{{ {body} y = GlobalAveragePool(r4) }}")
    random = np.random.default_rng(0)
    for name, shape in weights.items():
        values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        network.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    onnx.save(network, tmp_path / "model.onnx")
    (tmp_path / "devices.toml").write_text(DEVICES)
    return tmp_path / "model.onnx"


def split(model: Path, *flags: str) -> dict[str, object]:
    folder = model.parent
    given = ["split", str(model), "--devices", str(folder / "devices.toml"), "-o", str(folder / "parts")]
    assert main([*given, "--json", str(folder / "split.json"), *flags]) == 0
    told = json.loads((folder / "split.json").read_text())
    assert isinstance(told, dict)
    return told


def test_a_split_that_pays_is_written_told_and_run(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = split(model)
    shown = capsys.readouterr().out
    for words in (
        "hub",
        "cam",
        "peak memory bytes",
        "predicted latency",
        "hub alone",
        "times as fast",
        "critical path",
    ):
        assert words in shown
    assert told["predicted"]["speedup"] > 1.05  # type: ignore[index]
    bundle = open_bundle(model.parent / "parts")
    assert bundle.faults() == []
    assert {"annotated.onnx", "partition.json", "hub/stage_00.onnx"} <= set(bundle.manifest.files)
    np.save(model.parent / "x.npy", np.random.default_rng(1).standard_normal((2, 3, 64, 64)).astype(np.float32))
    for source in (model, bundle.folder):
        out = ["--output", str(model.parent / f"{source.stem}.npy"), "--quiet"]
        assert main(["run", str(source), "--input", str(model.parent / "x.npy"), *out]) == 0
    whole, parts = (np.load(model.parent / f"{name}.npy") for name in ("model", "parts"))
    assert np.abs(whole - parts).max() <= 1e-5 * np.ptp(whole)
    assert main(["report", str(bundle.folder), "--quiet"]) == 0
    assert "milliseconds, predicted" in (bundle.folder / "report.html").read_text()


def test_many_frames_are_told_beside_it(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = split(model, "--for", "throughput")
    throughput = told["predicted"]["throughput"]  # type: ignore[index]
    assert throughput["mode"] == "whole_frames"
    assert throughput["whole_frames_per_s"] >= throughput["pipeline_frames_per_s"]
    assert "frames/s, whole frames on hub, cam" in capsys.readouterr().out


def test_pixels_are_a_quarter_of_the_bytes(model: Path) -> None:
    moved = split(model, "--force")["predicted"]["bytes_per_inference"]  # type: ignore[index]
    fewer = split(model, "--force", "--overwrite", "--pixels", "imagenet")["predicted"]["bytes_per_inference"]  # type: ignore[index]
    assert moved - fewer == 3 * 3 * 64 * 64
    folder, parts = model.parent, str(model.parent / "parts")
    np.save(folder / "x.npy", np.random.default_rng(1).integers(0, 256, (1, 3, 64, 64), np.uint8))
    for source, executor in ((folder / "parts" / "model.onnx", "local"), (parts, "local"), (parts, "process")):
        given = ["run", str(source), "--input", str(folder / "x.npy"), "--output", str(folder / "y.npy")]
        assert main([*given, "--executor", executor]) == 0
        result = np.load(folder / "y.npy")
        np.save(folder / "whole.npy", result) if source != parts else None
        np.testing.assert_allclose(result, np.load(folder / "whole.npy"), rtol=1e-5, atol=1e-6)


def test_what_export_made_is_there_though_its_split_does_not_pay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "out"
    words = ["--arch", "resnet8-w32", "--random-init", "--input-size", "3,16,16", "--num-classes", "10", "--quiet"]
    words += ["--method", "gconv", "--groups", "4", "--devices", "2", "-o", str(out)]
    assert main(["export", *words]) == 3
    assert f"{out} holds the network in one piece, for `edgeprune split`" in capsys.readouterr().err
    bundle = open_bundle(out)
    bundle.require_sound()
    assert bundle.has("model.onnx")
    assert not bundle.has("partition.json")
    assert main(["split", str(out), "--devices", "2", "--force", "-o", str(tmp_path / "split"), "--quiet"]) == 0
