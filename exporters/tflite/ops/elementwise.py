"""Operations on each element by itself, and on the elements of two tensors at the same place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np

from edgeprune.exporters.tflite.file import DTYPES
from edgeprune.exporters.tflite.ops.fusing import bounds, fused_activation, norm_affine
from edgeprune.exporters.tflite.translation import Step, constant
from edgeprune.exporters.tflite.values import Value, plain

_CUTS = {(0.0, np.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
_WITH_ACTIVATION = frozenset({"ADD", "SUB", "MUL", "DIV"})


def binary(operator: str, step: Step) -> None:
    """Two tensors, of which the smaller one is repeated, in the axes' order of the larger one."""
    activation = fused_activation(step) if operator in _WITH_ACTIVATION else 0
    step.give(combined(step, operator, (step.input(0), step.input(1)), activation))


def several(operator: str, step: Step) -> None:
    """Max, Min and Sum, which take any number of tensors."""
    values = [step.input(place) for place in range(len(step.node.input))]
    result = values[0]
    for value in values[1:]:
        result = combined(step, operator, (result, value))
    step.give(result if len(values) > 1 else replace(result, tensor=step.tensor(result)))


def combined(step: Step, operator: str, values: Sequence[Value], activation: int = 0) -> Value:
    """The result of a binary operator on two values that ONNX would combine as they are."""
    shape = np.broadcast_shapes(*(value.shape for value in values))
    wide = [_widened(value, len(shape)) for value in values]
    computed = [value for value in wide if value.data is None] or wide
    order = max(computed, key=lambda value: prod(value.shape)).order
    inputs = [step.tensor(value, order) for value in wide]
    dtype = step.file.dtype(inputs[0])
    options: dict[str, Any] = {"fusedActivationFunction": activation} if operator in _WITH_ACTIVATION else {}
    result = step.add(operator, inputs, [shape[axis] for axis in order], dtype=dtype, **options)
    return Value(tuple(shape), order, result)


def _widened(value: Value, rank: int) -> Value:
    """The value with axes of 1 in front, as ONNX reads it where the other one has more axes. The tensor stays: LiteRT
    reads it in the same way, unless the axes behind are moved."""
    more = rank - len(value.shape)
    if not more:
        return value
    shape, order = (1,) * more + value.shape, plain(more) + tuple(axis + more for axis in value.order)
    return replace(value, shape=shape, order=order, data=None if value.data is None else value.data.reshape(shape))


def unary(operator: str, step: Step) -> None:
    value = step.input()
    step.give(_mapped(step, operator, value))


def _mapped(step: Step, operator: str, value: Value, **options: Any) -> Value:
    tensor = step.tensor(value)
    dtype = step.file.dtype(tensor)
    return replace(value, tensor=step.add(operator, [tensor], value.held_shape, dtype=dtype, **options))


def _with_number(step: Step, operator: str, value: Value, number: float, activation: int = 0) -> Value:
    """Each element combined with a number."""
    columns, value = value.columns, replace(value, columns=None)
    result = combined(step, operator, (value, constant(np.asarray(number, np.float32))), activation)
    return replace(result, columns=columns)


def clip(step: Step) -> None:
    limits = bounds(step.network, step.node)
    if limits is None:
        raise step.refuse("its bounds are computed by the network", expected="constants")
    value = step.input()
    if limits in _CUTS:
        step.give(_mapped(step, _CUTS[limits], value))
        return
    low, high = limits
    if np.isfinite(low):
        value = _with_number(step, "MAXIMUM", value, low)
    if np.isfinite(high):
        value = _with_number(step, "MINIMUM", value, high)
    step.give(value)


def leaky_relu(step: Step) -> None:
    step.give(_mapped(step, "LEAKY_RELU", step.input(), alpha=float(step.attributes.get("alpha", 0.01))))


def prelu(step: Step) -> None:
    """PRELU with one slope a channel, without the batch's axis, as LiteRT takes it."""
    value, slope = step.input(), step.constant(1, "slope").astype(np.float32)
    rank = len(value.shape)
    slope = slope.reshape((1,) * (rank - slope.ndim) + slope.shape)
    if slope.shape[0] != 1:
        raise step.refuse("its slopes differ within a batch", expected="one slope a channel")
    if value.order[0] != 0:
        value = step.ordered(value, plain(rank))
    held = step.constant_tensor(np.squeeze(slope.transpose(value.order), 0), "slope")
    step.give(replace(value, tensor=step.add("PRELU", [step.tensor(value), held], value.held_shape)))


def elu(step: Step) -> None:
    if step.attributes.get("alpha", 1.0) != 1.0:
        raise step.refuse(f"its alpha is {step.attributes['alpha']}", expected="1")
    step.give(_mapped(step, "ELU", step.input()))


def gelu(step: Step) -> None:
    approximate = step.attributes.get("approximate", b"none") == b"tanh"
    step.give(_mapped(step, "GELU", step.input(), approximate=approximate))


def hard_sigmoid(step: Step) -> None:
    """max(0, min(1, alpha x + beta)): as min(6, max(0, 6 alpha x + 6 beta)) / 6, where an operator cuts at 6."""
    alpha, beta = float(step.attributes.get("alpha", 0.2)), float(step.attributes.get("beta", 0.5))
    value = step.input()
    if abs(6 * alpha - 1) > 1e-6:
        value = _with_number(step, "MUL", value, 6 * alpha)
    step.give(_with_number(step, "MUL", _with_number(step, "ADD", value, 6 * beta, activation=3), 1 / 6))


def softplus(step: Step) -> None:
    """log(1 + exp x) = max(0, x) + log(1 + exp -|x|), in which nothing overflows."""
    value = step.input()
    small = _mapped(step, "EXP", _mapped(step, "NEG", _mapped(step, "ABS", value)))
    log = _mapped(step, "LOG", _with_number(step, "ADD", small, 1.0))
    parts = [replace(part, columns=None) for part in (_mapped(step, "RELU", value), log)]
    step.give(replace(combined(step, "ADD", parts), columns=value.columns))


def reciprocal(step: Step) -> None:
    value = step.in_columns(step.input())
    step.give(combined(step, "DIV", (constant(np.asarray(1.0, np.float32)), value)))


def batch_norm(step: Step) -> None:
    """A BatchNorm that no convolution could take along: a factor and a summand a channel."""
    affine = norm_affine(step.network, step.node)
    if affine is None:
        raise step.refuse("its numbers are computed by the network, or it is in training", expected="constants")
    value = step.in_columns(step.input())
    scale, shift = (constant(_a_channel(numbers, len(value.shape))) for numbers in affine)
    activation = fused_activation(step)
    step.give(combined(step, "ADD", (combined(step, "MUL", (value, scale)), shift), activation))


def _a_channel(numbers: Any, rank: int) -> Any:
    return numbers.astype(np.float32).reshape(1, -1, *(1 for _ in range(rank - 2)))


def identity(step: Step) -> None:
    if step.node.op_type == "Dropout" and len(step.node.output) > 1 and step.network.readers(step.node.output[1]):
        raise step.refuse("its mask is read", expected="a network that is not in training")
    step.give(step.input())


def cast(step: Step) -> None:
    name = step.node.output[0]
    value, dtype = step.input(), step.network.dtypes.get(name, "")
    if dtype not in DTYPES:
        raise step.refuse(f"it casts to {dtype or 'an unknown type'}", expected=f"one of {', '.join(sorted(DTYPES))}")
    tensor = step.tensor(value)
    if step.file.dtype(tensor) == dtype:
        step.give(value)
        return
    step.give(replace(value, tensor=step.add("CAST", [tensor], value.held_shape, dtype=dtype)))


def two(operator: str) -> Any:
    return partial(binary, operator)


def one(operator: str) -> Any:
    return partial(unary, operator)
