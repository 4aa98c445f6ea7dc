"""Which nodes of the ONNX model a layer of a TensorRT engine stands for.

An engine built with detailed verbosity says it itself: its inspector lists each layer with the metadata
`[ONNX Layer: NAME]`, one for each node that was fused into it, control characters in between. Where that is missing,
the layer's name is all there is: `conv1 + relu1` for fused nodes, `Reformatting CopyNode for ...` for a reordering.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from edgeprune.errors import InputError, first_line
from edgeprune.lowering.forms import layer_of_node

_ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f\[]|$)")
_FUSED = re.compile(r" \+ | \|\| ")
_COPY = "Reformatting CopyNode"
_WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class _Layer(msgspec.Struct, rename="pascal"):
    """What we read of a layer in the inspector's JSON; versions 10 and 11 agree in it."""

    name: str = ""
    layer_type: str = ""
    metadata: str = ""


class _Information(msgspec.Struct, rename="pascal"):
    layers: list[_Layer | str] = []
    """Names alone, where the engine was built without detailed verbosity."""


@dataclass(frozen=True)
class EngineLayers:
    """The layers of one engine in terms of the model that it was built from."""

    op_types: Mapping[str, str]
    """The model's nodes -> what they do."""
    nodes: Mapping[str, tuple[str, ...]]
    """The engine's layers -> the model's nodes in them."""
    reorderings: frozenset[str]
    """The engine's layers that only change a layout or a number format."""

    @staticmethod
    def of(op_types: Mapping[str, str], information: str) -> EngineLayers:
        """From the inspector's JSON on the whole engine. InputError if it is not as versions 10 and 11 write it."""
        try:  # the standard library's parser, which takes control characters and NaN
            listed = msgspec.convert(json.loads(information, strict=False), _Information).layers
        except ValueError as error:
            raise InputError(
                f"TensorRT tells of its layers in an unknown way: {first_line(error)}",
                expected="JSON as of versions 10 and 11",
                remedy="leave out the times of single layers",
            ) from error
        layers = [_Layer(layer) if isinstance(layer, str) else layer for layer in listed]
        nodes = {layer.name: _nodes(layer, op_types) for layer in layers}
        # A Transpose of the model may run as a reformat, too: then it is named.
        reformats = (layer.name for layer in layers if layer.layer_type == "Reformat" and not nodes[layer.name])
        return EngineLayers(op_types, nodes, frozenset(reformats))

    def original(self, name: str) -> str:
        """The node that a layer's time is to be put down to; empty for a reordering of data.

        Of fused nodes the one with weights; `name` itself where several have weights, since their times cannot be
        told apart, or where nothing is known.
        """
        if self._is_reordering(name):
            return ""
        nodes = self.nodes.get(name) or _nodes(_Layer(name), self.op_types)
        weighted = [node for node in nodes if self.op_types[node] in _WITH_WEIGHTS]
        if not nodes or len({layer_of_node(node) for node in weighted}) > 1:
            return name
        gathers = [node for node in nodes if self.op_types[node] == "Gather"]
        return (*weighted, *gathers, *nodes)[0]

    def op_type(self, name: str) -> str:
        """What a layer does, in the words of ONNX; empty if that is not known."""
        return "Reformat" if self._is_reordering(name) else self.op_types.get(self.original(name), "")

    def _is_reordering(self, name: str) -> bool:
        return name in self.reorderings or name.startswith(_COPY)


def _nodes(layer: _Layer, op_types: Mapping[str, str]) -> tuple[str, ...]:
    """The model's nodes in a layer, from its metadata, else from its name."""
    if layer.name.startswith(_COPY):
        return ()
    listed = _known(_ONNX_LAYER.findall(layer.metadata), op_types)
    return listed or _known([layer.name, *_FUSED.split(layer.name)], op_types)


def _known(names: Sequence[str], op_types: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name in op_types))
