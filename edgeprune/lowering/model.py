"""A whole network with each grouped layer in its chosen form."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from onnx import ModelProto

from edgeprune.errors import unknown_name
from edgeprune.lowering.forms import GROUPED, Form
from edgeprune.lowering.gathers import absorb_gathers, activate_parts, drop_unused
from edgeprune.lowering.layers import grouped_layers
from edgeprune.lowering.linear import as_convolutions
from edgeprune.lowering.record import LoweringRecord
from edgeprune.lowering.writing import lower
from edgeprune.onnx_files.model import name_nodes


def as_recorded(model: ModelProto, record: LoweringRecord) -> ModelProto:
    """The model with each layer in the form that a record chose; the model itself where all are as planned."""
    forms = {name: form for name, form in record.forms().items() if form != GROUPED}
    return lower_model(model, forms, record.pointwise) if forms or record.pointwise else model


def lower_model(model: ModelProto, forms: Mapping[str, Form], pointwise: Collection[str] = ()) -> ModelProto:
    """A copy of `model` (named nodes) in which these layers have these forms; other layers stay as they are.

    The linear layers `pointwise` become 1x1 convolutions. Gathers that a dense neighbour can take into its weights are
    gone as well. InputError for a name that is no grouped layer, or no linear one; ValueError for a form that its layer
    cannot have.
    """
    layers = grouped_layers(model)
    for name in forms:
        if name not in layers:
            raise unknown_name("grouped layer", name, layers)
    lowered = ModelProto()
    lowered.CopyFrom(model)
    graph = lowered.graph
    changed = {name: lower(layers[name], form) for name, form in forms.items() if form != GROUPED}
    owner = {node: name for name in changed for node in layers[name].nodes}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.name == owner.get(node.name):  # the Conv stands where all that it needs is there
            graph.node.extend(changed[node.name].nodes)
            graph.initializer.extend(changed[node.name].initializers)
        elif node.name not in owner:
            graph.node.append(node)
    absorb_gathers(lowered)
    activate_parts(lowered)
    as_convolutions(lowered, pointwise)
    drop_unused(lowered)
    del graph.value_info[:]  # shapes of values that may be gone
    name_nodes(graph)
    return lowered
