"""ONNX files of other exporters through the verbs: open sizes, several inputs, numbers other than FP32."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.cli import main
from edgeprune.onnx_files.inputs import input_specs
from edgeprune.onnx_files.model import load_model
from edgeprune.runners.onnxruntime.runner import OrtRunner

QUICK = ["--iterations", "5", "--warmup", "1", "--time-limit", "1", "--no-fresh-process", "--quiet"]
Inputs = dict[str, tuple[int, list[Any]]]


def network(path: Path, inputs: Inputs | None = None, *, scaled: bool = False, kind: int = TensorProto.FLOAT) -> Path:
    """Two convolutions, the second in groups, global pooling and ten classes; perhaps times a second input."""
    rng = np.random.default_rng(0)
    shapes = {"w0": (16, 3, 3, 3), "w1": (16, 4, 3, 3), "fc": (16, 10)}
    dtype = np.float32 if kind == TensorProto.FLOAT else np.float16
    held = [numpy_helper.from_array(rng.standard_normal(s).astype(dtype), name) for name, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "w1"], ["c"], "grouped", group=4, pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "fc"], ["z" if scaled else "y"], "fc"),
    ]
    if scaled:
        nodes.append(helper.make_node("Mul", ["z", "scale"], ["y"], "scaled"))
    given = inputs or {"x": (kind, ["N", 3, 8, 8])}
    values = [helper.make_tensor_value_info(name, *value) for name, value in given.items()]
    output = helper.make_tensor_value_info("y", kind, ["N", 10])
    graph = helper.make_graph(nodes, "g", values, [output], held)
    path.write_bytes(
        helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    )
    return path


@pytest.fixture
def unsized(tmp_path: Path) -> Path:
    return network(tmp_path / "unsized.onnx", {"x": (TensorProto.FLOAT, [-1, 3, -1, -1])})


@pytest.fixture
def scaled(tmp_path: Path) -> Path:
    inputs = {"x": (TensorProto.FLOAT, ["N", 3, 8, 8]), "scale": (TensorProto.FLOAT, ["N", 1])}
    return network(tmp_path / "scaled.onnx", inputs, scaled=True)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main([*map(str, arguments), "--quiet"]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return run


def test_an_open_size_is_given_once_to_every_verb(unsized: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    size = ["--input-size", "8,8", "--quiet"]
    facts = tmp_path / "facts.json"
    assert main(["inspect", str(unsized), "--json", str(facts), "--quiet"]) == 0
    told = json.loads(facts.read_text())["facts"]["MACs (batch 1)"]
    assert told.startswith("not counted: input 'x' has dynamic axes beside the batch")
    assert "--input-size H,W" in told
    assert main(["inspect", str(unsized), "--json", str(facts), *size]) == 0
    assert json.loads(facts.read_text())["facts"]["MACs (batch 1)"] == f"{16 * 64 * (27 + 36) + 160:,}"
    assert "--input-size" in refused("split", unsized, "--devices", "2", "-o", tmp_path / "no")
    assert main(["split", str(unsized), "--devices", "2", "--force", "-o", str(tmp_path / "split"), *size]) == 0
    assert "--input-size H,W" in refused("tune", unsized, "-o", tmp_path / "no", "--no-cache")
    assert main(["tune", str(unsized), "-o", str(tmp_path / "tuned"), "--no-cache", *size]) == 0
    assert input_specs(load_model(tmp_path / "tuned" / "model.onnx"))[0].shape == (None, 3, 8, 8)
    images = np.random.default_rng(1).standard_normal((3, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", images)
    with OrtRunner(unsized) as runner:
        wanted = runner.run({"x": images})["y"]
    for model, flags in ((unsized, []), (unsized, size), (tmp_path / "split", []), (tmp_path / "tuned", size)):
        out = tmp_path / "y.npy"
        assert main(["run", str(model), "--input", str(tmp_path / "x.npy"), "--output", str(out), *flags]) == 0
        np.testing.assert_allclose(np.load(out), wanted, atol=1e-3 * np.abs(wanted).max())
    given = ("--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy")
    assert "split, for one size already" in refused("run", tmp_path / "split", *given, "--input-size", "8,8")
    assert "contradicts" in refused("tune", tmp_path / "tuned", "--input-size", "9,9", "--no-cache")


def test_several_inputs_are_given_by_name_or_in_one_file(
    scaled: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((2, 3, 8, 8)).astype(np.float32), "scale": np.array([[2], [3]], np.float32)}
    for name, array in feeds.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.savez(tmp_path / "all.npz", **feeds)
    with OrtRunner(scaled) as runner:
        wanted = runner.run(feeds)["y"]
    assert main(["split", str(scaled), "--devices", "2", "--force", "-o", str(tmp_path / "split"), "--quiet"]) == 0
    out, each = tmp_path / "y.npy", [f"--input={name}={tmp_path / name}.npy" for name in feeds]
    for model in (scaled, tmp_path / "split"):
        for given in (each, ["--input", str(tmp_path / "all.npz")]):
            assert main(["run", str(model), *given, "--output", str(out), "--quiet"]) == 0
            np.testing.assert_allclose(np.load(out), wanted, rtol=1e-4)
    assert "has 2 inputs; expected inputs x, scale; pass --input NAME=FILE" in refused(
        "run", scaled, "--input", tmp_path / "x.npy", "--output", out
    )
    assert "input 'scale' is missing" in refused("run", scaled, each[0], "--output", out)
    assert "input 'x' is given twice" in refused("run", scaled, each[0], each[0], "--output", out)
    assert "unknown input 'scales'" in refused(
        "run", scaled, each[0], f"--input=scales={tmp_path}/scale.npy", "--output", out
    )
    assert "would replace the input" in refused("run", scaled, *each, "--output", tmp_path / "x.npy")


def test_a_network_with_several_inputs_is_tuned_and_profiled(scaled: Path, tmp_path: Path) -> None:
    assert main(["tune", str(scaled), "-o", str(tmp_path / "tuned"), "--no-cache", "--quiet"]) == 0
    assert main(["profile", str(scaled), *QUICK]) == 0


def test_what_cannot_be_tuned_says_why(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = network(tmp_path / "net.onnx")
    assert "is not changed; pass -o OUT" in refused("tune", path)
    model = onnx.load(path)
    model.graph.node[2].attribute[0].i = 1
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones((16, 16, 3, 3), np.float32), "w1"))
    path.write_bytes(model.SerializeToString())
    assert "has no grouped layer; expected" in refused("tune", path, "-o", tmp_path / "out", "--no-cache")
    model.graph.node[2].attribute[0].i = 16
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones((16, 1, 3, 3), np.float32), "w1"))
    path.write_bytes(model.SerializeToString())
    assert "of 1 in groups they are depthwise" in refused("tune", path, "-o", tmp_path / "out", "--no-cache")
    assert not (tmp_path / "out").exists()


def test_a_first_axis_that_is_no_batch_is_profiled_without_advice_for_batches(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    model = onnx.load(network(tmp_path / "net.onnx"))
    model.graph.node[0].input[0] = "image"
    model.graph.node.insert(0, helper.make_node("Unsqueeze", ["x", "axis"], ["image"], "unsqueeze"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axis"))
    del model.graph.input[0].type.tensor_type.shape.dim[0]
    path, result = tmp_path / "one.onnx", tmp_path / "result.json"
    path.write_bytes(model.SerializeToString())
    assert main(["profile", str(path), "--json", str(result), *QUICK]) == 0
    (measured,) = json.loads(result.read_text())["results"]
    assert not [text for text in measured["advice"] if "batch" in text]
    assert "takes one sample" in refused("profile", path, "--batch-size", "4", *QUICK[:-1])


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_file_in_other_numbers_is_not_converted_once_more(
    precision: str, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeprune.errors import InputError
    from edgeprune.precision.quantization import require_full_precision, to_int8

    half = load_model(network(tmp_path / "half.onnx", kind=TensorProto.FLOAT16))
    with pytest.raises(
        InputError, match=f"h.onnx: is in FP16 already; expected a network in FP32.*{precision.upper()}"
    ):
        require_full_precision(half, precision, "h.onnx")
    model = load_model(network(tmp_path / "net.onnx"))
    require_full_precision(model, precision, "net.onnx")
    batches = [{"x": np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)}]
    eight = to_int8(model, batches)
    with pytest.raises(InputError, match=r"is quantised already: \d+ of its layers have 8-bit weights"):
        require_full_precision(eight, precision, "q.onnx")
    if precision == "int8":
        (tmp_path / "q.onnx").write_bytes(eight.SerializeToString())
        assert "quantised already" in refused("profile", tmp_path / "q.onnx", "--precision", "int8", *QUICK[:-1])
        assert main(["profile", str(tmp_path / "q.onnx"), *QUICK]) == 0


@pytest.mark.parametrize("last", [False, True])
def test_accuracy_of_a_file_with_an_open_size_or_channels_last(
    last: bool, tmp_path: Path, refused: Callable[..., str]
) -> None:
    pytest.importorskip("sklearn")
    path = network(tmp_path / "net.onnx", {"x": (TensorProto.FLOAT, ["N", 3, "h", "w"])})
    if last:
        model = onnx.load(path)
        model.graph.node[0].input[0] = "first"
        model.graph.node.insert(0, helper.make_node("Transpose", ["x"], ["first"], "turn", perm=[0, 3, 1, 2]))
        dims = model.graph.input[0].type.tensor_type.shape.dim
        for dim, size in zip(dims, ["N", "h", "w", 3], strict=True):
            dim.Clear()
            setattr(dim, "dim_param" if isinstance(size, str) else "dim_value", size)
        path.write_bytes(model.SerializeToString())
    size = "8,8,3" if last else "8,8"
    result = tmp_path / "result.json"
    flags = ["--data", "digits", "--limit", "20"]
    assert "--input-size" in refused("eval", path, *flags)
    assert main(["eval", str(path), *flags, "--input-size", size, "--json", str(result), "--quiet"]) == 0
    assert json.loads(result.read_text())["n"] == 20


def test_accuracy_of_what_takes_no_images_is_refused(scaled: Path, refused: Callable[..., str]) -> None:
    line = refused("eval", scaled, "--data", "digits")
    assert re.search(r"takes x float32 \(N, 3, 8, 8\), scale float32 \(N, 1\); expected one input with images", line)
