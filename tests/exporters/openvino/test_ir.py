"""OpenVINO's IR: the same numbers, the plan inside, and INT8 in every layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, helper
from runtimes.lite_models import fed, model, random

from edgeprune.exporters.conversions import CONVERSIONS, ConvertOptions, with_fixed_sizes
from edgeprune.runners.onnxruntime.runner import OrtRunner

pytest.importorskip("openvino", reason="openvino is not installed: pip install 'edgeprune[openvino]'")
OPENVINO = CONVERSIONS["openvino"]


def network() -> ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], "grouped", group=4, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"], "relu2"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3"], ["y"], "linear", transB=1),
    ]
    weights = {"w1": random(32, 3, 3, 3) / 5, "w2": random(32, 8, 3, 3, seed=1) / 8, "w3": random(10, 32, seed=2)}
    return with_fixed_sizes(model(nodes, {"x": (1, 3, 12, 10)}, weights))


def write(built: ModelProto, options: ConvertOptions, folder: Path) -> Path:
    for suffix, data in OPENVINO.convert(built, options).items():
        (folder / f"model{suffix}").write_bytes(data)
    return folder / "model.xml"


def test_a_file_computes_what_onnx_runtime_computes(tmp_path: Path) -> None:
    built = network()
    path = write(built, ConvertOptions("nchw"), tmp_path)
    with OrtRunner(built) as reference:
        wanted = reference.run(fed(built))["y"]
    np.testing.assert_allclose(OPENVINO.run(path, fed(built))["y"], wanted, atol=1e-4 * np.abs(wanted).max())


def test_every_layer_of_an_int8_file_runs_in_int8_convolutions_in_groups_too(tmp_path: Path) -> None:
    built = network()
    batches = tuple(fed(built, seed) for seed in range(8))
    path = write(built, ConvertOptions("nchw", precision="int8", batches=batches), tmp_path)
    ran = OPENVINO.run_all(path, batches[:2])
    assert ran.formats == {"first": "int8", "grouped": "int8", "linear": "int8"}
    with OrtRunner(built) as reference:
        wanted = reference.run(batches[0])["y"]
    assert np.abs(ran.outputs[0]["y"] - wanted).max() <= 0.05 * np.abs(wanted).max()
    kept = write(built, ConvertOptions("nchw", precision="int8", batches=batches, fp32_layers=("grouped",)), tmp_path)
    assert OPENVINO.run_all(kept, batches[:1]).formats["grouped"] == "fp32"


def test_the_same_network_gives_the_same_bytes_with_the_plan_in_them() -> None:
    options = ConvertOptions("nchw", metadata={"plan.json": b'{"layers": []}'})
    first, second = (OPENVINO.convert(network(), options) for _ in range(2))
    assert first == second
    assert b"plan_json" in first[".xml"]
