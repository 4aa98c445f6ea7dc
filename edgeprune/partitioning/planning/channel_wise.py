"""Operations each channel of whose result depends on the same channel of their inputs alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnx import NodeProto

from edgeprune.onnx_files.graph import array, attributes, is_standard
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
        "Cast",
        "MaxPool",
        "AveragePool",
        "LpPool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "GlobalLpPool",
    }
)
_AXIS_BY_AXIS = frozenset({"PRelu", "Add", "Sub", "Mul", "Div", "Min", "Max", "Sum", "Mean", "Pow", "Clip"})
"""Inputs are aligned to the right and widened to each other."""
_SPATIAL = frozenset({"ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2", "Squeeze"})
"""Over axes behind the channels."""
_NORMALISING = frozenset({"BatchNormalization", "InstanceNormalization"})
QUANTISING = frozenset({"QuantizeLinear", "DequantizeLinear"})


def channel_wise(node: NodeProto, network: Network) -> Mapping[int, int] | None:
    """How to slice a node's constants if each channel of its result depends on that channel of its inputs alone.

    Constant input's place -> axis of the channels; constants that are not in it hold for every channel. An input that
    is no constant has the result's channels, or one channel for all of them. None if that is not so, or is not known.
    """
    if any(name for name in node.output[1:]) or network.rank(node.output[0]) < 2:
        return None
    if node.op_type in QUANTISING:
        return _quantising(node, network)
    if not is_standard(node) or not node.input or (node.input[0] in network.constants and node.op_type in _UNARY):
        return None
    others = {place: name for place, name in enumerate(node.input) if name and place}
    if node.op_type in _UNARY:
        return {} if not others else None
    if node.op_type == "Slice":
        return {} if _cuts_behind_channels(node, network) else None
    if node.op_type in _SPATIAL:
        return {} if _reduces_behind_channels(node, network) else None
    if node.op_type in _NORMALISING:
        training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
        fixed = all(name in network.constants for name in others.values())
        return dict.fromkeys(others, 0) if fixed and not training else None
    return _axis_by_axis(node, network) if node.op_type in _AXIS_BY_AXIS else None


def has_one_scale(node: NodeProto, network: Network) -> bool:
    """Whether a QuantizeLinear or DequantizeLinear has one constant scale and zero point for all channels."""
    others = [name for name in node.input[1:] if name]
    return all(name in network.constants and math.prod(network.dims(name)) == 1 for name in others)


def _axis_by_axis(node: NodeProto, network: Network) -> Mapping[int, int] | None:
    rank = network.rank(node.output[0])
    channels = network.channels(node.output[0])
    sliced = {}
    for place, name in enumerate(node.input):
        if name in network.constants:
            dims = network.dims(name)
            axis = len(dims) - (rank - 1)  # where the channels lie in a constant that is aligned to the right
            if axis >= 0 and len(dims) and dims[axis] > 1:
                sliced[place] = axis
        elif name and (network.rank(name) != rank or network.channels(name) not in (1, channels)):
            return None
    return sliced


def _quantising(node: NodeProto, network: Network) -> Mapping[int, int] | None:
    others = {place: name for place, name in enumerate(node.input) if name and place}
    if node.input[0] in network.constants or any(name not in network.constants for name in others.values()):
        return None
    if has_one_scale(node, network):
        return {}
    rank, axis = network.rank(node.input[0]), int(str(attributes(node).get("axis", 1)))
    a_scale_each = all(len(network.dims(name)) == 1 for name in others.values())
    return dict.fromkeys(others, 0) if rank and axis % rank == 1 and a_scale_each else None


def _reduces_behind_channels(node: NodeProto, network: Network) -> bool:
    rank, axes = network.rank(node.input[0]), attributes(node).get("axes")
    if len(node.input) > 1 and node.input[1] in network.constants:
        axes = array(network.constants[node.input[1]]).reshape(-1).tolist()
    if not isinstance(axes, list) or not axes or not rank:
        return False
    return all(int(axis) % rank > 1 for axis in axes)


def _cuts_behind_channels(node: NodeProto, network: Network) -> bool:
    """Whether a Slice with constant bounds (opset 10) names only axes behind the channels."""
    if not 4 <= len(node.input) <= 5 or any(name not in network.constants for name in node.input[1:] if name):
        return False
    axes, rank = node.input[3], network.rank(node.input[0])
    if node.input[0] in network.constants or not axes or not rank:
        return False
    return all(int(axis) % rank > 1 for axis in array(network.constants[axes]).reshape(-1))
