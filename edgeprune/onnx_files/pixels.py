"""A network that takes pixels and normalises them itself: a quarter of the bytes of an input in FP32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeprune.errors import InputError
from edgeprune.onnx_files.graph import fed_values, fresh_name
from edgeprune.onnx_files.inputs import input_specs

LARGEST = 255.0
"""Of a pixel."""


@dataclass(frozen=True)
class Normalisation:
    """(pixel / 255 - mean) / std, a channel each, or one for all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


KNOWN = {
    "imagenet": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "unit": Normalisation((0.0,), (1.0,)),
}
"""Usual ones by name."""


def parse_normalisation(text: str) -> Normalisation:
    """A name of `KNOWN`, or MEAN,MEAN,MEAN/STD,STD,STD; InputError for anything else."""
    if text in KNOWN:
        return KNOWN[text]
    try:
        mean, std = (tuple(float(number) for number in part.split(",")) for part in text.split("/"))
    except ValueError:
        mean, std = (), ()
    if not mean or len(mean) != len(std) or not np.isfinite([*mean, *std]).all() or min(std, default=0.0) <= 0:
        known = ", ".join(KNOWN)
        raise InputError(
            f"--pixels {text!r} is no normalisation",
            expected=f"{known}, or mean and std of each channel of pixels / 255, such as 0.5,0.5,0.5/0.25,0.25,0.25",
        )
    return Normalisation(mean, std)


def taking_pixels(model: ModelProto, how: Normalisation, *, where: object = "ONNX model") -> ModelProto:
    """The network with an input (N, C, H, W) of uint8, 0 to 255, which it normalises itself.

    InputError if it has not one input of that shape in FP32, or another number of channels.
    """
    found = input_specs(model)
    images = [spec for spec in found if len(spec.shape) == 4 and spec.dtype == "float32"]
    if len(found) != 1 or not images:
        told = ", ".join(f"{spec.name} {spec.dtype} {spec.shape}" for spec in found) or "none"
        raise InputError(f"has the inputs {told}", where=where, expected="one, float32 (N, C, H, W), to take pixels")
    channels = images[0].shape[1]
    if len(how.mean) not in (1, channels):
        raise InputError(
            f"has an input of {channels} channels, and --pixels tells of {len(how.mean)}", where=where,
            expected="mean and std of each channel, or one for all",
        )  # fmt: skip
    copy = ModelProto()
    copy.CopyFrom(model)
    graph, source = copy.graph, images[0].name
    taken = {value.name for value in [*graph.input, *graph.initializer, *graph.output]}
    taken |= {name for node in graph.node for name in [*node.input, *node.output]}
    wanted = ("pixels", "centred", "normalised", "mean", "scale")
    floats, centred, normalised, shift, scale = (fresh_name(base, taken) for base in wanted)
    for node in graph.node:
        _rename(node, source, normalised)
    for value in graph.output:
        if value.name == source:
            raise InputError("gives its input back as an output", where=where, expected="a network")
    graph.initializer.append(numpy_helper.from_array(_a_channel(LARGEST * np.asarray(how.mean)), shift))
    graph.initializer.append(numpy_helper.from_array(_a_channel(1 / (LARGEST * np.asarray(how.std))), scale))
    nodes = [
        helper.make_node("Cast", [source], [floats], "to_floats", to=TensorProto.FLOAT),
        helper.make_node("Sub", [floats, shift], [centred], "centre"),
        helper.make_node("Mul", [centred, scale], [normalised], "normalise"),
        *graph.node,
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in fed_values(graph):
        value.type.tensor_type.elem_type = TensorProto.UINT8
    return copy


def _a_channel(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return values.reshape(1, -1, 1, 1).astype(np.float32)


def _rename(node: NodeProto, old: str, new: str) -> None:
    """In what the node reads, and what graphs inside of it do."""
    for place, read in enumerate(node.input):
        if read == old:
            node.input[place] = new
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            for inner in graph.node:
                _rename(inner, old, new)
