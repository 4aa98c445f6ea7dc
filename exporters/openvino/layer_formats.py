"""In which number format OpenVINO runs each layer, read back from the model that it compiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NOT_RUN = frozenset({"Const", "Input", "Output"})
_LAYERS = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
_FORMATS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}


def original_nodes(running: Any, writers: Mapping[str, str]) -> dict[str, str]:
    """Node that OpenVINO runs -> the ONNX model's node; empty for a reordering of data.

    `running` is a compiled model's `get_runtime_model()`, `writers` tells which ONNX node writes a value. OpenVINO
    names a node for the ONNX node that it was, or for a value that the node writes; what it adds to reorder data stands
    for none. Of the nodes that were fused into one, the first gives its name.
    """
    nodes, found = frozenset(writers.values()), {}
    for node in running.get_ops():
        facts = node.get_rt_info()
        if facts["layerType"].astype(str) in _NOT_RUN:
            continue
        name = node.get_friendly_name()
        parts = facts["originalLayersNames"].astype(str).split(",") if "originalLayersNames" in facts else []
        known = [writers.get(part, part) for part in parts if part]
        found[name] = next((part for part in known if part in nodes), name if known else "")
    return found


def layer_formats(running: Any, writers: Mapping[str, str]) -> dict[str, str]:
    """Convolution or linear layer of the ONNX model -> number format, in the ONNX model's order; arguments as for
    `original_nodes`."""
    originals, found = original_nodes(running, writers), {}
    for node in running.get_ops():
        facts = node.get_rt_info()
        if facts["layerType"].astype(str) in _LAYERS:
            kind = facts["runtimePrecision"].astype(str)
            found[originals[node.get_friendly_name()]] = _FORMATS.get(kind, kind)
    return {name: found[name] for name in (*writers.values(), *found) if name in found}
