"""In which number format a .tflite file computes each layer, read from the types of its tensors."""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema

from edgeprune.exporters.tflite.record import file_record

LAYERS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"})
_FORMATS: dict[tuple[str, ...], str] = {("float32",): "fp32", ("int8",): "int8"}


def layer_formats(data: bytes) -> dict[str, str]:
    """ONNX node -> number format, of convolutions and linear layers: `int8` where input, weights and result have 8
    bits, `fp32` where all are float32, else their types, such as `float32*int8`. InputError as `file_record`."""
    nodes = file_record(data).nodes
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))
    graph, names = model.subgraphs[0], _names(schema.TensorType)
    found = {}
    for operator, node in zip(graph.operators, nodes, strict=True):
        if (kind := operation(model, operator)) not in LAYERS:
            continue
        # A transposed convolution's first input is the size of its result.
        inputs = operator.inputs[1:3] if kind == "TRANSPOSE_CONV" else operator.inputs[:2]
        types = dict.fromkeys(names[graph.tensors[place].type].lower() for place in (*inputs, operator.outputs[0]))
        found[node] = _FORMATS.get(tuple(types), "*".join(types))
    return found


def operation(model: Any, operator: Any) -> str:
    """An operator's name in LiteRT's schema; both are the schema's own objects."""
    return _names(schema.BuiltinOperator)[model.operatorCodes[operator.opcodeIndex].builtinCode]


def _names(kind: Any) -> dict[int, str]:
    """Number -> name of one of the schema's enumerations."""
    return {number: name for name, number in vars(kind).items() if isinstance(number, int)}
