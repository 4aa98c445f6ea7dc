"""What the translation of an operation is given: one node of the file, and how to write it in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper
from torch import fx, nn

from edgeprune.errors import InputError
from edgeprune.onnx_files.graph import attributes, opset
from edgeprune.onnx_files.inference import Shape, Types
from edgeprune.onnx_import.affine import Affine
from edgeprune.onnx_import.building import Building
from edgeprune.onnx_import.names import layer_name

Number = bool | int | float
Value = fx.Node | Number
T = TypeVar("T")


class OnnxNode:
    """One node of the file, and how to write it in torch."""

    def __init__(self, proto: NodeProto, building: Building) -> None:
        self.proto, self.building = proto, building
        self.name, self.op = proto.name, proto.op_type
        self.opset = opset(building.model)
        self._attributes = attributes(proto)

    # -- what it says ------------------------------------------------------------------------------------------------
    def attribute(self, name: str, default: T) -> T:
        """An attribute of the type that the default has (a list for a tuple)."""
        value = self._attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value  # type: ignore[return-value]

    def has_attribute(self, name: str) -> bool:
        return name in self._attributes

    def has(self, place: int) -> bool:
        """Whether it has this input."""
        return len(self.proto.input) > place and bool(self.proto.input[place])

    def places(self) -> list[int]:
        """Of all its inputs."""
        return list(range(len(self.proto.input)))

    def constant(self, place: int) -> NDArray[Any] | None:
        """The values of an input that is the same in every run; None for one that is not, or is left out."""
        return self.building.constant(self.proto.input[place]) if self.has(place) else None

    def known(self, place: int, what: str) -> NDArray[Any]:
        """The same, where torch needs it to be constant: InputError if it is not."""
        value = self.constant(place)
        if value is None:
            raise self.refused(f"its {what} is computed from the image")
        if self.building.varies(self.proto.input[place]):
            raise self.refused(f"its {what} depends on the batch")
        return value

    def integers(self, name: str, place: int) -> list[int] | None:
        """Integers that older opsets give as the attribute `name` and newer ones as an input; None if they are left
        out."""
        if self.has_attribute(name):
            return [int(number) for number in np.atleast_1d(self.attribute(name, ()))]
        return [int(number) for number in np.atleast_1d(self.known(place, name))] if self.has(place) else None

    # -- its tensors -------------------------------------------------------------------------------------------------
    def shape(self, place: int = 0) -> Shape:
        """An input's shape at the smaller batch; InputError where it is not known."""
        return self._shape(self.proto.input[place], self.building.types)

    def output_shape(self, place: int = 0) -> Shape:
        return self._shape(self.proto.output[place], self.building.types)

    def open_shape(self) -> list[int]:
        """Its output's shape with -1 for the size that follows from the batch; InputError if several do."""
        name = self.proto.output[0]
        sizes = zip(
            self._shape(name, self.building.types), self._shape(name, self.building.more), strict=True
        )  # fmt: skip
        found = [small if small == large else -1 for small, large in sizes]
        if found.count(-1) > 1:
            raise self.refused("several of its output's sizes depend on the batch")
        return found

    def open_batch(self) -> bool:
        """Whether the first axis of its first input grows with the batch."""
        name = self.proto.input[0]
        small, large = (self._shape(name, types) for types in (self.building.types, self.building.more))
        return small[:1] != large[:1]

    @property
    def rank(self) -> int:
        """How many axes its first input has."""
        return len(self.shape())

    @property
    def output_rank(self) -> int:
        return len(self.output_shape())

    def axis(self, value: int, rank: int | None = None) -> int:
        """An axis counted from the front."""
        return value % (self.rank if rank is None else rank)

    def is_float(self) -> bool:
        kind = self.building.types.get(self.proto.output[0], (None, 0))[1]
        return bool(kind) and np.issubdtype(helper.tensor_dtype_to_np_dtype(kind), np.floating)

    def tensor(self, place: int = 0) -> fx.Node:
        """An input as a tensor."""
        if not self.has(place):
            raise self.refused(f"it lacks input {place}")
        return self.building.tensor(self.proto.input[place])

    def whole(self, place: int) -> fx.Node:
        """An input as a tensor that has the batch's size where the file's has, even if it is the same for all images
        (a class token)."""
        name, tensor = self.proto.input[place], self.tensor(place)
        small, large = (self._shape(name, types) for types in (self.building.types, self.building.more))
        if small == large or self.constant(place) is None:
            return tensor
        image = next(iter(self.building.graph.nodes))
        sizes = [self.method(image, "size", 0) if a != b else a for a, b in zip(small, large, strict=True)]
        return self.method(tensor, "expand", *sizes)

    def operand(self, place: int) -> Value:
        """An input as a number, where it is a constant of one element, and else as a tensor."""
        value = self.constant(place)
        if value is None or value.size != 1 or value.ndim > len(self.output_shape()):
            return self.tensor(place)
        number: Number = value.reshape(-1)[0].item()
        return number

    # -- what it becomes ---------------------------------------------------------------------------------------------
    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        return self.building.graph.call_function(function, args, kwargs)

    def method(self, tensor: fx.Node, name: str, *args: Any) -> fx.Node:
        return self.building.graph.call_method(name, (tensor, *args))

    def buffer(self, name: str, values: NDArray[Any]) -> fx.Node:
        """A constant that the file does not hold; fractions in float32."""
        is_float = np.issubdtype(values.dtype, np.floating)
        return self.building.buffer(f"{self.name}_{name}", values.astype(np.float32) if is_float else values)

    def layer(self, module: nn.Module, x: fx.Node, weight: int | None = None, same: object = None) -> fx.Node:
        """A call of a layer that is named after the node, or the input `weight`."""
        name = layer_name(self.name, self.proto.input[weight] if weight is not None else "")
        return self.building.layer(name, module, x, same)

    def stands_for(self, affine: Affine, value: fx.Node) -> None:
        """What scales and shifts its result is part of `value` already."""
        self.building.done.update(affine.nodes)
        self.building.values[affine.output] = value

    def refused(self, reason: str) -> InputError:
        """The error for a node that cannot be written in torch."""
        return InputError(
            f"{self.op} node {self.name!r}: {reason}",
            where="importing the ONNX file",
            expected="a convolutional network of the operations that docs/networks.md lists",
            remedy="prune the network that the file was made of (--arch)",
        )

    def _shape(self, name: str, types: Types) -> Shape:
        shape = types.get(name, (None, 0))[0]
        if shape is None:
            raise self.refused(f"the shape of {name!r} depends on what the image holds")
        return shape
