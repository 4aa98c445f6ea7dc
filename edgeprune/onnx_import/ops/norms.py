"""Normalisations. Where torch's work on the statistics of the images at hand, they keep the file's eps."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from edgeprune.onnx_import.building import set_parameters
from edgeprune.onnx_import.node import OnnxNode

_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE_NORMS = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def batch_norm(node: OnnxNode) -> fx.Node:
    if node.attribute("training_mode", 0) or len([name for name in node.proto.output if name]) > 1:
        raise node.refused("it is in training mode")
    weight, bias, mean, var = (node.known(place, "parameter") for place in (1, 2, 3, 4))
    if node.rank not in _BATCH_NORMS:
        raise node.refused(f"its input has {node.rank} axes")
    module = _BATCH_NORMS[node.rank](len(weight), eps=node.attribute("epsilon", 1e-5))
    set_parameters(module, weight=weight, bias=bias, running_mean=mean, running_var=var)
    return node.layer(module, node.tensor(), weight=1, same=(node.op, *node.proto.input[1:]))


def instance_norm(node: OnnxNode) -> fx.Node:
    weight, bias = node.known(1, "scale"), node.known(2, "bias")
    if node.rank not in _INSTANCE_NORMS:
        raise node.refused(f"its input has {node.rank} axes")
    module = _INSTANCE_NORMS[node.rank](len(weight), eps=node.attribute("epsilon", 1e-5), affine=True)
    set_parameters(module, weight=weight, bias=bias)
    return node.layer(module, node.tensor(), weight=1)


def layer_norm(node: OnnxNode) -> fx.Node:
    weight, bias = node.known(1, "scale"), node.known(2, "bias") if node.has(2) else None
    sizes = node.shape()[node.axis(node.attribute("axis", -1)) :]
    if any(node.proto.output[1:]):
        raise node.refused("its mean and deviation are read")
    if weight.size not in (1, np.prod(sizes)):
        raise node.refused(f"its scale has shape {weight.shape}")
    module = nn.LayerNorm(sizes, eps=node.attribute("epsilon", 1e-5), bias=bias is not None)
    full = None if bias is None else np.broadcast_to(bias, sizes)
    set_parameters(module, weight=np.broadcast_to(weight, sizes), bias=full)
    return node.layer(module, node.tensor(), weight=1)


def group_norm(node: OnnxNode) -> fx.Node:
    weight, bias = node.known(1, "scale"), node.known(2, "bias")
    channels, groups = node.shape()[1], node.attribute("num_groups", 1)
    module = nn.GroupNorm(groups, channels, eps=node.attribute("epsilon", 1e-5))
    each = channels // len(weight)  # opset 18 has one scale a group
    set_parameters(module, weight=np.repeat(weight, each), bias=np.repeat(bias, each))
    return node.layer(module, node.tensor(), weight=1)


def lrn(node: OnnxNode) -> fx.Node:
    alpha, beta, bias = (
        node.attribute(name, value) for name, value in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    return node.call(F.local_response_norm, node.tensor(), node.attribute("size", 1), alpha, beta, bias)


def lp_normalization(node: OnnxNode) -> fx.Node:
    axis, x = node.attribute("axis", -1), node.tensor()
    norm = node.call(torch.linalg.vector_norm, x, node.attribute("p", 2), (axis,), True)
    return node.call(torch.div, x, norm)
