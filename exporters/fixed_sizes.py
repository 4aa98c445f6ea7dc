"""ONNX models whose open sizes are fixed, for formats whose files are for inputs of one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import ModelProto, ValueInfoProto

from edgeprune.errors import InputError
from edgeprune.onnx_files.inputs import input_specs, static_batch, with_input_size
from edgeprune.onnx_files.shapes import concrete_shapes


def with_fixed_sizes(model: ModelProto, input_size: Sequence[int] = (), *, where: object = "ONNX model") -> ModelProto:
    """A copy of the model in which every size of its inputs and outputs is a number: the batch is the one that the file
    has, or 1 where it leaves it open.

    InputError as `with_input_size`, and where a size of an output cannot be inferred.
    """
    sized = with_input_size(model, input_size, where=where)
    return with_batch(sized, static_batch(sized) or 1, where=where)


def with_batch(model: ModelProto, batch: int, *, where: object = "ONNX model") -> ModelProto:
    """A copy of the model whose open sizes, of its batch alone, are this one; InputError as `with_input_shapes`."""
    shapes = {
        spec.name: tuple(size if isinstance(size, int) else batch for size in spec.shape) for spec in input_specs(model)
    }
    return with_input_shapes(model, shapes, where=where)


def with_input_shapes(
    model: ModelProto, shapes: Mapping[str, Sequence[int]], *, where: object = "ONNX model"
) -> ModelProto:
    """A copy of the model whose inputs have these shapes, and whose outputs say the shapes that follow.

    InputError where shapes do not fit each other, or that of an output depends on what the network computes.
    """
    fixed = ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in fixed.graph.input:
        if value.name in shapes:
            _set_shape(value, shapes[value.name])
    found = concrete_shapes(fixed, static_batch(fixed) or 1)
    for value in fixed.graph.output:
        if value.name not in found:
            raise InputError(
                f"the shape of output {value.name!r} depends on what the network computes",
                where=where,
                expected="outputs of a size that the input's size decides",
            )
        _set_shape(value, found[value.name])
    return fixed


def _set_shape(value: ValueInfoProto, shape: Sequence[int]) -> None:
    dims = value.type.tensor_type.shape.dim
    del dims[:]
    for size in shape:
        dims.add().dim_value = size
