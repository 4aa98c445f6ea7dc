"""Small ONNX models for tests of exporters, and how far a runtime's outputs are from ONNX Runtime's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeprune.exporters.ncnn.network import ncnn_network
from edgeprune.exporters.ncnn.runtime import run_file

Arrays = Mapping[str, np.ndarray]


def small_model(
    nodes: Sequence[NodeProto],
    shape: Sequence[int],
    constants: Arrays | None = None,
    *,
    outputs: Sequence[str] = ("y",),
    opset: int = 20,
    more_inputs: Mapping[str, Sequence[int]] | None = None,
) -> ModelProto:
    """A model from `x` of this shape (and others by name) to its outputs, of whatever shapes these have."""
    inputs = {"x": shape, **(more_inputs or {})}
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def in_onnxruntime(model: ModelProto, feeds: Arrays) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def feeds_for(model: ModelProto, seed: int = 1) -> dict[str, np.ndarray]:
    return {
        value.name: normal(*(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim), seed=seed + place)
        for place, value in enumerate(model.graph.input)
    }


def difference(expected: Arrays, got: Mapping[str, Any]) -> float:
    """The largest, over the range of the output that it is in; infinite where shapes or names differ."""
    if expected.keys() != got.keys():
        return float("inf")
    worst = 0.0
    for name, values in expected.items():
        if got[name].shape != values.shape:
            return float("inf")
        distance = float(np.abs(values.astype(np.float64) - got[name]).max(initial=0.0))
        worst = max(worst, distance / max(float(np.abs(values).max(initial=0.0)), 1e-3))
    return worst if np.isfinite(worst) else float("inf")


def ncnn_difference(model: ModelProto, folder: Path, feeds: Arrays | None = None) -> float:
    """How far ncnn is from ONNX Runtime on this model."""
    network = ncnn_network(model)
    path = folder / "model.param"
    path.write_text(network.param())
    path.with_suffix(".bin").write_bytes(network.weights())
    values = feeds or feeds_for(model)
    return difference(in_onnxruntime(model, values), run_file(path, values))
