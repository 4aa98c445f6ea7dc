"""FP16 by converting the ONNX model: for runtimes that take each tensor's type from the model (strong typing)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from graphlib import TopologicalSorter

from onnx import GraphProto, ModelProto, TensorProto

from edgeprune.errors import InputError, first_line
from edgeprune.onnx_files.model import check_model


def to_half(model: ModelProto) -> ModelProto:
    """A copy that computes in FP16 and still takes and gives what the model does (FP32 with a Cast at either end).

    Operations that FP16 does not suit stay in FP32 between Casts, as ONNX Runtime's converter knows them; weights
    beyond FP16's largest number, 65504, become that number. Nodes keep their names. A model without FP32 weights or
    inputs comes back as it is. InputError if the converter does not take the model.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    values = (*copy.graph.input, *copy.graph.output)
    types = [value.type.tensor_type.elem_type for value in values]
    if TensorProto.FLOAT not in (*types, *(tensor.data_type for tensor in copy.graph.initializer)):
        return copy
    try:
        half = _converter()(copy, keep_io_types=True)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:  # it raises no type of its own
        raise InputError(
            f"cannot be converted to FP16: {first_line(error)}",
            where="ONNX model",
            expected="a model that ONNX Runtime's converter takes",
            remedy="choose another --precision",
        ) from error
    _sort(half.graph)
    return check_model(half, where="the model in FP16")


def _sort(graph: GraphProto) -> None:
    """Put each node behind those that it reads from: the converter appends its Casts at the end."""
    makers = {value: number for number, node in enumerate(graph.node) for value in node.output}
    reads = {number: [makers[v] for v in node.input if v in makers] for number, node in enumerate(graph.node)}
    nodes = [graph.node[number] for number in TopologicalSorter(reads).static_order()]
    ordered = GraphProto(node=nodes)
    graph.ClearField("node")
    graph.node.extend(ordered.node)


def _converter() -> Callable[..., ModelProto]:
    """ONNX Runtime's converter. Its package puts its own folder on the path, where `optimizer` and `profiler` would be
    found by those names: that is undone."""
    before = list(sys.path)
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16  # slow to import, and seldom needed
    finally:
        sys.path[:] = before
    converter: Callable[..., ModelProto] = convert_float_to_float16
    return converter
