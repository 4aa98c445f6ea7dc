"""Under what times are remembered: digests of what decides about speed. No weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from onnx import ModelProto, TensorProto

from edgeprune.lowering.forms import Form, shape_of
from edgeprune.lowering.layers import GroupedLayer
from edgeprune.onnx_files.constants import constants
from edgeprune.onnx_files.inputs import input_specs


def structure_key(model: ModelProto) -> str:
    """A digest of what decides about a model's speed: its operations, how they are joined, and shapes. No weights."""
    numbers: dict[str, int] = {}
    held = constants(model)
    lines = [f"{spec.shape} {spec.dtype}" for spec in input_specs(model)]
    for node in model.graph.node:
        inputs = [_operand(value, held, numbers) for value in node.input]
        for value in node.output:
            numbers[value] = len(numbers)
        attributes = sorted(attribute.SerializeToString(deterministic=True).hex() for attribute in node.attribute)
        lines.append(" ".join([node.domain, node.op_type, *inputs, *attributes]))
    return digest("\n".join(lines))


def _operand(value: str, held: Mapping[str, TensorProto], numbers: dict[str, int]) -> str:
    if value in held:
        return f"{held[value].data_type}{tuple(held[value].dims)}"
    return f"%{numbers.setdefault(value, len(numbers))}"


def layer_key(layer: GroupedLayer, form: Form, batch: int) -> str:
    """Under what the time of a layer in one form is remembered."""
    settings = sorted(attribute.SerializeToString(deterministic=True).hex() for attribute in layer.attributes)
    facts = (
        form, shape_of(layer, form), layer.source_shape, layer.output_shape, layer.kernel, str(layer.weight.dtype),
        layer.bias is None, settings, batch,
    )  # fmt: skip
    return digest(repr(facts))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
