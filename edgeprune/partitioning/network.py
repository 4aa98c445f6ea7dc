"""A model with the questions answered that dividing it asks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from onnx import ModelProto, NodeProto, TensorProto

from edgeprune.errors import InputError
from edgeprune.onnx_files.constants import constants
from edgeprune.onnx_files.graph import element_bytes, used_values
from edgeprune.onnx_files.inputs import input_specs, static_batch
from edgeprune.onnx_files.shapes import concrete_types


@dataclass(frozen=True)
class ValueType:
    """What is known of one value: shape at the estimate's batch, dimensions for the files, ONNX element type."""

    shape: tuple[int, ...]
    dims: tuple[int | str | None, ...]
    elem_type: int

    @property
    def bytes(self) -> int:
        return math.ceil(math.prod(self.shape) * element_bytes(self.elem_type))


class Network:
    """A model with the questions answered that dividing it asks."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        held = constants(model)
        self.constants: Mapping[str, TensorProto] = held
        self.dequantised = {name: node for name, node in held.makers.items() if node.op_type == "DequantizeLinear"}
        """Constant -> the node that makes it from integers, which the parts are to keep: runtimes fuse it."""
        self.nodes = tuple(node for node in model.graph.node if node.output[0] not in held)
        self.outputs = tuple(value.name for value in model.graph.output)
        self.inputs = input_specs(model)

    @cached_property
    def producers(self) -> dict[str, NodeProto]:
        return {output: node for node in self.nodes for output in node.output if output}

    @cached_property
    def consumers(self) -> dict[str, list[NodeProto]]:
        found: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in used_values(node):
                found.setdefault(name, []).append(node)
        return found

    def dims(self, constant: str) -> tuple[int, ...]:
        """The shape of a constant; its values are not computed for that if they need not be."""
        known = self._types.get(constant)
        return known.shape if known else tuple(self.constants[constant].dims)

    def element_type(self, constant: str) -> int:
        """ONNX element type of a constant; its values are not computed for that if they need not be."""
        known = self._types.get(constant)
        return known.elem_type if known else self.constants[constant].data_type

    @cached_property
    def batch(self) -> int:
        """The batch size that bytes and MACs are given for: 1, or the one that the model was exported with."""
        return static_batch(self.model) or 1

    @cached_property
    def _types(self) -> dict[str, ValueType]:
        first = concrete_types(self.model, self.batch)
        dynamic = static_batch(self.model) is None
        second = concrete_types(self.model, self.batch + 1) if dynamic else first
        names = (spec.shape[0] for spec in self.inputs if spec.is_batched)
        batch = next((name for name in names if isinstance(name, str)), "batch")
        found = {}
        for name, (shape, elem_type) in first.items():
            other = second.get(name, (None, 0))[0]
            if shape is not None and other is not None and len(shape) == len(other):
                dims = tuple(_dimension(one, two, self.batch, batch) for one, two in zip(shape, other, strict=True))
                found[name] = ValueType(shape, dims, elem_type)
        return found

    def type_of(self, value: str) -> ValueType:
        """InputError if the value's shape cannot be inferred."""
        if value not in self._types:
            raise InputError(
                f"the shape of {value!r} cannot be inferred",
                where=self.model.graph.name or "ONNX model",
                expected="a model with shapes known but for the batch",
                remedy="pass --input-size, or export with a fixed input size",
            )
        return self._types[value]

    def knows(self, value: str) -> bool:
        """Whether the value's shape can be inferred."""
        return value in self._types

    def channels(self, value: str) -> int:
        """The size of its second axis; 1 where it has none, or none that is the same in every run."""
        known = self._types.get(value)
        fixed = known is not None and len(known.dims) > 1 and isinstance(known.dims[1], int)
        return known.shape[1] if known is not None and fixed else 1

    def rank(self, value: str) -> int:
        """Number of axes; 0 if unknown."""
        known = self._types.get(value)
        return len(known.shape) if known else 0


def _dimension(one: int, two: int, batch: int, name: str) -> int | str | None:
    """A dimension seen at two batch sizes: fixed, the batch itself, or something that depends on it."""
    if one == two:
        return one
    return name if (one, two) == (batch, batch + 1) else None
