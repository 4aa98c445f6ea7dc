"""Shape inference on a copy of a graph without its weights: of large constants it needs the shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from edgeprune.errors import InputError
from edgeprune.onnx_files.constants import Constants
from edgeprune.onnx_files.graph import is_standard

Shape = tuple[int, ...]
Types = Mapping[str, tuple[Shape | None, int]]
"""Value -> its shape (None where unknown) and ONNX element type."""
LIGHT_ELEMENTS = 1024
"""Shape inference reads the values of small constants only (target shapes, axes)."""
INFERENCE_ERRORS = (onnx.shape_inference.InferenceError, ValueError, RuntimeError)
_AXES = {"Unsqueeze": (1,), "Squeeze": (1,), "TopK": (1,), "OneHot": (1,), "Split": (1,), "CenterCropPad": (1,)}
_DECIDE_SHAPES: Mapping[str, tuple[int, ...]] = {
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 3),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    **_AXES,
}
"""Which inputs' values the shape of a result depends on."""


def inferred(
    graph: GraphProto,
    inputs: Sequence[ValueInfoProto],
    held: Constants,
    model: ModelProto,
    told: Types | None = None,
    *,
    strict: bool = True,
) -> dict[str, tuple[Shape | None, int]]:
    """Shapes and types of the values of a graph that is fed with `inputs`; stored constants included.

    `told` is what is known otherwise of values whose shapes ONNX does not infer. One of `INFERENCE_ERRORS` where shapes
    contradict each other.
    """
    light = light_graph(graph, inputs, held, told or {})
    versions = [entry for entry in model.opset_import]
    copy = helper.make_model(light, ir_version=max(model.ir_version, 4), opset_imports=versions)
    result = onnx.shape_inference.infer_shapes(copy, strict_mode=strict, data_prop=True).graph
    found: dict[str, tuple[Shape | None, int]] = {}
    for value in (*result.input, *result.value_info, *result.output):
        kind = value.type.tensor_type
        if kind.elem_type:
            found[value.name] = (known_shape(kind), kind.elem_type)
    for name, tensor in held.stored.items():
        found[name] = (tuple(tensor.dims), tensor.data_type)
    return found


def light_graph(graph: GraphProto, inputs: Sequence[ValueInfoProto], held: Constants, told: Types) -> GraphProto:
    """The graph with large constants as inputs, and with those that decide about shapes computed."""
    computed = shape_deciding(graph, held)
    tensors = {name: tensor for name, tensor in held.stored.items()} | computed
    large = {name for name, tensor in tensors.items() if math.prod(tensor.dims) > LIGHT_ELEMENTS}
    light = GraphProto(name=graph.name or "graph")
    light.node.extend(node for node in graph.node if not (tensors.keys() & set(node.output)))
    light.input.extend(value for value in inputs if value.name not in computed)
    fed = {value.name for value in light.input}
    for name, tensor in tensors.items():
        if name in fed:
            continue
        if name in large:
            light.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        else:
            light.initializer.add().CopyFrom(tensor)
            light.initializer[-1].name = name
    outputs = {value.name for value in graph.output}
    for value in graph.output:  # shapes written in the file may be stale: infer them
        kind = value.type.tensor_type.elem_type
        shape = told.get(value.name, (None, 0))[0]
        light.output.append(helper.make_tensor_value_info(value.name, kind, shape))
    light.value_info.extend(
        helper.make_tensor_value_info(name, kind, shape) for name, (shape, kind) in told.items() if name not in outputs
    )
    return light


def known_shape(kind: onnx.TypeProto.Tensor) -> Shape | None:
    dims = kind.shape.dim
    known = kind.HasField("shape") and all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in dims)
    return tuple(dim.dim_value for dim in dims) if known else None


def shape_deciding(graph: GraphProto, held: Constants) -> dict[str, TensorProto]:
    """The computed constants that shapes depend on, with all outputs of the nodes that compute them."""
    found: dict[str, TensorProto] = {}
    for node in graph.node:
        for place in _deciding_inputs(node):
            name = node.input[place] if place < len(node.input) else ""
            if name in held.makers and name not in found:
                try:
                    found.update({output: held[output] for output in held.makers[name].output if output})
                except InputError:  # shape inference does without; what needs the values says so
                    continue
    return found


def _deciding_inputs(node: NodeProto) -> Sequence[int]:
    if not is_standard(node):
        return ()
    return (1,) if node.op_type.startswith("Reduce") else _DECIDE_SHAPES.get(node.op_type, ())
