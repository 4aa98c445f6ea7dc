"""OpenVINO's IR of ONNX models: names, bytes, what it computes, and a permutation that OpenVINO turns around."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, helper
from runtimes.lite_models import fed, random
from runtimes.lite_models import model as lite_model
from runtimes.small_onnx import difference, feeds_for, in_onnxruntime, normal, small_model

from edgeprune.errors import InputError
from edgeprune.exporters.conversions import CONVERSIONS, ConvertOptions, with_fixed_sizes
from edgeprune.runners.onnxruntime.runner import OrtRunner

pytest.importorskip("openvino", reason="openvino is not installed: pip install 'edgeprune[openvino]'")

PLAIN = ConvertOptions("nchw")
OPENVINO = CONVERSIONS["openvino"]
IMAGE = (1, 8, 6, 7)
SHUFFLED = np.array([3, 0, 6, 1, 7, 2, 5, 4])
node = helper.make_node


def written(model: ModelProto, folder: Path, options: ConvertOptions = PLAIN) -> Path:
    for suffix, data in OPENVINO.convert(model, options).items():
        (folder / f"model{suffix}").write_bytes(data)
    return folder / f"model{OPENVINO.suffix}"


def permuted(groups: int) -> ModelProto:
    nodes = [node("Gather", ["x", "i"], ["g"], axis=1), node("Conv", ["g", "w"], ["y"], group=groups, pads=[1] * 4)]
    return small_model(nodes, IMAGE, {"i": SHUFFLED, "w": normal(8, 8 // groups, 3, 3)})


def test_the_ir_has_the_names_of_the_onnx_file_and_computes_the_same_in_float32(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], group=4, pads=[1] * 4),
        node("Relu", ["a"], ["first"]),
        node("GlobalAveragePool", ["a"], ["second"]),
    ]
    model = small_model(nodes, IMAGE, {"w": normal(8, 2, 3, 3)}, outputs=("second", "first"))
    path = written(model, tmp_path)
    feeds = feeds_for(model)
    got = OPENVINO.run(path, feeds)
    assert list(got) == ["second", "first"]
    assert difference(in_onnxruntime(model, feeds), got) <= 1e-6
    assert path.with_suffix(".bin").stat().st_size >= 8 * 2 * 9 * 4  # nothing was halved


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    convert, model = OPENVINO.convert, permuted(4)
    assert convert(model, ConvertOptions()) == convert(model, ConvertOptions())


def test_an_operation_that_openvino_does_not_know_is_refused() -> None:
    model = small_model([node("Unheard", ["x"], ["y"], domain="somebody")], IMAGE)
    with pytest.raises(InputError, match=r"ONNX model: OpenVINO cannot read it: .*Unheard"):
        OPENVINO.convert(model, ConvertOptions())


@pytest.mark.parametrize("groups", [1, 2])
def test_a_permutation_in_front_of_a_dense_convolution_is_turned_around(groups: int, tmp_path: Path) -> None:
    """If this fails for 1 group, OpenVINO was mended: the gates then have nothing to catch."""
    model = permuted(groups)
    feeds = feeds_for(model)
    off = difference(in_onnxruntime(model, feeds), OPENVINO.run(written(model, tmp_path), feeds))
    assert off > 0.1 if groups == 1 else off <= 1e-6


def test_the_plan_is_in_the_file() -> None:
    options = ConvertOptions("nchw", metadata={"plan.json": b'{"layers": []}'})
    assert b"plan_json" in OPENVINO.convert(permuted(4), options)[".xml"]


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
    return with_fixed_sizes(lite_model(nodes, {"x": (1, 3, 12, 10)}, weights))


def test_every_layer_of_an_int8_file_runs_in_int8_convolutions_in_groups_too(tmp_path: Path) -> None:
    built = network()
    batches = tuple(fed(built, seed) for seed in range(8))
    path = written(built, tmp_path, ConvertOptions("nchw", precision="int8", batches=batches))
    ran = OPENVINO.run_on(path, batches[:2])
    assert ran.formats == {"first": "int8", "grouped": "int8", "linear": "int8"}
    with OrtRunner(built) as reference:
        wanted = reference.run(batches[0])["y"]
    assert np.abs(ran.outputs[0]["y"] - wanted).max() <= 0.05 * np.abs(wanted).max()
    kept = written(built, tmp_path, ConvertOptions("nchw", precision="int8", batches=batches, fp32_layers=("grouped",)))
    assert OPENVINO.run_on(kept, batches[:1]).formats["grouped"] == "fp32"
