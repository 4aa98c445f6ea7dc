"""The state of one translation: what each ONNX value became, and the operators that rearrange values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from edgeprune.errors import InputError
from edgeprune.exporters.tflite.file import DTYPES, TfliteFile
from edgeprune.exporters.tflite.network import Network
from edgeprune.exporters.tflite.values import Value, plain, wide_axes
from edgeprune.onnx_files.graph import attributes

_NARROWED = {"float64": "float32", "float16": "float32"}


class Translation:
    """A network on its way into a file."""

    def __init__(self, network: Network, file: TfliteFile) -> None:
        self.network, self.file = network, file
        self.values: dict[str, Value] = {}
        self.done: set[str] = set()
        """First outputs of the nodes that were taken along by one before them."""

    def value(self, name: str) -> Value:
        """What an ONNX value became; a constant is no tensor yet."""
        if name not in self.values:
            data = self.network.constant(name)
            self.values[name] = constant(data)
        return self.values[name]


def constant(data: NDArray[Any]) -> Value:
    """A constant, in ONNX's order."""
    return Value(data.shape, plain(data.ndim), data=data)


class Step:
    """One ONNX node being translated, and what it may do."""

    def __init__(self, translation: Translation, node: NodeProto) -> None:
        self._translation, self.node = translation, node
        self.network, self.file = translation.network, translation.file
        self.attributes: dict[str, Any] = attributes(node)
        self._made = translation.file.tensors
        self.last = node
        """The node whose result this step gives: another one where nodes behind it were taken along."""

    def refuse(self, reason: str, *, expected: str = "", remedy: str = "") -> InputError:
        """The error for what cannot be written."""
        return InputError(
            f"cannot be written for LiteRT: {reason}",
            where=f"{self.node.name} ({self.node.op_type})", expected=expected, remedy=remedy,
        )  # fmt: skip

    def has(self, place: int) -> bool:
        """Whether the node has this input."""
        return place < len(self.node.input) and bool(self.node.input[place])

    def input(self, place: int = 0) -> Value:
        if not self.has(place):
            raise self.refuse(f"it has no input {place}")
        return self._translation.value(self.node.input[place])

    def argument(self, attribute: str, place: int) -> NDArray[Any] | None:
        """An attribute, or the constant input that newer versions of ONNX have in its place; None where neither is
        there."""
        try:
            return self.network.argument(self.node, attribute, place)
        except KeyError:
            raise self.refuse(f"its {attribute} is computed by the network", expected="a constant") from None

    def integers(self, attribute: str, place: int) -> list[int] | None:
        found = self.argument(attribute, place)
        return None if found is None else [int(value) for value in found.reshape(-1)]

    def constant(self, place: int, what: str) -> NDArray[Any]:
        """An input that has to be constant."""
        if not self.has(place) or not self.network.is_constant(self.node.input[place]):
            raise self.refuse(f"its {what} is computed by the network", expected="a constant")
        return self.network.constant(self.node.input[place])

    def out_shape(self, place: int = 0) -> tuple[int, ...]:
        """Of the result, as ONNX has it."""
        return self.network.shape(self.last.output[place], self.last)

    def take_along(self, node: NodeProto) -> None:
        """This step does what the node behind it would do."""
        self._translation.done.add(node.output[0])
        self.last = node

    def give(self, value: Value, place: int = 0) -> None:
        """The step's result: a tensor that it added, or a value that was there before."""
        name = self.last.output[place]
        self._translation.values[name] = value
        if value.tensor >= self._made:
            self.file.rename(value.tensor, name)

    def constant_tensor(self, values: NDArray[Any], what: str) -> int:
        """The number of a constant tensor; doubles and halves become floats."""
        narrowed = values.astype(_NARROWED.get(str(values.dtype), values.dtype))
        if str(narrowed.dtype) not in DTYPES:
            raise self.refuse(f"its {what} has the type {values.dtype}", expected=f"one of {', '.join(sorted(DTYPES))}")
        return self.file.constant(f"{self.node.name}/{what}", narrowed)

    def tensor(self, value: Value, order: Sequence[int] | None = None) -> int:
        """The number of the tensor that holds a value, in this order of its axes (by default as it lies)."""
        value = value if order is None else self.ordered(value, tuple(order))
        if value.tensor < 0:
            assert value.data is not None
            return self.constant_tensor(np.transpose(value.data, value.order), "constant")
        return value.tensor

    def add(
        self, operator: str, inputs: Sequence[int], shape: Sequence[int], *, dtype: str = "float32", **options: Any
    ) -> int:
        """Add an operator with one result of this (the tensor's) shape; returns the result's number."""
        return self.add_several(operator, inputs, [shape], dtype=dtype, **options)[0]

    def add_several(
        self,
        operator: str,
        inputs: Sequence[int],
        shapes: Sequence[Sequence[int]],
        *,
        dtype: str = "float32",
        version: int = 0,
        **options: Any,
    ) -> list[int]:
        outputs = [self.file.tensor(f"{self.node.name}/{operator}", shape, dtype) for shape in shapes]
        self.file.operator(operator, inputs, outputs, options, source=self.node.name, version=version)
        return outputs

    def ordered(self, value: Value, order: tuple[int, ...]) -> Value:
        """The value with its axes held in this order: as it is, by a reshape where no element moves, or transposed."""
        value = self.in_columns(value)
        if value.order == order:
            return value
        if value.data is not None:
            return replace(value, order=order)
        moved = replace(value, order=order)
        if wide_axes(value, value.order) == wide_axes(value, order):
            return replace(moved, tensor=self.reshaped(value.tensor, moved.held_shape))
        return replace(moved, tensor=self.transposed(value.tensor, [value.order.index(axis) for axis in order]))

    def in_columns(self, value: Value) -> Value:
        """The value with its columns in ONNX's order."""
        if value.columns is None:
            return value
        indices = self.constant_tensor(np.argsort(value.columns).astype(np.int32), "columns")
        gathered = self.add("GATHER", [value.tensor, indices], value.shape, axis=1, batchDims=0)
        return replace(value, tensor=gathered, columns=None)

    def reshaped(self, tensor: int, shape: Sequence[int]) -> int:
        """A tensor of another shape with the same elements in the same order."""
        return tensor if self.file.shape(tensor) == tuple(shape) else self.copied(tensor, shape)

    def copied(self, tensor: int, shape: Sequence[int] | None = None) -> int:
        """A tensor of its own with the same elements, by default in the same shape."""
        shape = self.file.shape(tensor) if shape is None else shape
        sizes = self.constant_tensor(np.asarray(shape, np.int32), "shape")
        return self.add("RESHAPE", [tensor, sizes], shape, dtype=self.file.dtype(tensor), newShape=list(shape))

    def transposed(self, tensor: int, permutation: Sequence[int]) -> int:
        """A tensor whose axis i is the other's axis permutation[i]."""
        shape = self.file.shape(tensor)
        places = self.constant_tensor(np.asarray(permutation, np.int32), "permutation")
        moved = [shape[axis] for axis in permutation]
        return self.add("TRANSPOSE", [tensor, places], moved, dtype=self.file.dtype(tensor))
