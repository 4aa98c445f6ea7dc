"""Small ONNX models, and what LiteRT gives for the files that are written from them, beside ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeprune.exporters.conversions import ConvertOptions, with_fixed_sizes
from edgeprune.exporters.tflite.interpreter import run_file
from edgeprune.exporters.tflite.writer import to_tflite
from edgeprune.io.arrays import Array, Feeds
from edgeprune.onnx_files.inputs import input_specs
from edgeprune.onnx_files.model import check_model
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner

Shape = Sequence[int | str]
TOLERANCE = 1e-5
"""On the largest difference over the output's range."""


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Shape],
    constants: Mapping[str, NDArray[np.generic]] | None = None,
    *,
    outputs: Sequence[str] = ("y",),
    opset: int = 20,
) -> ModelProto:
    """A checked model in FP32; the shapes of its outputs are left to be inferred."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in (constants or {}).items()],
    )
    return check_model(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)]))


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def fed(built: ModelProto, seed: int = 1) -> dict[str, Array]:
    """Random inputs for a model of fixed sizes."""
    rng = np.random.default_rng(seed)
    return {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in input_specs(built)}  # type: ignore[arg-type]


def in_litert(built: ModelProto, feeds: Feeds, options: ConvertOptions | None = None) -> dict[str, Array]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(to_tflite(built, options))
        found: dict[str, Array] = run_file(path, feeds)
        return found


def assert_same(built: ModelProto, options: ConvertOptions | None = None, *, tolerance: float = TOLERANCE) -> None:
    """The model's file computes in LiteRT what ONNX Runtime computes from the model."""
    fixed = with_fixed_sizes(built)
    feeds = fed(fixed)
    found = in_litert(fixed, feeds, options)
    with OrtRunner(fixed, RunOptions()) as runner:
        wanted = runner.run(feeds)
    assert found.keys() == wanted.keys()
    for name, reference in wanted.items():
        assert found[name].shape == reference.shape
        assert np.isfinite(reference).all()
        largest = float(np.max(np.abs(reference))) or 1.0
        assert float(np.max(np.abs(found[name] - reference))) <= tolerance * largest, name
