"""The tensors of a partition: the network's values, and the pieces of them that only the partition has."""

from __future__ import annotations

from onnx import NodeProto, ValueInfoProto, helper

from edgeprune.onnx_files.graph import fresh_name
from edgeprune.partitioning.network import Network, ValueType
from edgeprune.partitioning.planning.channels import Channels, size


class Tensors:
    """Names and types of all tensors on all devices. One name stands for the same numbers everywhere."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._types: dict[str, ValueType] = {}
        self._taken = set(network.constants) | set(network.producers) | {spec.name for spec in network.inputs}

    def new(self, base: str, value: str, channels: Channels) -> str:
        """A name that no other tensor has, for one with so many channels as these of a value."""
        name = fresh_name(base, self._taken)
        self._types[name] = with_channels(self.network.type_of(value), size(channels))
        return name

    def type_of(self, tensor: str) -> ValueType:
        """InputError if it is a value whose shape cannot be inferred."""
        return self._types[tensor] if tensor in self._types else self.network.type_of(tensor)

    def bytes_of(self, tensor: str) -> int:
        """0 for a value whose shape cannot be inferred."""
        return self.type_of(tensor).bytes if tensor in self._types or self.network.knows(tensor) else 0

    def value_info(self, tensor: str) -> ValueInfoProto:
        known = self.type_of(tensor)
        return helper.make_tensor_value_info(tensor, known.elem_type, known.dims)


def with_channels(value: ValueType, channels: int) -> ValueType:
    """The type of a value (N, C, ...) cut to some of its channels; one without channels is as it is."""
    if len(value.dims) < 2 or not isinstance(value.dims[1], int):
        return value
    shape = (value.shape[0], channels, *value.shape[2:])
    return ValueType(shape, (value.dims[0], channels, *value.dims[2:]), value.elem_type)


def bare(node: NodeProto) -> NodeProto:
    """A copy without the exporter's notes (stack traces with paths of the machine it ran on)."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("doc_string")
    copy.ClearField("metadata_props")
    return copy
