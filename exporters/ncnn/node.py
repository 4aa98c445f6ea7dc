"""An ONNX node with everything that is known of it: what the functions of `ops` are given.

ncnn has no batch: a blob is a value without its first axis, which has to be 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from edgeprune.errors import InputError
from edgeprune.exporters.ncnn.layers import Layer, blob_sizes, plain
from edgeprune.onnx_files.constants import Constants
from edgeprune.onnx_files.graph import array, attributes

MOST_AXES = 4
"""Of a blob: channels, depth, height, width."""

Blob = tuple[int, ...]


@dataclass(frozen=True)
class Known:
    """What is known of all values of a network at batch 1."""

    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, int]
    """Element types."""
    held: Constants
    opset: int


@dataclass(frozen=True)
class Node:
    """One node."""

    proto: NodeProto
    known: Known

    @property
    def op(self) -> str:
        kind: str = self.proto.op_type
        return kind

    @property
    def name(self) -> str:
        name: str = self.proto.name
        return name

    @property
    def opset(self) -> int:
        return self.known.opset

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self.proto.input)

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self.proto.output)

    @property
    def output(self) -> str:
        return self.outputs[0]

    @cached_property
    def _attributes(self) -> dict[str, object]:
        return attributes(self.proto)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value, texts as str."""
        value = self._attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def has(self, place: int) -> bool:
        return place < len(self.inputs) and bool(self.inputs[place])

    def constant(self, place: int) -> NDArray[Any] | None:
        """The values of an input that is the same in every run; None for any other, or where there is none."""
        if not self.has(place) or self.inputs[place] not in self.known.held:
            return None
        return array(self.known.held[self.inputs[place]])

    def required(self, place: int, what: str) -> NDArray[np.float32]:
        """A constant input in float32; refused where it is computed at run time."""
        values = self.constant(place)
        if values is None:
            raise self.refused(f"its {what} are computed at run time")
        return values.astype(np.float32)

    def shape(self, value: str) -> tuple[int, ...]:
        """A value's shape with the batch; refused where it is unknown."""
        shape = self.known.shapes.get(value)
        if shape is None:
            raise self.refused(f"the shape of {value!r} is not known beforehand")
        return shape

    def blob(self, value: str) -> Blob:
        """A value's shape in ncnn; refused where it has no batch of 1, or more axes than a blob."""
        shape = self.shape(value)
        if len(shape) < 2 or shape[0] != 1:
            raise self.refused(
                f"{value!r} has the shape {shape}: its first axis is no batch of 1, which ncnn leaves out"
            )
        if len(shape) - 1 > MOST_AXES:
            raise self.refused(
                f"{value!r} has {len(shape) - 1} axes beside the batch, where ncnn has up to {MOST_AXES}"
            )
        if self.known.kinds.get(value, TensorProto.FLOAT) != TensorProto.FLOAT:
            kind = TensorProto.DataType.Name(self.known.kinds[value]).lower()
            raise self.refused(f"{value!r} is {kind}, ncnn computes in float32")
        return shape[1:]

    def axis(self, axis: int, rank: int) -> int:
        """An axis of a value with `rank` axes, batch included, as one of the blob; refused for the batch itself."""
        place = axis + rank if axis < 0 else axis
        if not 0 < place < rank:
            raise self.refused("it works along the batch, which ncnn does not have")
        return place - 1

    def layer(self, kind: str, params: Mapping[int, Any] | None = None, weights: bytes = b"") -> Layer:
        """A layer from the node's first input to its first output, with its name."""
        return Layer(kind, self.name, self.inputs[:1], (self.output,), params or {}, weights)

    def memory(self, values: NDArray[Any], suffix: str) -> Layer:
        """A constant as a blob of this shape."""
        name = f"{self.output}_{suffix}"
        return Layer("MemoryData", name, (), (name,), blob_sizes(values.shape), plain(values))

    def refused(self, reason: str) -> InputError:
        """The error for this node; see `refused`."""
        return refused(self.proto, reason)


def refused(node: NodeProto, reason: str, remedy: str = "") -> InputError:
    """The error for a node that ncnn's files cannot hold."""
    return InputError(
        f"node {node.name!r} ({node.op_type}): {reason}",
        where="ncnn",
        expected="a network that ncnn can compute",
        remedy=remedy or "leave this format out, or change the network",
    )
