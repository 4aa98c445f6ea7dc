"""`edgeprune convert`, and `export --to`: files for other runtimes, held to ONNX Runtime, written whole or not at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
import small_bundle as small
from onnx import helper, numpy_helper
from remembered_exports import remember_exports
from runtimes.lite_models import model, random

from edgeprune.bundles.bundle import open_bundle
from edgeprune.cli import main
from edgeprune.deployment import converting
from edgeprune.deployment.converting import pruned_model
from edgeprune.errors import GateError, InputError
from edgeprune.exporters.conversions import CONVERSIONS, ConvertOptions, Ran, conversion_named, with_fixed_sizes
from edgeprune.exporters.tflite.interpreter import run_file
from edgeprune.exporters.tflite.record import file_record, read_metadata
from edgeprune.lowering.record import LoweringRecord
from edgeprune.onnx_files.model import load_model, save_onnx
from edgeprune.runners.onnxruntime.runner import OrtRunner


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--quiet"])


def test_a_bundle_s_network_is_converted_as_planned(tmp_path: Path) -> None:
    bundle = small.write_bundle(tmp_path / "bundle", profiled=False, lowered=small.lowering())
    out, told = tmp_path / "model.tflite", tmp_path / "told.json"
    assert run("convert", bundle, "--to", "tflite", "-o", out, "--json", told) == 0
    nodes = file_record(out.read_bytes()).nodes
    assert f"{small.MIDDLE}.input_gather" in nodes  # the lowered model is dense, and has none
    feeds = {"input": np.random.default_rng(0).standard_normal((1, 3, small.SIZE, small.SIZE)).astype(np.float32)}
    with OrtRunner(bundle / "plain.onnx") as reference:
        np.testing.assert_allclose(run_file(out, feeds)["output"], reference.run(feeds)["output"], rtol=1e-3, atol=1e-4)
    assert read_metadata(out.read_bytes())["plan.json"] == (bundle / "plan.json").read_bytes()
    result = json.loads(told.read_bytes())
    assert result["bytes"] == out.stat().st_size
    assert result["notes"] == ["XNNPACK leaves 1 GATHER of 9 operators to plain loops, and runs 2 parts"]
    assert 0 <= result["max_rel"] <= result["tolerance"] == 1e-4


def test_the_dense_baseline_is_converted_where_it_is_asked_for(tmp_path: Path) -> None:
    bundle = small.write_bundle(tmp_path / "bundle", profiled=False)
    assert run("convert", bundle, "--to", "tflite", "--dense", "-o", tmp_path / "dense.tflite") == 0
    data = (tmp_path / "dense.tflite").read_bytes()
    assert f"{small.MIDDLE}.input_gather" not in file_record(data).nodes
    assert "plan.json" not in read_metadata(data)


def test_a_file_with_open_sizes_takes_an_input_size_and_a_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = model(
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv")], {"x": ("n", 3, "h", "w")}, {"w": random(4, 3, 3, 3)}
    )
    path, out = tmp_path / "open.onnx", tmp_path / "open.tflite"
    path.write_bytes(built.SerializeToString())
    assert run("convert", path, "--to", "tflite", "-o", out) == 1
    assert "pass --input-size H,W" in capsys.readouterr().err
    assert not out.exists()
    assert run("convert", path, "--to", "tflite", "-o", out, "--input-size", "9,8", "--io-layout", "nchw") == 0
    (port,) = file_record(out.read_bytes()).inputs
    assert (port.shape, port.order) == ((1, 3, 9, 8), (0, 1, 2, 3))
    assert "inputs and outputs in NCHW" in capsys.readouterr().out


def test_what_differs_from_onnx_runtime_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small.write_models(tmp_path)
    right = CONVERSIONS["tflite"]

    def run_wrong(path: Path, feeds: Sequence[Any]) -> Ran:
        outputs = ({name: output * 1.01 for name, output in right.run(path, one).items()} for one in feeds)
        return Ran(tuple(outputs), {})

    wrong = {**CONVERSIONS, "tflite": converting.replace(right, run_on=run_wrong)}
    monkeypatch.setattr("edgeprune.exporters.conversions.CONVERSIONS", wrong)
    assert run("convert", tmp_path / "model.onnx", "--to", "tflite", "-o", tmp_path / "out.tflite") == 3
    assert "parity failed: in LiteRT (TensorFlow Lite) the outputs differ" in capsys.readouterr().err
    assert not (tmp_path / "out.tflite").exists()


def test_no_number_is_no_parity(tmp_path: Path) -> None:
    small.write_models(tmp_path)

    def run_nan(path: Path, feeds: Sequence[Any]) -> Ran:
        return Ran(({"output": np.full((1, small.CLASSES), np.nan, np.float32)},), {})

    conversion = converting.replace(CONVERSIONS["tflite"], run_on=run_nan)
    with pytest.raises(GateError, match="by inf"):
        converting.converted(load_model(tmp_path / "model.onnx"), conversion, ConvertOptions())


def test_a_network_that_gives_no_numbers_is_at_fault_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small.write_models(tmp_path)
    model = load_model(tmp_path / "model.onnx")
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight.flat[0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, model.graph.initializer[0].name))
    save_onnx(model, tmp_path / "model.onnx")
    assert run("convert", tmp_path / "model.onnx", "--to", "tflite", "-o", tmp_path / "out.tflite") == 1
    assert "model.onnx: gives NaN or infinite values as 'output', in ONNX Runtime itself" in capsys.readouterr().err
    assert not (tmp_path / "out.tflite").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "tflight", "-o", "out.tflite"], "unknown format 'tflight'; expected one of "),
        (["--to", "tflite", "-o", "out.onnx"], "has another suffix; expected a file NAME.tflite"),
        (["--to", "tflite", "--dense", "-o", "out.tflite"], "an ONNX file has no dense baseline"),
        (["--to", "tflite", "-o", "model.onnx/out.tflite"], "cannot be written"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    small.write_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run("convert", "model.onnx", *arguments) == 1
    assert words in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "dense.onnx"}


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeprune.exporters.conversions.is_importable", lambda module: False)
    with pytest.raises(InputError, match=r"needs ai_edge_litert; pip install 'edgeprune\[litert\]'"):
        conversion_named("tflite")


def test_export_adds_the_files_to_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember_exports(monkeypatch)
    out = tmp_path / "out"
    assert run("export", "--arch", "resnet8", "--random-init", "--groups", 2, "--to", "tflite,openvino", "-o", out) == 0
    bundle = open_bundle(out)
    assert bundle.faults() == []
    assert {"model.tflite", "dense.tflite", "openvino/model.xml", "openvino/dense.bin"} <= set(bundle.manifest.files)
    planned = "plain.onnx" if bundle.has("plain.onnx") else "model.onnx"
    feeds = {"input": np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)}
    for name, source in (("model.tflite", planned), ("dense.tflite", "dense.onnx")):
        with OrtRunner(bundle.path(source)) as reference:
            wanted = reference.run(feeds)["output"]
        found = run_file(bundle.path(name), feeds)["output"]
        assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_export_refuses_an_unknown_format_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", "--arch", "resnet8", "--random-init", "--to", "tf", "-o", tmp_path / "out") == 1
    assert "unknown format 'tf'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_sizes_are_fixed_in_a_copy() -> None:
    built = model([helper.make_node("Relu", ["x"], ["y"])], {"x": ("n", 3, 4, 4)})
    fixed = with_fixed_sizes(built)
    shapes = [
        [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*fixed.graph.input, *fixed.graph.output)
    ]
    assert shapes == [[1, 3, 4, 4], [1, 3, 4, 4]]
    assert built.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"


def test_nothing_of_litert_is_loaded_before_it_is_used() -> None:
    import subprocess

    code = (
        "import sys; import edgeprune.exporters.conversions, edgeprune.runners.registry, edgeprune.pipeline.convert\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('ai_edge_litert', 'torch', 'tensorflow')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(("chosen_by", "target", "name"), [
    ("measured", "litert", "model.onnx"), ("measured", "cpu", "plain.onnx"), ("predicted", "litert", "plain.onnx"),
])  # fmt: skip
def test_forms_are_kept_for_the_runtime_that_they_were_measured_in(
    chosen_by: Literal["measured", "predicted"], target: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / "plain.onnx").touch()
    record = LoweringRecord(chosen_by, "a processor", 1, 1, "", (), target=target)
    (tmp_path / "lowering.json").write_bytes(msgspec.json.encode(record))
    assert pruned_model(tmp_path, CONVERSIONS["tflite"]) == name
