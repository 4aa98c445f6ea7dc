"""What each known operation does to the channel axis. All that is not listed here pins the channels' order."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import stochastic_depth

KEEPS_MODULES = (
    nn.BatchNorm2d, nn.BatchNorm1d, nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Dropout, nn.Dropout2d,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d,
    nn.ReflectionPad2d, nn.ReplicationPad2d,
)  # fmt: skip
KEEPS_FUNCTIONS = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.hardtanh, F.hardswish, F.hardsigmoid,
    F.softplus, F.dropout, F.dropout2d, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
    F.interpolate, torch.relu, torch.sigmoid, torch.tanh, torch.clamp, torch.abs, torch.neg, operator.neg,
    stochastic_depth,
}  # fmt: skip
KEEPS_METHODS = {
    "relu",
    "relu_",
    "sigmoid",
    "tanh",
    "clamp",
    "abs",
    "contiguous",
    "clone",
    "float",
    "to",
    "type",
    "detach",
}
JOINS_FUNCTIONS = {
    torch.add, torch.mul, torch.sub, torch.div, torch.maximum, torch.minimum, operator.add, operator.iadd, operator.mul,
    operator.imul, operator.sub, operator.isub, operator.truediv, operator.itruediv,
}  # fmt: skip
JOINS_METHODS = {"add", "add_", "mul", "mul_", "sub", "sub_", "div", "div_"}
ADDS_FUNCTIONS = {torch.add, operator.add, operator.iadd}
ADDS_METHODS = {"add", "add_"}
FLATTENS = {"flatten", "view", "reshape", "squeeze"}
