"""ONNX operation -> what makes ncnn's layers of it. What is not here cannot be written."""

from __future__ import annotations

from collections.abc import Mapping

from edgeprune.exporters.ncnn.ops import convolutions, elementwise, moving, pooling, resizing, statistics
from edgeprune.exporters.ncnn.ops.elementwise import BINARY, UNARY, Entry, alone
from edgeprune.exporters.ncnn.ops.statistics import REDUCTIONS

ENTRIES: Mapping[str, Entry] = {
    "Conv": convolutions.convolution,
    "ConvTranspose": convolutions.deconvolution,
    "Gemm": convolutions.linear,
    "MatMul": convolutions.product,
    "MaxPool": pooling.max_pool,
    "AveragePool": pooling.average_pool,
    "GlobalAveragePool": pooling.global_average_pool,
    "GlobalMaxPool": pooling.global_max_pool,
    "BatchNormalization": statistics.batch_norm,
    "InstanceNormalization": statistics.instance_norm,
    "LayerNormalization": statistics.layer_norm,
    "LRN": statistics.local_response_norm,
    "Softmax": statistics.softmax,
    **dict.fromkeys(REDUCTIONS, statistics.reduction),
    "Relu": alone("ReLU"),
    "LeakyRelu": alone("ReLU", alpha=(0, 0.01)),
    "PRelu": elementwise.prelu,
    "Clip": elementwise.clip,
    "Sigmoid": alone("Sigmoid"),
    "HardSigmoid": elementwise.hard_sigmoid,
    "HardSwish": elementwise.hard_swish,
    "Tanh": alone("TanH"),
    "Elu": alone("ELU", alpha=(0, 1.0)),
    "Selu": alone("SELU", alpha=(0, 1.67326319217681884765625), gamma=(1, 1.05070102214813232421875)),
    "Softplus": alone("Softplus"),
    "Mish": alone("Mish"),
    "Erf": alone("Erf"),
    "Gelu": elementwise.gelu,
    **dict.fromkeys(UNARY, elementwise.unary),
    **dict.fromkeys(BINARY, elementwise.binary),
    **dict.fromkeys(("Identity", "Dropout", "Cast"), elementwise.nothing),
    "Concat": moving.concat,
    "Split": moving.split,
    "Slice": moving.cut,
    "Gather": moving.gather,
    "Transpose": moving.transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), moving.reshape),
    "Pad": moving.pad,
    "DepthToSpace": moving.pixel_shuffle,
    "SpaceToDepth": moving.reorg,
    "Resize": resizing.resize,
    "Upsample": resizing.resize,
}
