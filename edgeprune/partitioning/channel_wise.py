"""Operations whose result's channels depend on the same channel of their input alone."""

from __future__ import annotations

import math

from onnx import NodeProto

from edgeprune.onnx_files.graph import attributes, is_standard
from edgeprune.partitioning.network import Network

_UNARY = frozenset(
    {
        "Relu",
        "LeakyRelu",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Elu",
        "Celu",
        "Selu",
        "Softplus",
        "Softsign",
        "Tanh",
        "Mish",
        "Gelu",
        "Swish",
        "ThresholdedRelu",
        "Abs",
        "Neg",
        "Exp",
        "Erf",
        "Sqrt",
        "Floor",
        "Ceil",
        "Identity",
        "MaxPool",
        "AveragePool",
        "LpPool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "GlobalLpPool",
    }
)
_WITH_CONSTANTS = frozenset({"BatchNormalization", "Clip", "PRelu", "Add", "Sub", "Mul", "Div", "Min", "Max"})
QUANTISING = frozenset({"QuantizeLinear", "DequantizeLinear"})


def channel_wise(node: NodeProto, value: str, network: Network) -> dict[int, int] | None:
    """How to slice a node's constants if each channel of its result depends on that channel of `value` alone.

    None if that is not so, or is not known. Constants that are not in the result hold for every channel.
    """
    if node.op_type in QUANTISING and not any(name for name in node.output[1:]):
        return _quantising(node, value, network)
    if not is_standard(node) or any(name for name in node.output[1:]):
        return None
    if node.op_type in _UNARY:
        return {} if [name for name in node.input if name] == [value] else None
    if node.op_type not in _WITH_CONSTANTS or list(node.input).count(value) != 1:
        return None
    others = {place: name for place, name in enumerate(node.input) if name and name != value}
    if any(name not in network.constants for name in others.values()):
        return None
    if node.op_type == "BatchNormalization":
        training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
        return None if training or node.input[0] != value else dict.fromkeys(others, 0)
    rank = network.rank(value)
    if not rank or network.rank(node.output[0]) != rank:
        return None
    if network.type_of(node.output[0]).shape != network.type_of(value).shape:
        return None  # the constant widens the value
    sliced = {}
    for place, name in others.items():
        dims = network.dims(name)
        axis = len(dims) - (rank - 1)  # where the channels lie in a constant that is aligned to the right
        if axis >= 0 and len(dims) and dims[axis] > 1:
            sliced[place] = axis
    return sliced


def has_one_scale(node: NodeProto, network: Network) -> bool:
    """Whether a QuantizeLinear or DequantizeLinear has one constant scale and zero point for all channels."""
    others = [name for name in node.input[1:] if name]
    return all(name in network.constants and math.prod(network.dims(name)) == 1 for name in others)


def _quantising(node: NodeProto, value: str, network: Network) -> dict[int, int] | None:
    others = {place: name for place, name in enumerate(node.input) if name and place}
    if node.input[0] != value or any(name not in network.constants for name in others.values()):
        return None
    if has_one_scale(node, network):
        return {}
    rank, axis = network.rank(value), int(str(attributes(node).get("axis", 1)))
    a_scale_each = all(len(network.dims(name)) == 1 for name in others.values())
    return dict.fromkeys(others, 0) if rank and axis % rank == 1 and a_scale_each else None
