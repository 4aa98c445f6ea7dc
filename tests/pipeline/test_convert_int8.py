"""`edgeprune convert --precision int8` and `export --to-precision int8`: calibrated, compared, read back, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import small_bundle as small
from onnx import helper, numpy_helper
from remembered_exports import remember_exports
from runtimes.lite_models import model, random

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.names import PROFILE
from edgeprune.cli import main
from edgeprune.errors import InputError
from edgeprune.exporters.conversions import CONVERSIONS, conversion_named
from edgeprune.exporters.tflite.layer_formats import layer_formats
from edgeprune.exporters.tflite.record import read_metadata
from edgeprune.onnx_files.model import load_model, save_onnx
from edgeprune.precision import formats
from edgeprune.precision.quantization import to_int8
from edgeprune.profiling.precise_models import is_converted

QUICK = ("--warmup", "1", "--iterations", "3", "--interval", "0", "--no-fresh-process", "--quiet")


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--quiet"])


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "inputs.npy"
    np.save(path, np.random.default_rng(0).standard_normal((12, 3, small.SIZE, small.SIZE)).astype(np.float32))
    return path


@pytest.mark.parametrize(("to", "suffix"), [("tflite", ".tflite"), ("openvino", ".xml")])
def test_a_bundle_s_network_is_written_in_int8_and_says_what_it_costs(
    to: str, suffix: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not CONVERSIONS[to].module or to == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed: pip install 'edgeprune[openvino]'")
    bundle = small.write_bundle(tmp_path / "bundle", profiled=False)
    out, told = tmp_path / f"model{suffix}", tmp_path / "told.json"
    how = ("--precision", "int8", "--data", inputs, "--json", told)
    assert run("convert", bundle, "--to", to, *how, "-o", out) == 0
    result = json.loads(told.read_bytes())
    assert (result["precision"], result["tolerance"]) == ("int8", 0.15)
    assert 1e-4 < result["max_rel"] <= 0.15
    compared = result["compared"]
    assert (compared["n"], compared["data"], compared["weight_bits"]) == (12, "inputs.npy", 8)
    assert set(compared["formats"].values()) == {"int8"}
    assert len(compared["formats"]) == 4
    shown = capsys.readouterr().out
    assert "weights of 8 bits" in shown
    assert "4 of 4, told by the runtime" in shown
    if to == "tflite":
        assert read_metadata(out.read_bytes())["plan.json"] == (bundle / "plan.json").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "int8"], "no inputs to calibrate with; pass --data"),
        (["--precision", "int8", "--data", "inputs.npy", "--calibration-images", "0"], "out of range"),
        (["--precision", "int8", "--data", "inputs.npy", "--weight-bits", "7"], "would only cost accuracy"),
        (["--data", "inputs.npy"], "--data is for other precisions"),
        (["--precision", "int8", "--data", "inputs.npy", "--max-drop", "-1"], "--max-drop -1 is out of range"),
        (["--precision", "int8", "--data", "inputs.npy", "--max-drop", "1"], "--max-drop needs labels"),
        (["--max-drop", "1"], "--max-drop says what INT8 may cost"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str],
    words: str,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small.write_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run("convert", "model.onnx", "--to", "tflite", "-o", "out.tflite", *arguments) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out.tflite").exists()


def test_a_quantised_file_is_not_quantised_again(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.write_models(tmp_path)
    batch = {"input": np.load(inputs)}
    save_onnx(to_int8(load_model(tmp_path / "model.onnx"), [batch]), tmp_path / "eight.onnx")
    how = ("--to", "tflite", "-o", tmp_path / "out.tflite")
    assert run("convert", tmp_path / "eight.onnx", *how, "--precision", "int8", "--data", inputs) == 1
    assert "is quantised already: 4 of its layers have 8-bit weights" in capsys.readouterr().err
    assert run("convert", tmp_path / "eight.onnx", *how) == 1
    assert "name the file that it was quantised from, with --precision int8" in capsys.readouterr().err


def test_a_network_that_gives_no_numbers_is_at_fault_itself(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.write_models(tmp_path)
    broken = load_model(tmp_path / "model.onnx")
    weight = np.full_like(numpy_helper.to_array(broken.graph.initializer[0]), np.nan)
    broken.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, broken.graph.initializer[0].name))
    save_onnx(broken, tmp_path / "model.onnx")
    for to, suffix in (("tflite", ".tflite"), ("onnx", ".int8.onnx")):
        out = tmp_path / f"out{suffix}"
        how = ("--to", to, "--precision", "int8", "--data", inputs, "-o", out)
        assert run("convert", tmp_path / "model.onnx", *how) == 1
        assert "gives NaN or infinite values as 'output', in ONNX Runtime itself" in capsys.readouterr().err
        assert not out.exists()


def test_a_quantised_file_may_differ_as_such_files_do(inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: pip install 'edgeprune[openvino]'")
    small.write_models(tmp_path)
    save_onnx(to_int8(load_model(tmp_path / "model.onnx"), [{"input": np.load(inputs)}]), tmp_path / "eight.onnx")
    told = tmp_path / "told.json"
    how = ("--to", "openvino", "-o", tmp_path / "eight.xml", "--json", told)
    assert run("convert", tmp_path / "eight.onnx", *how) == 0
    assert json.loads(told.read_bytes())["tolerance"] == 0.15


def test_inputs_that_look_like_pixels_are_told(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small.write_models(tmp_path)
    np.save(inputs, np.random.default_rng(0).integers(0, 256, (12, 3, small.SIZE, small.SIZE)).astype(np.float32))
    how = ("--to", "tflite", "--precision", "int8", "--data", inputs)
    assert run("convert", tmp_path / "model.onnx", *how, "-o", tmp_path / "out.tflite") == 0
    assert "from 0 to 255, like pixels that nobody normalised" in " ".join(capsys.readouterr().out.split())


def test_outside_the_tolerance_nothing_is_written(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small.write_models(tmp_path)
    monkeypatch.setitem(formats._TOLERANCES, "int8", 1e-9)
    how = ("--to", "tflite", "--precision", "int8", "--data", inputs)
    assert run("convert", tmp_path / "model.onnx", *how, "-o", tmp_path / "out.tflite") == 3
    assert "in int8 on tflite differs by" in capsys.readouterr().err
    assert not (tmp_path / "out.tflite").exists()


def test_a_missing_quantiser_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeprune.exporters.conversions.is_importable", lambda module: module != "ai_edge_quantizer")
    with pytest.raises(InputError, match=r"needs ai_edge_quantizer; pip install 'edgeprune\[litert-int8\]'"):
        conversion_named("tflite", "int8")
    with pytest.raises(InputError, match=r"are not written in fp16; expected --precision fp32 or int8"):
        conversion_named("tflite", "fp16")


def test_export_writes_both_networks(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    remember_exports(monkeypatch)
    out = tmp_path / "out"
    network = ("--arch", "resnet8", "--random-init", "--method", "gconv", "--groups", 2, "--num-classes", 10)
    how = ("--to", "tflite", "--to-precision", "int8", "--data", "digits")
    assert run("export", *network, *how, "-o", out) == 0
    bundle = open_bundle(out)
    assert bundle.faults() == []
    assert {"model.int8.tflite", "dense.int8.tflite"} <= set(bundle.manifest.files)
    assert set(layer_formats(bundle.path("model.int8.tflite").read_bytes()).values()) == {"int8"}
    assert is_converted("model.int8.tflite")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "tflite", "--to-precision", "int8"], "no inputs to calibrate with"),
        (["--to-precision", "int8"], "--to-precision int8 is for --to"),
    ],
)
def test_export_refuses_int8_without_what_it_needs(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", "--arch", "resnet8", "--random-init", *arguments, "-o", tmp_path / "out") == 1
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_profile_runs_int8_in_litert_as_planned_with_a_file_for_each_batch_size(inputs: Path, tmp_path: Path) -> None:
    bundle = small.write_bundle(tmp_path / "bundle", profiled=False, lowered=small.lowering())
    how = ("--target", "cpu,litert", "--precision", "int8", "--data", inputs, "--batch-size", "1,4", "--no-per-layer")
    assert main(list(map(str, ("profile", bundle, *how, *QUICK)))) == 0
    opened = open_bundle(bundle)
    names = {name for name in opened.manifest.files if is_converted(name)}
    assert {"model.int8.tflite", "model.int8.batch-4.tflite", "dense.int8.tflite", "model.int8.onnx"} <= names
    read = msgspec.json.decode((bundle / PROFILE).read_bytes())
    assert [(result["target"], result["batch_size"]) for result in read["results"]] == [
        ("cpu", 1), ("cpu", 4), ("litert", 1), ("litert", 4),
    ]  # fmt: skip
    told: dict[tuple[str, str], Any] = {(r["target"], r["network"]): r for r in read["precisions"]}
    assert told["litert", "pruned"]["file"] == "model.int8.tflite"
    for record in told.values():
        assert record["passed"]
        assert set(record["formats"].values()) == {"int8"}
        assert record["weight_bits"] == 8
    assert f"{small.MIDDLE}" in told["litert", "pruned"]["formats"]


def test_layers_that_a_runtime_ran_in_another_format_are_named() -> None:
    record = formats.PrecisionRecord(
        "cpu", "pruned", "int8", 0.01, 0.15, True, 99.0, 8, "digits", formats={"a": "int8", "b": "fp32", "c": "fp32"}
    )
    assert record.other_layers == ("b", "c")
    assert record.remarks() == ("cpu, pruned: 2 of 3 layers ran in fp32, not in int8: b, c",)


FACTORY = """
import numpy as np, onnxruntime
def factory(split):
    images = np.random.default_rng(split == "test").standard_normal((96, 3, 12, 10)).astype(np.float32)
    session = onnxruntime.InferenceSession({path!r})
    return images, np.concatenate([session.run(None, {{"x": image[None]}})[0] for image in images]).argmax(1)
"""


def with_an_outlier() -> Any:
    """A channel between two convolutions that is a thousand times larger than the others: one scale does not do for
    it."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"], "relu2"),
        helper.make_node("Conv", ["d", "w3"], ["e"], "third", group=4, pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"], "pool"),
        helper.make_node("Flatten", ["f"], ["g"], "flatten"),
        helper.make_node("Gemm", ["g", "w4"], ["y"], "linear", transB=1),
    ]
    weights = {"w1": random(16, 3, 3, 3) / 5, "w2": random(16, 16, 3, 3, seed=1) / 12,
               "w3": random(16, 4, 3, 3, seed=2) / 6, "w4": random(10, 16, seed=3)}  # fmt: skip
    weights["w1"][0] *= 1000
    weights["w2"][:, 0] /= 1000
    return model(nodes, {"x": ("n", 3, 12, 10)}, weights)


@pytest.mark.parametrize(("to", "suffix"), [("onnx", ".onnx"), ("tflite", ".tflite")])
def test_layers_that_cost_too_much_stay_in_fp32(
    to: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    source, data, told = tmp_path / "source.onnx", tmp_path / "data.py", tmp_path / "told.json"
    save_onnx(with_an_outlier(), source)
    data.write_text(FACTORY.format(path=str(source)))
    monkeypatch.setitem(formats._TOLERANCES, "int8", 10)
    how = ("--to", to, "--precision", "int8", "--data", f"{data}:factory", "-o", tmp_path / f"out{suffix}")
    assert run("convert", source, *how, "--json", told) == 0
    whole = json.loads(told.read_bytes())["compared"]
    assert whole["top1_fp32"] == 100
    assert whole["top1"] < 90
    assert run("convert", source, *how, "--json", told, "--max-drop", "5") == 0
    mixed = json.loads(told.read_bytes())["compared"]
    assert mixed["top1"] >= 95
    kept = [name for name, kind in mixed["formats"].items() if kind != "int8"]
    assert 1 <= len(kept) < 4
    assert f"{len(kept)} of 4 layers ran in fp32, not in int8: {', '.join(kept)}" in " ".join(
        capsys.readouterr().out.replace("│", " ").split()
    )


def test_an_onnx_file_is_written_for_other_precisions_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small.write_models(tmp_path)
    assert run("convert", tmp_path / "model.onnx", "--to", "onnx", "-o", tmp_path / "out.onnx") == 1
    assert "are not written in fp32; expected --precision int8" in capsys.readouterr().err
