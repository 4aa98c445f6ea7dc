"""The table of operations: what each node of a file becomes.

Where torch has several ways to say the same, it is written in the one whose channels `edgeprune.tracing` follows.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import fx

from edgeprune.onnx_import.node import OnnxNode
from edgeprune.onnx_import.ops import (
    activations,
    arithmetic,
    layers,
    norms,
    parts,
    pooling,
    reductions,
    resizing,
    shapes,
)
from edgeprune.onnx_import.ops.activations import unary
from edgeprune.onnx_import.ops.arithmetic import binary, folded
from edgeprune.onnx_import.ops.reductions import arg, reduced

Translation = Callable[[OnnxNode], fx.Node | tuple[fx.Node, ...]]


def same(node: OnnxNode) -> fx.Node:
    return node.tensor()


OPS: Mapping[str, Translation] = {
    # layers
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "Gemm": layers.gemm,
    "MatMul": layers.matmul,
    "BatchNormalization": norms.batch_norm,
    "InstanceNormalization": norms.instance_norm,
    "LayerNormalization": norms.layer_norm,
    "GroupNormalization": norms.group_norm,
    "LRN": norms.lrn,
    "LpNormalization": norms.lp_normalization,
    "PRelu": activations.prelu,
    # functions of each element
    "Relu": unary(F.relu),
    "LeakyRelu": activations.leaky_relu,
    "Clip": activations.clip,
    "Sigmoid": unary(torch.sigmoid),
    "HardSigmoid": activations.hard_sigmoid,
    "HardSwish": unary(F.hardswish),
    "Elu": activations.elu,
    "Celu": activations.celu,
    "Selu": activations.selu,
    "Softplus": activations.softplus,
    "Softsign": unary(F.softsign),
    "Tanh": unary(torch.tanh),
    "Gelu": activations.gelu,
    "Mish": unary(F.mish),
    "Swish": activations.swish,
    "ThresholdedRelu": activations.thresholded_relu,
    "Shrink": activations.shrink,
    "Erf": unary(torch.erf),
    "Abs": unary(torch.abs),
    "Neg": unary(torch.neg),
    "Exp": unary(torch.exp),
    "Log": unary(torch.log),
    "Sqrt": unary(torch.sqrt),
    "Reciprocal": unary(torch.reciprocal),
    "Floor": unary(torch.floor),
    "Ceil": unary(torch.ceil),
    "Round": unary(torch.round),
    "Sign": unary(torch.sign),
    "Sin": unary(torch.sin),
    "Cos": unary(torch.cos),
    "Not": unary(torch.logical_not),
    "Cast": activations.cast,
    "Softmax": activations.softmax,
    "LogSoftmax": activations.log_softmax,
    # several tensors, element by element
    "Add": arithmetic.arithmetic(operator.add),
    "Sub": arithmetic.arithmetic(operator.sub),
    "Mul": arithmetic.arithmetic(operator.mul),
    "Div": arithmetic.div,
    "Pow": binary(operator.pow),
    "Mod": arithmetic.mod,
    "Max": folded(torch.maximum),
    "Min": folded(torch.minimum),
    "Sum": folded(torch.add),
    "Mean": arithmetic.mean_of,
    "Where": arithmetic.where,
    "Equal": binary(operator.eq),
    "Greater": binary(operator.gt),
    "GreaterOrEqual": binary(operator.ge),
    "Less": binary(operator.lt),
    "LessOrEqual": binary(operator.le),
    "And": binary(torch.logical_and),
    "Or": binary(torch.logical_or),
    # pools
    "MaxPool": pooling.max_pool,
    "AveragePool": pooling.average_pool,
    "GlobalAveragePool": pooling.global_average_pool,
    "GlobalMaxPool": pooling.global_max_pool,
    # reductions
    "ReduceMean": reduced(torch.mean),
    "ReduceSum": reduced(torch.sum),
    "ReduceMax": reduced(torch.amax),
    "ReduceMin": reduced(torch.amin),
    "ReduceL1": reduced(torch.sum, before=torch.abs),
    "ReduceL2": reduced(torch.sum, before=torch.square, after=torch.sqrt),
    "ReduceSumSquare": reduced(torch.sum, before=torch.square),
    "ReduceLogSum": reduced(torch.sum, after=torch.log),
    "ReduceLogSumExp": reduced(torch.logsumexp),
    "ReduceProd": reductions.reduce_prod,
    "ArgMax": arg(torch.argmax),
    "ArgMin": arg(torch.argmin),
    # other axes, other places
    "Reshape": shapes.reshape,
    "Flatten": shapes.flatten,
    "Squeeze": shapes.squeeze,
    "Unsqueeze": shapes.unsqueeze,
    "Transpose": shapes.transpose,
    "Concat": shapes.concat,
    "Expand": shapes.expand,
    "Tile": shapes.tile,
    "Pad": shapes.pad,
    "DepthToSpace": shapes.depth_to_space,
    "SpaceToDepth": shapes.space_to_depth,
    "Split": parts.split,
    "Slice": parts.slice_,
    "Gather": parts.gather,
    "TopK": parts.top_k,
    "Resize": resizing.resize,
    "Upsample": resizing.upsample,
    # nothing, once the network is trained
    "Identity": same,
    "Dropout": same,
}
"""Operation -> its translation. What is computed from constants and shapes alone needs none: it is a constant."""
