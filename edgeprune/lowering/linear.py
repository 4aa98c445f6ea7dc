"""Linear layers written as 1x1 convolutions.

At batch 1 a linear layer reads each weight once for a single multiply-add: memory decides its time. A runtime's
convolution may read packed weights faster than its matrix product does. With larger batches it is the other way round:
the convolution reads the weights again for each sample.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from edgeprune.errors import unknown_name
from edgeprune.lowering.layers import GraphView
from edgeprune.onnx_files.graph import array, attributes, is_standard


def linear_layers(model: ModelProto) -> tuple[str, ...]:
    """Names of the nodes `y = x W^T + b` (Gemm) whose weights, and bias if any, are constants; in order."""
    view = GraphView(model)
    return tuple(node.name for node in model.graph.node if _is_linear(node, view))


def as_convolutions(model: ModelProto, names: Collection[str]) -> None:
    """Write these linear layers as 1x1 convolutions of the same names, in place. InputError for any other name."""
    known, view = linear_layers(model), GraphView(model)
    for name in names:
        if name not in known:
            raise unknown_name("linear layer", name, known)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        if node.name not in names:
            model.graph.node.append(node)
            continue
        weight = array(view.constants[node.input[1]])
        weight = weight if attributes(node).get("transB", 0) else weight.T
        tall, wide = f"{node.name}@tall", f"{node.name}@wide"
        axes, kernel = f"{node.name}@axes", f"{node.name}@kernel"
        model.graph.initializer.extend(
            (
                numpy_helper.from_array(np.array([2, 3], np.int64), axes),
                numpy_helper.from_array(np.ascontiguousarray(weight[:, :, None, None]), kernel),
            )
        )
        model.graph.node.extend(
            (
                helper.make_node("Unsqueeze", [node.input[0], axes], [tall], name=f"{node.name}@unsqueeze"),
                helper.make_node("Conv", [tall, kernel, *node.input[2:]], [wide], name=node.name),
                helper.make_node("Flatten", [wide], list(node.output), name=f"{node.name}@flatten", axis=1),
            )
        )


def _is_linear(node: NodeProto, view: GraphView) -> bool:
    given = attributes(node)
    if node.op_type != "Gemm" or not is_standard(node) or given.get("transA", 0):
        return False
    if given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0:
        return False
    constant = [view.weight(node), *(view.constants.get(value) for value in node.input[2:] if value)]
    return all(tensor is not None for tensor in constant) and all(
        tensor is not None and len(tensor.dims) == 1 for tensor in constant[1:]
    )
