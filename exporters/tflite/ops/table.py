"""Every ONNX operation that can be written for LiteRT, and what writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from edgeprune.exporters.tflite.ops import axes, convolution, elementwise, linear, parts, pooling, reductions, resizing
from edgeprune.exporters.tflite.ops.elementwise import one, several, two
from edgeprune.exporters.tflite.translation import Step

OPS: Mapping[str, Callable[[Step], None]] = {
    "Abs": one("ABS"),
    "Add": two("ADD"),
    "AveragePool": pooling.average_pool,
    "BatchNormalization": elementwise.batch_norm,
    "Cast": elementwise.cast,
    "Ceil": one("CEIL"),
    "Clip": elementwise.clip,
    "Concat": parts.concat,
    "Conv": convolution.convolution,
    "ConvTranspose": convolution.transposed_convolution,
    "DepthToSpace": axes.depth_to_space,
    "Div": two("DIV"),
    "Dropout": elementwise.identity,
    "Elu": elementwise.elu,
    "Exp": one("EXP"),
    "Flatten": axes.reshape,
    "Floor": one("FLOOR"),
    "Gather": parts.gather,
    "Gelu": elementwise.gelu,
    "Gemm": linear.gemm,
    "GlobalAveragePool": pooling.global_average_pool,
    "GlobalMaxPool": pooling.global_max_pool,
    "HardSigmoid": elementwise.hard_sigmoid,
    "HardSwish": one("HARD_SWISH"),
    "Identity": elementwise.identity,
    "InstanceNormalization": reductions.instance_norm,
    "LayerNormalization": reductions.layer_norm,
    "LeakyRelu": elementwise.leaky_relu,
    "Log": one("LOG"),
    "LogSoftmax": partial(reductions.softmax, "LOG_SOFTMAX"),
    "MatMul": linear.matmul,
    "Max": partial(several, "MAXIMUM"),
    "MaxPool": pooling.max_pool,
    "Min": partial(several, "MINIMUM"),
    "Mul": two("MUL"),
    "Neg": one("NEG"),
    "PRelu": elementwise.prelu,
    "Pad": parts.pad,
    "Pow": two("POW"),
    "Reciprocal": elementwise.reciprocal,
    "ReduceMax": partial(reductions.reduction, "REDUCE_MAX"),
    "ReduceMean": partial(reductions.reduction, "MEAN"),
    "ReduceMin": partial(reductions.reduction, "REDUCE_MIN"),
    "ReduceSum": partial(reductions.reduction, "SUM"),
    "Relu": one("RELU"),
    "Reshape": axes.reshape,
    "Resize": resizing.resize,
    "Sigmoid": one("LOGISTIC"),
    "Slice": parts.slice_,
    "Softmax": partial(reductions.softmax, "SOFTMAX"),
    "Softplus": elementwise.softplus,
    "SpaceToDepth": axes.space_to_depth,
    "Split": parts.split,
    "Sqrt": one("SQRT"),
    "Squeeze": axes.reshape,
    "Sub": two("SUB"),
    "Sum": partial(several, "ADD"),
    "Tanh": one("TANH"),
    "Transpose": axes.transpose,
    "Unsqueeze": axes.reshape,
    "Upsample": resizing.resize,
}
"""Constants, and what is computed from constants and shapes alone, need none."""

REMEDIES: Mapping[str, str] = {
    "Erf": "export with opset 20 or later, where GELU is one operation",
    **dict.fromkeys(
        ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul"),
        "name the file that it was quantised from, with --precision int8",
    ),
}
"""What to do about an operation that is not in the table, where something is known."""
