"""What works on each element alone: activations, functions of one value, and arithmetic of two with broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.exporters.ncnn.layers import Layer, Value, blob_sizes, plain
from edgeprune.exporters.ncnn.node import Blob, Node

Entry = Callable[[Node], list[Layer]]

_LARGEST = float(np.finfo(np.float32).max)
BINARY: Mapping[str, tuple[int, int]] = {
    "Add": (0, 0),
    "Sub": (1, 7),
    "Mul": (2, 2),
    "Div": (3, 8),
    "Max": (4, 4),
    "Min": (5, 5),
    "Pow": (6, 9),
    "Sum": (0, 0),
}
"""ONNX operation -> ncnn's number for it, and for the same with its operands exchanged."""
UNARY: Mapping[str, int] = {
    "Abs": 0, "Neg": 1, "Floor": 2, "Ceil": 3, "Sqrt": 5, "Exp": 7, "Log": 8, "Sin": 9, "Cos": 10, "Tan": 11,
    "Asin": 12, "Acos": 13, "Atan": 14, "Reciprocal": 15, "Round": 18,
}  # fmt: skip


def alone(kind: str, **named: tuple[int, float]) -> Entry:
    """An activation of ncnn's; `named`: ONNX attribute -> its number in ncnn, and its default in ONNX."""

    def entry(node: Node) -> list[Layer]:
        node.blob(node.inputs[0])
        return [node.layer(kind, {key: float(node.attribute(name, default)) for name, (key, default) in named.items()})]

    return entry


def unary(node: Node) -> list[Layer]:
    node.blob(node.inputs[0])
    return [node.layer("UnaryOp", {0: UNARY[node.op]})]


def nothing(node: Node) -> list[Layer]:
    """What changes nothing at inference."""
    node.blob(node.inputs[0])
    node.blob(node.output)
    return [node.layer("Noop")]


def hard_sigmoid(node: Node) -> list[Layer]:
    if node.attribute("alpha", 0.2) <= 0:
        raise node.refused("ncnn divides by its alpha, which is not positive")
    return alone("HardSigmoid", alpha=(0, 0.2), beta=(1, 0.5))(node)


def hard_swish(node: Node) -> list[Layer]:
    node.blob(node.inputs[0])
    return [node.layer("HardSwish", {0: 1 / 6, 1: 0.5})]


def gelu(node: Node) -> list[Layer]:
    node.blob(node.inputs[0])
    return [node.layer("GELU", {0: int(node.attribute("approximate", "none") == "tanh")})]


def clip(node: Node) -> list[Layer]:
    """Clip, its bounds as inputs or, before opset 11, as attributes."""
    node.blob(node.inputs[0])
    low, high = node.attribute("min", -_LARGEST), node.attribute("max", _LARGEST)
    low = node.required(1, "bounds").item() if node.has(1) else low
    high = node.required(2, "bounds").item() if node.has(2) else high
    return [node.layer("Clip", {0: max(float(low), -_LARGEST), 1: min(float(high), _LARGEST)})]


def prelu(node: Node) -> list[Layer]:
    """PRelu with one slope, or one a channel."""
    shape, slopes = node.blob(node.inputs[0]), node.required(1, "slopes")
    channels = (shape[0], *[1] * (len(shape) - 1))
    if slopes.size != 1 and _as_blob(slopes.shape, len(shape)) != channels:
        raise node.refused(f"its slopes have the shape {slopes.shape}: ncnn has one, or one a channel")
    return [node.layer("PReLU", {0: slopes.size}, plain(slopes))]


def binary(node: Node) -> list[Layer]:
    """Arithmetic of two or more values, constants among them, each broadcast to the result."""
    rank = len(node.blob(node.output))
    layers: list[Layer] = []
    left = node.inputs[0]
    for place in range(1, len(node.inputs)):
        is_last = place == len(node.inputs) - 1
        output = node.output if is_last else f"{node.output}_part{place}"
        name = node.name if is_last else f"{node.name}_part{place}"
        layers += _of_two(node, (left, node.inputs[place]), (name, output), rank)
        left = output
    return layers or [node.layer("Noop")]


def _of_two(node: Node, operands: tuple[str, str], written: tuple[str, str], rank: int) -> list[Layer]:
    name, output = written
    number, exchanged = BINARY[node.op]
    constants = [_constant(node, value) for value in operands]
    for place, other in ((1, 0), (0, 1)):
        values = constants[place]
        if (
            values is not None
            and values.size == 1
            and constants[other] is None
            and _rank(node, operands[other]) == rank
        ):
            kind = number if place == 1 else exchanged
            params: dict[int, Value] = {0: kind, 1: 1, 2: float(values.item())}
            return [Layer("BinaryOp", name, (operands[other],), (output,), params)]
    layers, blobs = [], []
    for place, (value, values) in enumerate(zip(operands, constants, strict=True)):
        layer = _operand(node, value, values, (f"{output}_operand{place}", rank))
        layers += [layer] if layer else []
        blobs.append(layer.outputs[0] if layer else value)
    return [*layers, Layer("BinaryOp", name, (blobs[0], blobs[1]), (output,), {0: number})]


def _operand(node: Node, value: str, values: NDArray[Any] | None, wanted: tuple[str, int]) -> Layer | None:
    """What gives an operand as many axes as the result has; None where it has them. (With fewer, ncnn lets the first
    axes meet, ONNX the last.)"""
    name, rank = wanted
    if values is not None:
        shaped = values.astype(np.float32).reshape(_as_blob_of(node, values.shape, rank))
        return Layer("MemoryData", name, (), (name,), blob_sizes(shaped.shape), plain(shaped))
    if value not in node.known.shapes or _rank(node, value) == rank:
        return None
    shape = _as_blob_of(node, node.shape(value), rank)
    return Layer("Reshape", name, (value,), (name,), blob_sizes(shape))


def _constant(node: Node, value: str) -> NDArray[Any] | None:
    places = [place for place, name in enumerate(node.inputs) if name == value]
    return node.constant(places[0]) if places else None


def _rank(node: Node, value: str) -> int:
    return len(node.blob(value)) if value in node.known.shapes else len(node.blob(node.output))


def _as_blob(shape: tuple[int, ...], rank: int) -> Blob | None:
    """A shape with ones in front, and without the batch; None where it has more than one sample."""
    full = (1,) * (rank + 1 - len(shape)) + tuple(shape)
    return full[1:] if len(full) == rank + 1 and full[0] == 1 else None


def _as_blob_of(node: Node, shape: tuple[int, ...], rank: int) -> Blob:
    blob = _as_blob(shape, rank)
    if blob is None:
        raise node.refused(f"an operand has the shape {shape}, with more samples than one")
    return blob
