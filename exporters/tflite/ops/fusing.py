"""What an operator can do along with the node behind it: an activation, a BatchNorm, a bias."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from edgeprune.exporters.tflite.network import Network
from edgeprune.exporters.tflite.translation import Step
from edgeprune.onnx_files.graph import attributes, is_standard

FUSED = {(0.0, np.inf): 1, (-1.0, 1.0): 2, (0.0, 6.0): 3}
"""Lower and upper bound -> the schema's number of the activation that cuts there."""


def bounds(network: Network, node: NodeProto) -> tuple[float, float] | None:
    """Between which numbers a Relu or Clip cuts; None for other nodes, and where the bounds are computed."""
    if not is_standard(node):
        return None
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip":
        return None
    try:
        low, high = network.argument(node, "min", 1), network.argument(node, "max", 2)
    except KeyError:
        return None
    return -np.inf if low is None else float(low.item()), np.inf if high is None else float(high.item())


def fused_activation(step: Step) -> int:
    """The schema's number of the activation behind this step, which takes it along; 0 where there is none."""
    reader = step.network.only_reader(step.last.output[0])
    limits = None if reader is None else bounds(step.network, reader)
    if reader is None or limits not in FUSED:
        return 0
    step.take_along(reader)
    return FUSED[limits]


def folded_norm(
    step: Step, weight: NDArray[Any], bias: NDArray[Any], *, filters: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weight (its filters along axis `filters`) and bias of a convolution along with the BatchNorm behind it, if there
    is one: it multiplies each filter by a number and adds one."""
    reader = step.network.only_reader(step.last.output[0])
    if reader is None or reader.op_type != "BatchNormalization" or not is_standard(reader):
        return weight, bias
    affine = norm_affine(step.network, reader)
    if affine is None or affine[0].size != weight.shape[filters]:
        return weight, bias
    scale, shift = affine
    step.take_along(reader)
    shape = [-1 if axis == filters else 1 for axis in range(weight.ndim)]
    return weight * scale.reshape(shape).astype(weight.dtype), (bias * scale + shift).astype(weight.dtype)


def norm_affine(network: Network, node: NodeProto) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """What a BatchNorm multiplies each channel by, and then adds, in float64; None where its numbers are no constants,
    or it is in training."""
    if any(not network.is_constant(name) for name in node.input[1:5]) or attributes(node).get("training_mode"):
        return None
    gamma, beta, mean, variance = (network.constant(name).astype(np.float64) for name in node.input[1:5])
    scale = gamma / np.sqrt(variance + float(attributes(node).get("epsilon", 1e-5)))  # type: ignore[arg-type]
    return scale, beta - mean * scale


def added_bias(step: Step, size: int) -> NDArray[Any] | None:
    """The constant, one number a column, that the node behind this step adds; the step takes it along."""
    reader = step.network.only_reader(step.last.output[0])
    if reader is None or reader.op_type != "Add" or not is_standard(reader):
        return None
    others = [name for name in reader.input if name != step.last.output[0]]
    if len(others) != 1 or not step.network.is_constant(others[0]):
        return None
    values = step.network.constant(others[0])
    if values.size != size or values.shape[-1:] != (size,) or values.ndim > len(step.out_shape()):
        return None
    step.take_along(reader)
    return values.reshape(-1)
