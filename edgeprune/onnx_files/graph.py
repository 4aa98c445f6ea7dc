"""Questions that every ONNX step asks of a model: inputs, outputs, constants, attributes, shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeprune.errors import InputError, first_line

_LIGHT_ELEMENTS = 1024  # shape inference reads the values of small constants only (target shapes, axes)


@dataclass(frozen=True)
class TensorSpec:
    """A model's input or output: name, shape (int, a dynamic dimension's name, or None), numpy dtype."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str


def input_specs(model: ModelProto) -> tuple[TensorSpec, ...]:
    """The inputs that a caller must feed (initializers listed as inputs left out)."""
    held = {tensor.name for tensor in model.graph.initializer}
    return tuple(_spec(value) for value in model.graph.input if value.name not in held)


def output_specs(model: ModelProto) -> tuple[TensorSpec, ...]:
    """The model's outputs."""
    return tuple(_spec(value) for value in model.graph.output)


def static_batch(model: ModelProto) -> int | None:
    """The batch size that the model was exported with, or None if it is dynamic (or it has no input with axes)."""
    first = [spec.shape[0] for spec in input_specs(model) if spec.shape]
    fixed = [size for size in first if isinstance(size, int)]
    return fixed[0] if fixed and len(fixed) == len(first) else None


def with_input_size(model: ModelProto, size: Sequence[int], *, where: object = "ONNX model") -> ModelProto:
    """The model with every axis of its inputs fixed but the batch; `size` is that of the last axes, as (H, W) or
    (C, H, W). The model itself where no axis is dynamic.

    InputError if the size contradicts an axis that is fixed already, or leaves one dynamic.
    """
    specs = [spec for spec in input_specs(model) if spec.shape]
    unsized = {spec.name: spec for spec in specs if _dynamic_axes(spec)}
    named: dict[int | str | None, int] = {}
    for spec in unsized.values() or specs[:1]:
        _check_input_size(spec, size, named, where)
    if not unsized:
        return model
    sized = ModelProto()
    sized.CopyFrom(model)
    for value in sized.graph.input:
        if value.name in unsized:
            dims = value.type.tensor_type.shape.dim
            for dim, given in zip(dims[-len(size) :], size, strict=True):
                dim.dim_value = given
    return sized


def constants(model: ModelProto) -> dict[str, TensorProto]:
    """Every constant tensor of the top-level graph by value name: initializers and the outputs of Constant nodes."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and is_standard(node) and (value := _constant_value(node)) is not None:
            found[node.output[0]] = value
    return found


def array(tensor: TensorProto) -> NDArray[np.generic]:
    """The tensor's values."""
    return numpy_helper.to_array(tensor)


def attributes(node: NodeProto) -> dict[str, object]:
    """A node's attributes as Python values."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def is_standard(node: NodeProto) -> bool:
    """The operation is one of ONNX's own."""
    return node.domain in ("", "ai.onnx")


def opset(model: ModelProto) -> int:
    """Version of ONNX's own operations that the model uses."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def concrete_shapes(model: ModelProto, batch: int) -> dict[str, tuple[int, ...]]:
    """Shape of every value whose shape can be inferred, with the dynamic batch dimension fixed to `batch`.

    InputError if the model was exported with another fixed batch size, or an input has another dynamic dimension.
    """
    return {name: shape for name, (shape, _) in concrete_types(model, batch).items() if shape is not None}


def concrete_types(model: ModelProto, batch: int) -> dict[str, tuple[tuple[int, ...] | None, int]]:
    """Shape (None where unknown) and ONNX element type of every value, as `concrete_shapes`."""
    light = _light_copy(model, batch)
    try:
        graph = onnx.shape_inference.infer_shapes(light, strict_mode=True, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise InputError(
            f"shapes do not fit each other: {first_line(error)}",
            where=model.graph.name or "ONNX model",
            expected=f"a network that can be run with batch size {batch}",
            remedy="export the model again",
        ) from error
    found: dict[str, tuple[tuple[int, ...] | None, int]] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.elem_type:
            found[value.name] = (_known_shape(kind), kind.elem_type)
    for name, tensor in constants(model).items():
        found[name] = (tuple(tensor.dims), tensor.data_type)
    return found


def element_bytes(elem_type: int) -> float:
    """Bytes of one element of an ONNX element type (a 4-bit type has 0.5)."""
    name = TensorProto.DataType.Name(elem_type)
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        return 0.5
    return float(helper.tensor_dtype_to_np_dtype(elem_type).itemsize)


def fresh_name(base: str, taken: set[str]) -> str:
    """`base`, or `base_1`, `base_2` ... if taken; the name is added to `taken`."""
    name, number = base, 0
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name)
    return name


def _dynamic_axes(spec: TensorSpec) -> list[int]:
    """Axes without a size, the batch aside."""
    return [axis for axis in range(1, len(spec.shape)) if not isinstance(spec.shape[axis], int)]


def _check_input_size(spec: TensorSpec, size: Sequence[int], named: dict[int | str | None, int], where: object) -> None:
    """InputError unless the size fits the input and leaves no axis of it dynamic; `named` collects the sizes by the
    names of the axes."""
    rank, given = len(spec.shape), ",".join(map(str, size))
    shape = ", ".join("?" if dim is None else str(dim) for dim in spec.shape)
    last = list(zip(spec.shape[-len(size) :], size, strict=False)) if size else []
    if len(size) >= rank or any(dim not in (None, value) for dim, value in last if not isinstance(dim, str)):
        raise InputError(
            f"--input-size {given} contradicts input {spec.name!r} of shape ({shape})",
            where=where,
            expected="sizes of its dynamic axes, and its own for the others",
            remedy=f"{_fitting_size(spec, size)}, or export the network with that size",
        )
    unsized = [axis for axis in _dynamic_axes(spec) if axis < rank - len(size)]
    if unsized or any(named.setdefault(dim, value) != value for dim, value in last if isinstance(dim, str)):
        raise InputError(
            f"input {spec.name!r} has dynamic axes beside the batch: ({shape})",
            where=where,
            expected="a size for each, the same for those of the same name",
            remedy=_fitting_size(spec, ()),
        )


def _fitting_size(spec: TensorSpec, size: Sequence[int]) -> str:
    """Which axes of the input have a size already, and what to pass: of `size` what belongs to dynamic axes, letters
    where it gives none."""
    rank, dynamic = len(spec.shape), _dynamic_axes(spec)
    if not dynamic:
        return "leave --input-size out"
    letters = ("N", "C", "H", "W") if rank == 4 else tuple(f"AXIS{axis}" for axis in range(rank))
    words = ("batch", "channels", "height", "width") if rank == 4 else tuple(f"axis {axis}" for axis in range(rank))
    offset = rank - len(size)
    given = {axis: str(size[axis - offset]) for axis in dynamic if axis >= offset}
    first = max(1, min(dynamic[0], rank - 2))
    sizes = [
        given.get(axis, letters[axis]) if axis in dynamic else str(spec.shape[axis]) for axis in range(first, rank)
    ]
    fixed = ", ".join(f"{words[axis]} {spec.shape[axis]}" for axis in range(1, rank) if axis not in dynamic)
    return f"pass --input-size {','.join(sizes)}{f' (fixed: {fixed})' if fixed else ''}"


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in kind.shape.dim)
    dtype = str(helper.tensor_dtype_to_np_dtype(kind.elem_type)) if kind.elem_type else ""
    return TensorSpec(value.name, shape, dtype)


def _known_shape(kind: onnx.TypeProto.Tensor) -> tuple[int, ...] | None:
    dims = kind.shape.dim
    known = kind.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
    return tuple(dim.dim_value for dim in dims) if known else None


def _constant_value(node: NodeProto) -> TensorProto | None:
    attribute = next(iter(node.attribute), None)
    if attribute is None:
        return None
    if attribute.type == AttributeProto.TENSOR:
        value = TensorProto()
        value.CopyFrom(attribute.t)
        value.name = node.output[0]
        return value
    dtypes: Mapping[int, type] = {
        AttributeProto.FLOAT: np.float32,
        AttributeProto.FLOATS: np.float32,
        AttributeProto.INT: np.int64,
        AttributeProto.INTS: np.int64,
    }
    if attribute.type not in dtypes:
        return None
    values: NDArray[np.generic] = np.asarray(helper.get_attribute_value(attribute), dtypes[attribute.type])
    return numpy_helper.from_array(values, node.output[0])


def _light_copy(model: ModelProto, batch: int) -> ModelProto:
    """The model with its batch fixed and large constants reduced to shapes: shape inference needs no weights."""
    graph = GraphProto(name=model.graph.name or "graph")
    large = {name: t for name, t in constants(model).items() if math.prod(t.dims) > _LIGHT_ELEMENTS}
    graph.node.extend(node for node in model.graph.node if not large.keys() & set(node.output))
    held = {tensor.name for tensor in model.graph.initializer}
    graph.input.extend(value for value in model.graph.input if value.name not in held)
    _fix_batch(graph, model, batch)
    for name, tensor in large.items():
        graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in large)
    for value in model.graph.output:  # shapes written in the file may be stale: infer them
        graph.output.append(helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, None))
    return helper.make_model(graph, ir_version=max(model.ir_version, 4), opset_imports=model.opset_import)


def _fix_batch(graph: GraphProto, model: ModelProto, batch: int) -> None:
    fixed = static_batch(model)
    if fixed not in (None, batch):
        raise InputError(
            f"was exported with a fixed batch of {fixed}",
            where=model.graph.name or "ONNX model",
            expected=f"batch size {batch}",
            remedy=f"use batch size {fixed}, or export with a dynamic batch",
        )
    specs = input_specs(model)
    names = {spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], str)}
    wanted = {spec.name for spec in specs}
    for value in graph.input:
        if value.name not in wanted:
            continue
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                continue
            if axis and dim.dim_param not in names:
                raise InputError(
                    f"input {value.name!r} has a dynamic dimension {dim.dim_param or '?'!r} at axis {axis}",
                    where=model.graph.name or "ONNX model",
                    expected="a dynamic batch only",
                    remedy="export with a fixed input size",
                )
            dim.dim_value = batch
