"""What each known operation does to the channel axis. All that is not listed here pins the channels' order."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import stochastic_depth

from edgeprune.modules.norms import NORMS

EACH_VALUE_MODULES = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid,
    nn.LogSigmoid, nn.Tanh, nn.Tanhshrink, nn.Hardtanh, nn.Hardshrink, nn.Hardswish, nn.Hardsigmoid, nn.Softplus,
    nn.Softsign, nn.Softshrink, nn.Threshold, nn.RReLU, nn.Dropout, nn.AlphaDropout,
)  # fmt: skip
"""They do the same to each value, wherever the channels are."""
KEEPS_MODULES = (
    *EACH_VALUE_MODULES, *NORMS, nn.Dropout2d, nn.FeatureAlphaDropout, nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d,
    nn.FractionalMaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d, nn.ConstantPad2d,
    nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d,
)  # fmt: skip
"""Besides these PReLU, whose slopes follow the channels."""
EACH_VALUE_FUNCTIONS = {
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.sigmoid, F.logsigmoid, F.tanh,
    F.tanhshrink, F.hardtanh, F.hardshrink, F.hardswish, F.hardsigmoid, F.softplus, F.softsign, F.softshrink,
    F.threshold, F.rrelu, F.dropout, F.alpha_dropout, torch.relu, torch.sigmoid, torch.tanh, torch.clamp, torch.abs,
    torch.neg, torch.exp, torch.erf, torch.sqrt, torch.square, torch.pow, torch.dropout, operator.neg, operator.pow,
    stochastic_depth,
}  # fmt: skip
KEEPS_FUNCTIONS = EACH_VALUE_FUNCTIONS | {
    F.dropout2d, F.feature_alpha_dropout, F.max_pool2d, F.avg_pool2d, F.lp_pool2d, F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d, F.interpolate,
}  # fmt: skip
KEEPS_METHODS = {
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "clamp", "clamp_", "abs", "neg", "exp", "sqrt", "square",
    "pow", "contiguous", "clone", "float", "double", "half", "to", "type", "detach",
}  # fmt: skip
JOINS_FUNCTIONS = {
    torch.add, torch.mul, torch.sub, torch.div, torch.maximum, torch.minimum, operator.add, operator.iadd, operator.mul,
    operator.imul, operator.sub, operator.isub, operator.truediv, operator.itruediv,
}  # fmt: skip
JOINS_METHODS = {"add", "add_", "mul", "mul_", "sub", "sub_", "div", "div_", "expand_as"}
DIVIDES = {torch.div, operator.truediv, operator.itruediv, "div", "div_"}
"""Joins in which a channel that is zero everywhere would not stay zero."""
ADDS_FUNCTIONS = {torch.add, operator.add, operator.iadd}
ADDS_METHODS = {"add", "add_"}
CONCATENATES = {torch.cat, torch.concat, torch.concatenate}
SPLITS_FUNCTIONS = {torch.chunk, torch.split}
SPLITS_METHODS = {"chunk", "split"}
MOVES_FUNCTIONS = {torch.permute, torch.transpose, torch.swapaxes}
MOVES_METHODS = {"permute", "transpose", "swapaxes"}
REDUCES_FUNCTIONS = {torch.mean, torch.sum, torch.amax, torch.amin}
REDUCES_METHODS = {"mean", "sum", "amax", "amin"}
VIEWS = {"view", "reshape", torch.reshape}
"""They are given the sizes that the result has."""
RESHAPES_FUNCTIONS = {torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze}
RESHAPES_METHODS = {"flatten", "view", "reshape", "squeeze", "unsqueeze"}
