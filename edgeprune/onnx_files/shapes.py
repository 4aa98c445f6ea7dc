"""The shape and type of every value of a model at one batch size, those inside If, Loop and Scan included."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edgeprune.errors import InputError, first_line
from edgeprune.onnx_files.constants import Constants, constants
from edgeprune.onnx_files.graph import array, attributes, fed_values, free_values, inner_graphs, is_standard
from edgeprune.onnx_files.inference import INFERENCE_ERRORS, Shape, Types, inferred, known_shape, shape_deciding
from edgeprune.onnx_files.inputs import dynamic_axes, input_specs, no_shape, static_batch

_MOST_PASSES = 64
"""Of shape inference, each with what the one before did not know: one for each stage that reads the shape before."""


def concrete_shapes(model: ModelProto, batch: int) -> dict[str, Shape]:
    """Shape of every value whose shape can be inferred, with the dynamic batch dimension fixed to `batch`.

    InputError if the model was exported with another fixed batch size, or an input has another dynamic dimension.
    """
    return {name: shape for name, (shape, _) in concrete_types(model, batch).items() if shape is not None}


def concrete_types(model: ModelProto, batch: int) -> dict[str, tuple[Shape | None, int]]:
    """Shape (None where unknown) and ONNX element type of every value, as `concrete_shapes`.

    What exporters compute from shapes (the target of a Reshape, say) is computed where ONNX's inference does not
    follow it. Where that says nothing, of a Loop or an operation of somebody's own, the shapes are those of the loop's
    body, or those that the file states.
    """
    held, inputs = constants(model), _inputs_with_batch(model, batch)
    told, known = _stated(model, batch), dict[str, TensorProto]()
    for _ in range(_MOST_PASSES):
        try:
            found = inferred(model.graph, inputs, held, model, told)
        except INFERENCE_ERRORS as error:
            raise InputError(
                f"shapes do not fit each other: {first_line(error)}",
                where=model.graph.name or "ONNX model",
                expected=f"a network that can be run with batch size {batch}",
                remedy="export the model again",
            ) from error
        if all(found.get(name, (None, 0))[0] is not None for node in model.graph.node for name in node.output if name):
            break
        more = _of_loops(model, found, held)
        shapes = {name: value for name, value in shape_constants(model, found).items() if name not in held}
        if not more and not shapes:
            break
        told |= more
        known |= shapes | shape_deciding(model.graph, held)
        held = Constants(model.graph, model, known=known)
    return found


def shape_constants(model: ModelProto, found: Types) -> dict[str, TensorProto]:
    """What the Shape nodes give whose inputs have known shapes: constants at these sizes."""
    values: dict[str, TensorProto] = {}
    for node in model.graph.node:
        shape = found.get(node.input[0], (None, 0))[0] if node.op_type == "Shape" and node.input else None
        if shape is not None:
            start, end = attributes(node).get("start", 0), attributes(node).get("end", len(shape))
            part = shape[start:end] if isinstance(start, int) and isinstance(end, int) else shape
            values[node.output[0]] = numpy_helper.from_array(np.asarray(part, np.int64), node.output[0])
    return values


def inner_types(node: NodeProto, graph: GraphProto, model: ModelProto, outer: Types, held: Constants) -> Types:
    """Shapes and types inside one of a node's graphs, where `outer` are those around it and `held` its constants.

    A Loop's carried values count as keeping their shape.
    """
    given = dict(zip((value.name for value in graph.input), _fed_to(node, graph, outer), strict=False))
    inputs = [_value(name, *known) for name, known in given.items() if known]
    inputs += [value for value in graph.input if not given.get(value.name)]
    read = (name for name in sorted(free_values(graph)) if name in outer and name not in held.stored)
    inputs += [_value(name, *outer[name]) for name in read]
    try:
        return inferred(graph, inputs, held, model, strict=False)
    except INFERENCE_ERRORS:
        return {}


def trips(node: NodeProto, types: Types, held: Constants) -> int | None:
    """How often a node runs the graph inside it (a Loop at most); None where that is not known beforehand."""
    if node.op_type == "Loop":
        name = node.input[0] if node.input else ""
        return int(array(held[name]).reshape(-1)[0]) if name in held else None
    if node.op_type == "Scan":
        shape = types.get(node.input[-1], (None, 0))[0]
        return shape[_scan_axis(node)] if shape else None
    return 1


def _fed_to(node: NodeProto, graph: GraphProto, outer: Types) -> list[tuple[Shape | None, int] | None]:
    """What a Loop or Scan feeds its graph with, as far as it is known."""
    if node.op_type == "Loop":
        return [((), TensorProto.INT64), ((), TensorProto.BOOL), *(outer.get(name) for name in node.input[2:])]
    if node.op_type == "Scan":
        scanned = _attribute(node, "num_scan_inputs", 1)
        states = len(node.input) - scanned
        return [
            outer.get(name) if place < states else _step(node, outer, name) for place, name in enumerate(node.input)
        ]
    return []


def _step(node: NodeProto, outer: Types, name: str) -> tuple[Shape | None, int] | None:
    """One slice of what a Scan runs over."""
    shape, kind = outer.get(name, (None, 0))
    axis = _scan_axis(node)
    if not kind:
        return None
    return (None if shape is None else shape[:axis] + shape[axis + 1 :]), kind


def _scan_axis(node: NodeProto) -> int:
    axes = attributes(node).get("scan_input_axes", [0])
    return int(axes[-1]) if isinstance(axes, Sequence) and axes and all(axis >= 0 for axis in axes) else 0


def _attribute(node: NodeProto, name: str, default: int) -> int:
    value = attributes(node).get(name, default)
    return value if isinstance(value, int) else default


def _of_loops(model: ModelProto, found: Types, held: Constants) -> dict[str, tuple[Shape | None, int]]:
    """What the values that Loops carry have as shapes at the end, where their bodies keep them; without those that are
    known already."""
    more: dict[str, tuple[Shape | None, int]] = {}
    for node in model.graph.node:
        unknown = [name for name in node.output if name and found.get(name, (None, 0))[0] is None]
        if node.op_type != "Loop" or not is_standard(node) or not unknown:
            continue
        body = next((graph for _, graph in inner_graphs(node)), None)
        if body is None:
            continue
        inside = inner_types(node, body, model, found, Constants(body, model, held))
        for start, end, output in zip(node.input[2:], list(body.output)[1:], node.output, strict=False):
            shape, kind = found.get(start, (None, 0))
            if output in unknown and shape is not None and inside.get(end.name, (None, 0))[0] == shape:
                more[output] = (shape, kind)
    return more


def _stated(model: ModelProto, batch: int) -> dict[str, tuple[Shape | None, int]]:
    """What the file states of the results of Loops, Scans and operations that are not ONNX's own."""
    opaque = {
        name
        for node in model.graph.node
        if node.op_type in ("Loop", "Scan") or not is_standard(node)
        for name in node.output
    }
    names = {spec.shape[0] for spec in input_specs(model) if spec.is_batched and isinstance(spec.shape[0], str)}
    found: dict[str, tuple[Shape | None, int]] = {}
    for value in (*model.graph.value_info, *model.graph.output):
        if value.name not in opaque:
            continue
        copy = ValueInfoProto()
        copy.CopyFrom(value)
        for dim in copy.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_value = batch
        kind = copy.type.tensor_type
        shape = known_shape(kind)
        if kind.elem_type and shape is not None and 0 not in shape:
            found[value.name] = (shape, kind.elem_type)
    return found


def _inputs_with_batch(model: ModelProto, batch: int) -> list[ValueInfoProto]:
    """The model's inputs with every size known; InputError where one is not, or the batch is another one."""
    specs, fixed = {spec.name: spec for spec in input_specs(model)}, static_batch(model)
    if fixed not in (None, batch):
        has_axis = any(spec.is_batched for spec in specs.values())
        raise InputError(
            f"was exported with a fixed batch of {fixed}" if has_axis else "takes one sample: no first axis is a batch",
            where=model.graph.name or "ONNX model",
            expected=f"batch size {batch}",
            remedy=f"use batch size {fixed}, or export with a dynamic batch",
        )
    names = {spec.shape[0] for spec in specs.values() if spec.is_batched and isinstance(spec.shape[0], str)}
    inputs = []
    for value in fed_values(model.graph):
        spec, copy = specs[value.name], ValueInfoProto()
        if not spec.states_shape:
            raise no_shape(spec, model.graph.name or "ONNX model")
        copy.CopyFrom(value)
        for axis in dynamic_axes(spec):
            if spec.shape[axis] not in names:
                raise InputError(
                    f"input {spec.name!r} has a dynamic dimension {spec.shape[axis] or '?'!r} at axis {axis}",
                    where=model.graph.name or "ONNX model",
                    expected="a dynamic batch only",
                    remedy="pass --input-size, or export with a fixed input size",
                )
        for size, dim in zip(spec.shape, copy.type.tensor_type.shape.dim, strict=True):
            dim.dim_value = size if isinstance(size, int) else batch
        inputs.append(copy)
    return inputs


def _value(name: str, shape: Shape | None, kind: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)
