"""What a model is fed with, and what it gives: names, sizes, and whether a first axis counts samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnx import ModelProto, ValueInfoProto, helper, shape_inference

from edgeprune.errors import InputError
from edgeprune.onnx_files.constants import Constants, constants
from edgeprune.onnx_files.graph import TensorSpec, fed_values, tensor_spec
from edgeprune.onnx_files.inference import INFERENCE_ERRORS, light_graph

_DATA_PLACE = {
    "Conv": (0, 1),
    "ConvTranspose": (0, 1),
    "FusedConv": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearConv": (0, 3),
}
"""Where convolutions take their data and their weight."""


def input_specs(model: ModelProto) -> tuple[TensorSpec, ...]:
    """The inputs that a caller must feed (initializers listed as inputs left out)."""
    specs = tuple(tensor_spec(value) for value in fed_values(model.graph))
    batched = _batched(model, specs)
    return tuple(replace(spec, is_batched=spec.name in batched) for spec in specs)


def output_specs(model: ModelProto) -> tuple[TensorSpec, ...]:
    """The model's outputs."""
    return tuple(tensor_spec(value) for value in model.graph.output)


def static_batch(model: ModelProto) -> int | None:
    """The batch size that the model was exported with (1 where no axis counts samples), or None if it is dynamic."""
    specs = input_specs(model)
    first = [spec.shape[0] for spec in specs if spec.is_batched]
    fixed = [size for size in first if isinstance(size, int)]
    if not first:
        return 1 if any(spec.shape for spec in specs) else None
    return fixed[0] if len(fixed) == len(first) else None


def with_input_size(model: ModelProto, size: Sequence[int], *, where: object = "ONNX model") -> ModelProto:
    """The model with every axis of its inputs fixed but the batch; `size` is that of the last axes, as (H, W) or
    (C, H, W). The model itself where no axis is dynamic.

    An input of which the file states no shape gets a batch in front of it. InputError if the size contradicts an axis
    that is fixed already, or leaves one dynamic.
    """
    for spec in input_specs(model):
        if not spec.states_shape:
            return with_input_size(_with_shape(model, spec, size, where), size, where=where)
    specs = [spec for spec in input_specs(model) if spec.shape]
    unsized = {spec.name: spec for spec in specs if dynamic_axes(spec)}
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


def _with_shape(model: ModelProto, spec: TensorSpec, size: Sequence[int], where: object) -> ModelProto:
    """A copy in which this input has a batch and these sizes; InputError where there are none."""
    if not size:
        raise no_shape(spec, where)
    copy = ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        if value.name == spec.name:
            kind = value.type.tensor_type
            kind.CopyFrom(helper.make_tensor_type_proto(kind.elem_type, [None, *size]).tensor_type)
    return copy


def no_shape(spec: TensorSpec, where: object) -> InputError:
    """The error for an input whose shape has to be known, and is not stated."""
    return InputError(
        f"states no shape of input {spec.name!r}",
        where=where,
        expected="the sizes of its axes",
        remedy="pass --input-size with all of them but the batch, such as C,H,W",
    )


def dynamic_axes(spec: TensorSpec) -> list[int]:
    """Axes without a size, the batch aside."""
    start = 1 if spec.is_batched else 0
    return [axis for axis in range(start, len(spec.shape)) if not isinstance(spec.shape[axis], int)]


def _batched(model: ModelProto, specs: Sequence[TensorSpec]) -> set[str]:
    """The inputs whose first axis counts samples: where one of them has a dynamic first axis, those that have; else
    those with the size of the input that has the most axes. None where the first convolution is known to work on
    another number of samples than that axis says."""
    with_axes = [spec for spec in specs if spec.shape]
    if not with_axes or _is_without_batch(model, with_axes):
        return set()
    if open_first := [spec.name for spec in with_axes if not isinstance(spec.shape[0], int)]:
        return set(open_first)
    images = max(with_axes, key=lambda spec: len(spec.shape))
    return {spec.name for spec in with_axes if spec.shape[0] == images.shape[0]}


def _is_without_batch(model: ModelProto, specs: Sequence[TensorSpec]) -> bool:
    """Whether the first convolution has a fixed number of samples, however large the inputs' first axes are."""
    node = next((node for node in model.graph.node if node.op_type in _DATA_PLACE), None)
    if node is None or max(_DATA_PLACE[node.op_type]) >= len(node.input):
        return False
    data, weight = (node.input[place] for place in _DATA_PLACE[node.op_type])
    rank = next((len(tensor.dims) for tensor in model.graph.initializer if tensor.name == weight), 4)
    if any(len(spec.shape) == rank for spec in specs):
        return False  # as images are: (N, C, H, W) or (N, H, W, C)
    inputs = [_with_open_first_axis(value) for value in fed_values(model.graph)]
    return _first_size_is_known(model, constants(model), inputs, data)


def _first_size_is_known(model: ModelProto, held: Constants, inputs: Sequence[ValueInfoProto], value: str) -> bool:
    light = light_graph(model.graph, inputs, held, {})
    copy = helper.make_model(light, ir_version=max(model.ir_version, 4), opset_imports=list(model.opset_import))
    try:
        graph = shape_inference.infer_shapes(copy, data_prop=True).graph
    except INFERENCE_ERRORS:
        return False
    for known in graph.value_info:
        if known.name == value:
            dims = known.type.tensor_type.shape.dim
            return bool(dims) and dims[0].HasField("dim_value")
    return False


def _with_open_first_axis(value: ValueInfoProto) -> ValueInfoProto:
    copy = ValueInfoProto()
    copy.CopyFrom(value)
    for axis, dim in enumerate(copy.type.tensor_type.shape.dim):
        if axis == 0:
            dim.Clear()
            dim.dim_param = f"first axis of {value.name}"
        elif dim.dim_value < 1 and not dim.dim_param:
            dim.Clear()
    return copy


def _check_input_size(spec: TensorSpec, size: Sequence[int], named: dict[int | str | None, int], where: object) -> None:
    """InputError unless the size fits the input and leaves no axis of it dynamic; `named` collects the sizes by the
    names of the axes."""
    rank, given = len(spec.shape), ",".join(map(str, size))
    most = rank - 1 if spec.is_batched else rank
    shape = ", ".join("?" if dim is None else str(dim) for dim in spec.shape)
    last = list(zip(spec.shape[-len(size) :], size, strict=False)) if size else []
    if len(size) > most or any(dim not in (None, value) for dim, value in last if not isinstance(dim, str)):
        raise InputError(
            f"--input-size {given} contradicts input {spec.name!r} of shape ({shape})",
            where=where,
            expected="sizes of its dynamic axes, and its own for the others",
            remedy=f"{_fitting_size(spec, size)}, or export the network with that size",
        )
    unsized = [axis for axis in dynamic_axes(spec) if axis < rank - len(size)]
    if unsized or any(named.setdefault(dim, value) != value for dim, value in last if isinstance(dim, str)):
        raise InputError(
            f"input {spec.name!r} has dynamic axes{' beside the batch' if spec.is_batched else ''}: ({shape})",
            where=where,
            expected="a size for each, the same for those of the same name",
            remedy=_fitting_size(spec, ()),
        )


def _fitting_size(spec: TensorSpec, size: Sequence[int]) -> str:
    """Which axes of the input have a size already, and what to pass: of `size` what belongs to dynamic axes, letters
    where it gives none."""
    rank, dynamic = len(spec.shape), dynamic_axes(spec)
    if not dynamic:
        return "leave --input-size out"
    letters = ("N", "C", "H", "W") if rank == 4 else tuple(f"AXIS{axis}" for axis in range(rank))
    words = ("batch", "channels", "height", "width") if rank == 4 else tuple(f"axis {axis}" for axis in range(rank))
    offset = rank - len(size)
    given = {axis: str(size[axis - offset]) for axis in dynamic if axis >= offset}
    least = 1 if spec.is_batched else 0
    first = max(least, min(dynamic[0], rank - 2))
    sizes = [
        given.get(axis, letters[axis]) if axis in dynamic else str(spec.shape[axis]) for axis in range(first, rank)
    ]
    fixed = ", ".join(f"{words[axis]} {spec.shape[axis]}" for axis in range(least, rank) if axis not in dynamic)
    return f"pass --input-size {','.join(sizes)}{f' (fixed: {fixed})' if fixed else ''}"
