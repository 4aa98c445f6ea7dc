"""Gemm and MatMul."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.exporters.tflite.ops.fusing import added_bias, fused_activation
from edgeprune.exporters.tflite.translation import Step
from edgeprune.exporters.tflite.values import Value, plain


def gemm(step: Step) -> None:
    """alpha * A B + beta * C as one FULLY_CONNECTED, with both factors in the constants."""
    weight = step.constant(1, "second factor")
    if not step.attributes.get("transB", 0):
        weight = weight.T
    if step.attributes.get("transA", 0):
        raise step.refuse("its first factor is transposed", expected="transA of 0")
    weight = weight * np.asarray(step.attributes.get("alpha", 1.0), weight.dtype)  # (K, C)
    bias = np.zeros(len(weight), weight.dtype)
    if step.has(2):
        given = step.constant(2, "third input") * np.asarray(step.attributes.get("beta", 1.0), weight.dtype)
        if given.size not in (1, len(weight)) or (given.size > 1 and given.shape[-1] != len(weight)):
            raise step.refuse(f"it adds a matrix of shape {given.shape}", expected="one number a column")
        bias = np.broadcast_to(given.reshape(-1), bias.shape)
    _fully_connected(step, weight, bias)


def matmul(step: Step) -> None:
    """FULLY_CONNECTED where the second factor is a constant matrix, else BATCH_MATMUL."""
    left, right = step.input(0), step.input(1)
    if right.data is not None and right.data.ndim == 2 and left.data is None:
        weight = right.data.T
        bias = added_bias(step, len(weight))
        _fully_connected(step, weight, np.zeros(len(weight), weight.dtype) if bias is None else bias)
        return
    if min(len(left.shape), len(right.shape)) < 2:
        raise step.refuse("it multiplies by a vector", expected="matrices")
    factors = [step.tensor(value, plain(len(value.shape))) for value in (left, right)]
    shape = step.out_shape()
    step.give(Value(shape, plain(len(shape)), step.add("BATCH_MATMUL", factors, shape, adjX=False, adjY=False)))


def _fully_connected(step: Step, weight: NDArray[Any], bias: NDArray[Any]) -> None:
    """Weight (K, C) and bias (K) on the last axis. Columns that lie in another order are read in that order."""
    value = step.input()
    rank = len(value.shape)
    if value.columns is not None:
        weight = weight[:, value.columns]
    elif value.order[-1] != rank - 1:
        value = step.ordered(value, plain(rank))
    activation = fused_activation(step)
    inputs = [
        step.tensor(value),
        step.constant_tensor(weight, "weight"),
        step.constant_tensor(bias, "bias"),
    ]
    shape = step.out_shape()
    held = [shape[axis] for axis in value.order]
    result = step.add(
        "FULLY_CONNECTED", inputs, held, fusedActivationFunction=activation, keepNumDims=rank > 2
    )  # fmt: skip
    step.give(Value(shape, value.order, result))
