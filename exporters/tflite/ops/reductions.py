"""Means and sums over axes, Softmax, and the norms that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgeprune.exporters.tflite.ops.elementwise import combined
from edgeprune.exporters.tflite.translation import Step, constant
from edgeprune.exporters.tflite.values import Value, wide_axes


def reduction(operator: str, step: Step) -> None:
    value = step.in_columns(step.input())
    rank = len(value.shape)
    given = step.integers("axes", 1)
    if not given and step.attributes.get("noop_with_empty_axes", 0):
        step.give(value)
        return
    axes = sorted({axis % rank for axis in given}) if given else list(range(rank))
    if step.attributes.get("keepdims", 1):
        step.give(_reduced(step, operator, value, axes))
        return
    kept = [axis for axis in value.order if axis not in axes]
    order = tuple(sorted(kept).index(axis) for axis in kept)
    shape = step.out_shape()
    places = step.constant_tensor(np.asarray(sorted(value.place(axis) for axis in axes), np.int32), "axes")
    held = [shape[axis] for axis in order]
    step.give(Value(shape, order, step.add(operator, [step.tensor(value), places], held, keepDims=False)))


def _reduced(step: Step, operator: str, value: Value, axes: Sequence[int]) -> Value:
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(value.shape))
    places = step.constant_tensor(np.asarray(sorted(value.place(axis) for axis in axes), np.int32), "axes")
    result = replace(value, shape=shape)
    return replace(
        result, tensor=step.add(operator, [step.tensor(value), places], result.held_shape, keepDims=True)
    )  # fmt: skip


def softmax(operator: str, step: Step) -> None:
    """Along one axis, which LiteRT wants to be the last one."""
    value = step.in_columns(step.input())
    rank = len(value.shape)
    axis = int(step.attributes.get("axis", -1 if step.network.opset >= 13 else 1)) % rank
    if step.network.opset < 13 and any(size != 1 for size in value.shape[axis + 1 :]):
        raise step.refuse(
            "before opset 13 it runs over all axes from its axis on", expected="opset 13 or later, or one axis"
        )
    wide = [other for other in wide_axes(value, value.order) if other != axis]
    if value.order[-1] != axis:
        units = [other for other in range(rank) if value.shape[other] == 1 and other != axis]
        value = step.ordered(value, (*units, *wide, axis))
    options = {"beta": 1.0} if operator == "SOFTMAX" else {}
    step.give(replace(value, tensor=step.add(operator, [step.tensor(value)], value.held_shape, **options)))


def layer_norm(step: Step) -> None:
    """Over the last axes, in LiteRT's operators."""
    value = step.in_columns(step.input())
    rank = len(value.shape)
    first = int(step.attributes.get("axis", -1)) % rank
    if any(name and step.network.readers(name) for name in step.node.output[1:]):
        raise step.refuse("its mean or deviation is read", expected="a norm of which the result is read alone")
    normal = _normalised(step, value, range(first, rank))
    normal = combined(step, "MUL", (normal, constant(step.constant(1, "scale"))))
    if step.has(2):
        normal = combined(step, "ADD", (normal, constant(step.constant(2, "bias"))))
    step.give(normal)


def instance_norm(step: Step) -> None:
    """Over height and width, by channel."""
    value = step.in_columns(step.input())
    rank = len(value.shape)
    normal = _normalised(step, value, range(2, rank))
    scale, bias = (
        constant(step.constant(place, what).reshape(1, -1, *(1 for _ in range(rank - 2))))
        for place, what in ((1, "scale"), (2, "bias"))
    )
    step.give(combined(step, "ADD", (combined(step, "MUL", (normal, scale)), bias)))


def _normalised(step: Step, value: Value, axes: Sequence[int]) -> Value:
    """(x - mean) / sqrt(variance + epsilon)."""
    epsilon = constant(np.asarray(step.attributes.get("epsilon", 1e-5), np.float32))
    centred = combined(step, "SUB", (value, _reduced(step, "MEAN", value, axes)))
    variance = _reduced(step, "MEAN", combined(step, "MUL", (centred, centred)), axes)
    shifted = combined(step, "ADD", (variance, epsilon))
    root = replace(shifted, tensor=step.add("RSQRT", [shifted.tensor], shifted.held_shape))
    return combined(step, "MUL", (centred, root))
