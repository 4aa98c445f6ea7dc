"""The target `openvino-native` on OpenVINO's own files."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import helper
from runtimes.small_onnx import difference, feeds_for, in_onnxruntime, normal, small_model

from edgeprune.errors import InputError
from edgeprune.exporters.conversions import CONVERSIONS, ConvertOptions
from edgeprune.runners.registry import open_runner
from edgeprune.runners.target import Source

pytest.importorskip("openvino")


def test_an_xml_file_runs_like_the_onnx_model_that_it_is_from(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="layer", group=4),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    model, path = small_model(nodes, (1, 8, 6, 7), {"w": normal(8, 2, 3, 3)}), tmp_path / "net.xml"
    for suffix, data in CONVERSIONS["openvino"].convert(model, ConvertOptions()).items():
        path.with_suffix(suffix).write_bytes(data)
    feeds = feeds_for(model)
    runner = open_runner("openvino-native", Source(path))
    assert (runner.input_names, runner.output_names) == (("x",), ("y",))
    assert difference(in_onnxruntime(model, feeds), runner.run(feeds)) <= 1e-6
    assert any(runner.original_node(time.name) for time in runner.profile_nodes(feeds, 2))
    with pytest.raises(InputError, match="has shape"):
        runner.run({"x": normal(1, 8, 6, 6)})
    runner.close()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.xml"
    path.write_text("no network")
    with pytest.raises(InputError, match=r"net.xml: OpenVINO cannot read it"):
        open_runner("openvino-native", Source(path))
