"""An ONNX file as the thing to prune, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.cli import main
from edgeprune.onnx_files.model import load_model

DATA = """
import torch

def load(split):
    images = torch.rand(12, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    return images, torch.arange(12) % 10
"""


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--quiet"])


def network() -> ModelProto:
    """stem -> relu -> conv (+ skip) -> relu -> pool -> linear; the batch is fixed at 1 and no name is edgeprune's."""
    random = np.random.default_rng(0)
    shapes = {"stem.w": (16, 3, 3, 3), "mid.w": (16, 16, 3, 3), "mid.b": (16,), "out.w": (10, 16), "sizes": (2,)}
    tensors = [
        numpy_helper.from_array((random.normal(size=shape) / 4).astype(np.float32), name)
        for name, shape in shapes.items()
        if name != "sizes"
    ]
    tensors.append(numpy_helper.from_array(np.array([1, 16], np.int64), "sizes"))
    pads = [1, 1, 1, 1]
    nodes = [
        helper.make_node("Conv", ["pixels", "stem.w"], ["s"], "stem", pads=pads),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("Conv", ["r", "mid.w", "mid.b"], ["m"], "mid", pads=pads),
        helper.make_node("Add", ["m", "r"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["p"]),
        helper.make_node("Reshape", ["p", "sizes"], ["f"]),
        helper.make_node("Gemm", ["f", "out.w"], ["logits"], "head", transB=1),
    ]
    image = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, 12, 12])
    scores = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])
    graph = helper.make_graph(nodes, "net", [image], [scores], tensors)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "mine.onnx"
    onnx.save(network(), path)
    return path


@pytest.fixture(scope="module")
def exported(file: Path) -> Bundle:
    out = file.parent / "out"
    assert run("export", file, "--method", "fpgm", "--rate", 0.25, "--as-planned", "-o", out) == 0
    return open_bundle(out)


def test_export_of_a_file(file: Path, exported: Bundle) -> None:
    assert exported.manifest.arch == "onnx:mine.onnx"
    assert exported.manifest.parity is not None
    assert exported.manifest.parity.passed
    assert exported.manifest.macs is not None
    assert exported.manifest.macs.pruned < exported.manifest.macs.dense
    pruned = load_model(exported.path("model.onnx"))
    assert [value.name for value in pruned.graph.input] == ["pixels"]
    assert [value.name for value in pruned.graph.output] == ["logits"]
    assert {"stem", "mid", "head"} <= {node.name for node in pruned.graph.node}


def test_the_dense_baseline_computes_what_the_file_does(file: Path, exported: Bundle) -> None:
    images = np.random.default_rng(1).standard_normal((3, 3, 12, 12)).astype(np.float32)
    dense = onnxruntime.InferenceSession(exported.path("dense.onnx")).run(None, {"pixels": images})[0]
    source = onnxruntime.InferenceSession(file)
    wanted = np.concatenate([source.run(None, {"pixels": image[None]})[0] for image in images])
    np.testing.assert_allclose(dense, wanted, rtol=1e-4, atol=1e-5)


def test_a_pruned_bundle_goes_on_without_the_file(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.py"
    data.write_text(DATA)
    told = tmp_path / "told.json"
    assert run("prune", file, "--groups", 2, "--skip", "stem", "-o", tmp_path / "pruned", "--json", told) == 0
    layers = {layer["name"]: layer["groups"] for layer in json.loads(told.read_text())["layers"]}
    assert layers == {"stem": 1, "mid": 2, "head": 1}
    assert run("eval", tmp_path / "pruned", "--data", f"{data}:load") == 0
    tuned = ("--from", tmp_path / "pruned", "--data", f"{data}:load", "--epochs", 1, "--batch-size", 6)
    assert run("train", *tuned, "-o", tmp_path / "tuned") == 0
    assert open_bundle(tmp_path / "tuned").manifest.arch == "onnx:mine.onnx"
    assert run("export", tmp_path / "tuned", "--as-planned", "-o", tmp_path / "out") == 0


def test_a_file_is_trained_on_and_pruned_afterwards(file: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.py"
    data.write_text(DATA)
    trained = ("--from", file, "--data", f"{data}:load", "--epochs", 1, "--batch-size", 6)
    assert run("train", *trained, "-o", tmp_path / "trained") == 0
    assert run("prune", tmp_path / "trained", "--method", "fpgm", "-o", tmp_path / "pruned") == 0
    assert open_bundle(tmp_path / "pruned").manifest.arch == "onnx:mine.onnx"


@pytest.mark.parametrize(
    "flags", [("--arch", "resnet20"), ("--num-classes", "10"), ("--random-init",), ("--allow-partial",)]
)
def test_flags_that_have_no_place(
    file: Path, tmp_path: Path, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prune", file, *flags, "-o", tmp_path / "out") == 1
    assert flags[0] in capsys.readouterr().err
