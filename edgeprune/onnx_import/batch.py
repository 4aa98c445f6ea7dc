"""A file that was exported for one batch size, made to run at any."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from edgeprune.onnx_files.constants import constants
from edgeprune.onnx_files.graph import array, attributes, fresh_name
from edgeprune.onnx_files.shapes import concrete_shapes


def with_open_batch(model: ModelProto, batch: int) -> ModelProto:
    """A copy whose inputs have an open first axis, and whose Reshapes keep the first axis that they are given where the
    file writes down the batch that it was exported with.

    Whether it then runs at any batch is for its user to find out.
    """
    opened = ModelProto()
    opened.CopyFrom(model)
    held, shapes = constants(model), concrete_shapes(model, batch)
    taken = {tensor.name for tensor in opened.graph.initializer} | set(shapes)
    for node in opened.graph.node:
        if node.op_type == "Reshape" and shapes.get(node.input[0], ())[:1] == (batch,) and node.input[1] in held:
            target = array(held[node.input[1]]).reshape(-1)
            if len(target) and target[0] == batch and not attributes(node).get("allowzero", 0):
                opened.graph.initializer.append(_keeping_first(node, target, taken))
    for value in (*opened.graph.input, *opened.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value == batch:
            dims[0].Clear()
    del opened.graph.value_info[:]
    return opened


def _keeping_first(
    node: NodeProto, target: np.ndarray[tuple[int, ...], np.dtype[np.generic]], taken: set[str]
) -> TensorProto:
    """The target of a Reshape whose first axis stays as it is; the node reads it from now on."""
    name = fresh_name(f"{node.name}_target", taken)
    node.input[1] = name
    return numpy_helper.from_array(np.asarray([0, *target[1:]], np.int64), name)
