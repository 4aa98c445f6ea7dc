"""OpenVINO's IR of ONNX models: names, bytes, what it computes, and a permutation that OpenVINO turns around."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, helper
from runtimes.small_onnx import difference, feeds_for, in_onnxruntime, normal, small_model

from edgeprune.errors import InputError
from edgeprune.exporters.conversions import CONVERSIONS, ConvertOptions, conversion_named

pytest.importorskip("openvino")

IMAGE = (1, 8, 6, 7)
SHUFFLED = np.array([3, 0, 6, 1, 7, 2, 5, 4])
node = helper.make_node


def written(model: ModelProto, folder: Path) -> Path:
    conversion = conversion_named("openvino")
    for suffix, data in conversion.convert(model, ConvertOptions()).items():
        (folder / f"model{suffix}").write_bytes(data)
    return folder / f"model{conversion.suffix}"


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
    got = CONVERSIONS["openvino"].run(path, feeds)
    assert list(got) == ["second", "first"]
    assert difference(in_onnxruntime(model, feeds), got) <= 1e-6
    assert path.with_suffix(".bin").stat().st_size >= 8 * 2 * 9 * 4  # nothing was halved


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    convert, model = CONVERSIONS["openvino"].convert, permuted(4)
    assert convert(model, ConvertOptions()) == convert(model, ConvertOptions())


def test_an_operation_that_openvino_does_not_know_is_refused() -> None:
    model = small_model([node("Unheard", ["x"], ["y"], domain="somebody")], IMAGE)
    with pytest.raises(InputError, match=r"ONNX model: OpenVINO cannot read it: .*Unheard"):
        CONVERSIONS["openvino"].convert(model, ConvertOptions())


@pytest.mark.parametrize("groups", [1, 2])
def test_a_permutation_in_front_of_a_dense_convolution_is_turned_around(groups: int, tmp_path: Path) -> None:
    """If this fails for 1 group, OpenVINO was mended: the gates then have nothing to catch."""
    model = permuted(groups)
    feeds = feeds_for(model)
    off = difference(in_onnxruntime(model, feeds), CONVERSIONS["openvino"].run(written(model, tmp_path), feeds))
    assert off > 0.1 if groups == 1 else off <= 1e-6
