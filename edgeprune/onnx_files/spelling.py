"""What other exporters spell in their own way, spelt as ONNX does: so that all that follows knows one spelling."""

from __future__ import annotations

from onnx import ModelProto, ValueInfoProto, helper
from onnx.shape_inference import infer_shapes

from edgeprune.onnx_files.constants import constants
from edgeprune.onnx_files.graph import STANDARD_DOMAINS, all_graphs, fed_values
from edgeprune.onnx_files.inference import INFERENCE_ERRORS, light_graph

_NO_NAMES = frozenset({"?", "None", "none", "-1", "unk", "unknown"})
"""What exporters write for every open size: no name that says that two of them are equal."""


def as_usual(model: ModelProto) -> None:
    """Write ONNX's own domain as "", each domain once, and sizes of inputs and outputs below 1 as dynamic (in place).

    Frameworks write -1, or 0, for a size that is open; a network that is fed with nothing computes nothing.
    """
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain in STANDARD_DOMAINS else entry.domain
        versions.setdefault(domain, entry.version)
    if len(versions) != len(model.opset_import) or any(entry.domain == "ai.onnx" for entry in model.opset_import):
        del model.opset_import[:]
        model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    for graph in (*all_graphs(model.graph), *model.functions):
        for node in graph.node:
            if node.domain == "ai.onnx":
                node.domain = ""
    for value in model.graph.input:
        _open_sizes_below(1, value)
    for value in (*model.graph.output, *model.graph.value_info):
        _open_sizes_below(0, value)


def state_outputs(model: ModelProto) -> None:
    """Give outputs whose shape the file does not state the axes that they have, as far as that can be inferred (in
    place)."""
    silent = {value.name: value for value in model.graph.output if _is_silent(value)}
    if not silent:
        return
    light = light_graph(model.graph, fed_values(model.graph), constants(model), {})
    versions = list(model.opset_import)
    try:
        graph = infer_shapes(helper.make_model(light, ir_version=8, opset_imports=versions), data_prop=True).graph
    except INFERENCE_ERRORS:
        return
    for value in graph.output:
        if value.name in silent and value.type.tensor_type.HasField("shape"):
            silent[value.name].type.tensor_type.shape.CopyFrom(value.type.tensor_type.shape)


def _open_sizes_below(least: int, value: ValueInfoProto) -> None:
    for dim in value.type.tensor_type.shape.dim:
        if dim.HasField("dim_value") and dim.dim_value < least:
            dim.ClearField("dim_value")
        elif dim.dim_param in _NO_NAMES:
            dim.ClearField("dim_param")


def _is_silent(value: ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return bool(kind.elem_type) and not kind.HasField("shape")
