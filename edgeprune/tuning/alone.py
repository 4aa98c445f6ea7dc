"""One layer of a network as a model of its own: how layers are timed where a runtime tells only the time of the whole.

ONNX Runtime and OpenVINO reorder data between layers, so there a layer is timed in its place. LiteRT and ncnn hold data
in one layout throughout, and alone a layer takes about what it takes there.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import ModelProto, TensorProto, helper

from edgeprune.lowering.layers import GroupedLayer
from edgeprune.onnx_files.constants import constants
from edgeprune.onnx_files.model import check_model


def alone(model: ModelProto, layer: GroupedLayer, batch: int) -> ModelProto:
    """The layer with the Gathers that only it needs; its input and output are named as in the model."""
    nodes = [node for node in model.graph.node if node.name in layer.nodes]
    held, made = constants(model), {value for node in nodes for value in node.output}
    initializers = []
    for value in dict.fromkeys(value for node in nodes for value in node.input if value and value not in made):
        if value != layer.source:
            constant = TensorProto()
            constant.CopyFrom(held[value])
            constant.name = value
            initializers.append(constant)
    graph = helper.make_graph(
        nodes,
        layer.name,
        [_image(layer.source, batch, layer.source_shape, layer)],
        [_image(layer.output, batch, layer.output_shape, layer)],
        initializers,
    )
    found = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return check_model(found, where=layer.name)


def _image(name: str, batch: int, shape: Sequence[int], layer: GroupedLayer) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(layer.weight.dtype), (batch, *shape))
