"""Which node of a model a node of ONNX Runtime's optimised model stands for.

ONNX Runtime renames what it fuses: a convolution in its blocked layout is named `VALUE_nchwc` for the value that it
wrote (that of the BatchNorm or activation folded into it, where one was), a lone BatchNorm or product in that layout
`VALUE_bn_nchwc` or `VALUE_mul_nchwc`; an activation fused into a Gemm puts `fused ` in front, other fusions append
`/XFusion/`, and nodes that reorder data are named for what they do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from edgeprune.onnx_files.constants import constants
from edgeprune.onnx_files.graph import all_graphs, fed_values, tensor_spec

_CONVOLUTIONS = ("Conv", "ConvTranspose")
# What ONNX Runtime folds into the convolution in front.
_FOLDED = frozenset(
    {"BatchNormalization", "Mul", "Add", "Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "Tanh", "Identity"}
)
_FUSION = re.compile(r"(/[A-Za-z0-9]*Fusion[A-Za-z0-9]*/?|_token_\d+)+$")


@dataclass(frozen=True)
class NodeNames:
    """The names in a model that ONNX Runtime's names are built from."""

    nodes: frozenset[str]
    producer: Mapping[str, str]
    """Value -> the node that writes it."""
    convolution: Mapping[str, str]
    """Value -> the convolution that writes it, other operations folded into it; its producer if there is none."""
    inside: frozenset[str] = frozenset()
    """Nodes inside an If, Loop or Scan, and the values that they write."""
    shapeless: frozenset[str] = frozenset()
    """Inputs of which the file states no shape, which ONNX Runtime tells like those without axes."""

    @staticmethod
    def of(model: ModelProto) -> NodeNames:
        fixed = constants(model)
        producers = {output: node for node in model.graph.node for output in node.output}
        convolution = {}
        for value, producer in producers.items():
            node: NodeProto | None = producer
            while node is not None and node.op_type in _FOLDED:
                data = [name for name in node.input if name and name not in fixed]
                node = producers.get(data[0]) if len(data) == 1 else None
            if node is None or node.op_type not in _CONVOLUTIONS:
                node = producer
            convolution[value] = node.name
        writers = {value: node.name for value, node in producers.items()}
        within = [node for graph in list(all_graphs(model.graph))[1:] for node in graph.node]
        inside = {name for node in within for name in (node.name, *node.output)} - set(producers)
        shapeless = frozenset(value.name for value in fed_values(model.graph) if not tensor_spec(value).states_shape)
        nodes = frozenset(node.name for node in model.graph.node)
        return NodeNames(nodes, writers, convolution, frozenset(inside), shapeless)

    def is_inside(self, name: str) -> bool:
        """Whether a timed node lies in an If, Loop or Scan, whose own time holds it."""
        plain = _FUSION.sub("", name).removeprefix("fused ")
        stems = (plain.removesuffix(end) for end in ("", "_nchwc", "_bn_nchwc", "_mul_nchwc"))
        return name not in self.nodes and any(stem in self.inside for stem in stems)

    def original(self, name: str) -> str:
        """The model's node; empty for a reordering of data; `name` itself if it is unknown."""
        if name in self.nodes:
            return name
        if name.startswith(("ReorderInput", "ReorderOutput")) or _FUSION.sub("", name) == "Transpose":
            return ""  # the latter for quantised convolutions, which want channels last
        named_for = {"_bn_nchwc": self.producer, "_mul_nchwc": self.producer, "_nchwc": self.convolution}
        for suffix, node_of in named_for.items():
            if name.endswith(suffix) and name.removesuffix(suffix) in node_of:
                return node_of[name.removesuffix(suffix)]
        bare = _FUSION.sub("", name.removeprefix("fused "))
        return bare if bare in self.nodes else name
