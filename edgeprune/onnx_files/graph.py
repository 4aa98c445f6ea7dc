"""Questions that every ONNX step asks of a graph: its nodes, attributes, the graphs inside them, element types."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

STANDARD_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class TensorSpec:
    """A model's input or output: name, shape (int, a dynamic dimension's name, or None), numpy dtype."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str
    is_batched: bool = True
    """Whether an input's first axis counts samples, as far as is known."""
    states_shape: bool = True
    """Not where the file leaves open even how many axes there are; `shape` is then empty."""


def tensor_spec(value: ValueInfoProto) -> TensorSpec:
    """What a graph says of one of its values. Sizes below 1, which some exporters write, are dynamic."""
    kind = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.dim_value > 0 else (dim.dim_param or None) for dim in kind.shape.dim)
    dtype = str(helper.tensor_dtype_to_np_dtype(kind.elem_type)) if kind.elem_type else ""
    return TensorSpec(value.name, shape, dtype, states_shape=kind.HasField("shape") or not kind.elem_type)


def fed_values(graph: GraphProto) -> list[ValueInfoProto]:
    """The inputs that a caller must feed (initializers listed as inputs left out)."""
    held = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in held]


def array(tensor: TensorProto) -> NDArray[np.generic]:
    """The tensor's values."""
    return numpy_helper.to_array(tensor)


def attributes(node: NodeProto) -> dict[str, object]:
    """A node's attributes as Python values."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def is_standard(node: NodeProto) -> bool:
    """The operation is one of ONNX's own."""
    return node.domain in STANDARD_DOMAINS


def opset(model: ModelProto) -> int:
    """Version of ONNX's own operations that the model uses."""
    return next((entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS), 1)


def inner_graphs(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """The graphs inside an If, Loop or Scan, each with the name of its attribute."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        for graph in attribute.graphs:
            yield attribute.name, graph


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and those inside its If, Loop and Scan nodes, at any depth."""
    yield graph
    for node in graph.node:
        for _, inner in inner_graphs(node):
            yield from all_graphs(inner)


def used_values(node: NodeProto) -> set[str]:
    """The values that a node reads, those that the graphs inside it take from outside included."""
    names = {name for name in node.input if name}
    for _, graph in inner_graphs(node):
        names |= free_values(graph)
    return names


def free_values(graph: GraphProto) -> set[str]:
    """The values that a graph takes from outside."""
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    made |= {sparse.values.name for sparse in graph.sparse_initializer}
    made |= {output for node in graph.node for output in node.output}
    read = {name for node in graph.node for name in used_values(node)} | {value.name for value in graph.output}
    return read - made


def element_bytes(elem_type: int) -> float:
    """Bytes of one element of an ONNX element type (a 4-bit type has 0.5)."""
    name = TensorProto.DataType.Name(elem_type)
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        return 0.5
    return float(helper.tensor_dtype_to_np_dtype(elem_type).itemsize)


def fresh_name(base: str, taken: set[str]) -> str:
    """`base`, or `base_1`, `base_2` ... if taken; the name is added to `taken`."""
    name, number = base, 0
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name)
    return name
