"""Operations whose result's channels depend on the same channel of their input alone."""

from __future__ import annotations

from onnx import NodeProto

from edgeprune.onnx_files.graph import is_standard
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


def channel_wise(node: NodeProto, value: str, network: Network) -> dict[int, int] | None:
    """How to slice a node's constants if each channel of its result depends on that channel of `value` alone.

    None if that is not so, or is not known. Constants that are not in the result hold for every channel.
    """
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
        dims = network.constants[name].dims
        axis = len(dims) - (rank - 1)  # where the channels lie in a constant that is aligned to the right
        if axis >= 0 and len(dims) and dims[axis] > 1:
            sliced[place] = axis
    return sliced
