"""What the writer asks of an ONNX network: what is constant, who reads what, and which nodes its outputs need."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from edgeprune.errors import InputError
from edgeprune.onnx_files.constants import Constants
from edgeprune.onnx_files.graph import array, attributes, fed_values, is_standard, opset
from edgeprune.onnx_files.inputs import static_batch
from edgeprune.onnx_files.shapes import concrete_types, shape_constants

_KEEP_SIGN = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Concat", "Identity", "Dropout",
                        "Transpose", "Reshape", "Flatten", "Slice", "Split", "Gather"})  # fmt: skip
_NOT_NEGATIVE = frozenset({"Relu", "Sigmoid", "HardSigmoid", "Softmax"})


class Network:
    """An ONNX model whose sizes are all fixed."""

    def __init__(self, model: ModelProto) -> None:
        """InputError where shapes do not fit each other, or one of them depends on what the network computes."""
        types = concrete_types(model, static_batch(model) or 1)
        self.opset = opset(model)
        self.shapes = {name: shape for name, (shape, _) in types.items() if shape is not None}
        self.dtypes = {name: str(helper.tensor_dtype_to_np_dtype(kind)) for name, (_, kind) in types.items() if kind}
        self._held = Constants(model.graph, model, known=shape_constants(model, types))
        self.inputs = tuple(value.name for value in fed_values(model.graph))
        self.outputs = tuple(value.name for value in model.graph.output)
        self._all = list(model.graph.node)
        self._makers = {name: node for node in self._all for name in node.output if name}
        self.nodes = self._needed()
        self._readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)

    def is_constant(self, name: str) -> bool:
        return name in self._held

    def constant(self, name: str) -> NDArray[Any]:
        """The values of a constant; KeyError for what is none."""
        return array(self._held[name])

    def readers(self, name: str) -> list[NodeProto]:
        """The nodes that read a value, without those that are constant."""
        return self._readers.get(name, [])

    def only_reader(self, name: str) -> NodeProto | None:
        """The one node that reads a value which nothing else sees; None where there is no such node."""
        found = self.readers(name)
        return found[0] if len(found) == 1 and name not in self.outputs else None

    def shape(self, name: str, node: NodeProto) -> tuple[int, ...]:
        """InputError where it cannot be inferred."""
        if name not in self.shapes:
            raise InputError(
                f"the shape of {name!r} depends on what the network computes",
                where=f"{node.name} ({node.op_type})",
                expected="shapes that the input's size decides",
            )
        return self.shapes[name]

    def is_not_negative(self, name: str) -> bool:
        """Whether a value is known to be 0 or more everywhere."""
        node = self._makers.get(name)
        if node is None or not is_standard(node):
            return False
        if node.op_type == "Clip":
            least = self.argument(node, "min", 1)
            return least is not None and float(np.min(least)) >= 0
        if node.op_type in _KEEP_SIGN:
            data = node.input if node.op_type == "Concat" else node.input[:1]
            return all(self.is_not_negative(part) for part in data)
        return node.op_type in _NOT_NEGATIVE

    def argument(self, node: NodeProto, attribute: str, place: int) -> NDArray[Any] | None:
        """What a node is told by an attribute in older versions of ONNX, and by a constant input in newer ones; None
        where it is told nothing. KeyError where the input is no constant."""
        given = attributes(node).get(attribute)
        if given is not None:
            return np.asarray(given)
        name = node.input[place] if place < len(node.input) else ""
        return self.constant(name) if name else None

    def _needed(self) -> list[NodeProto]:
        """The nodes that the outputs are computed from, but what is constant, in order."""
        wanted, found = list(self.outputs), set[int]()
        while wanted:
            name = wanted.pop()
            node = self._makers.get(name)
            if node is not None and id(node) not in found and name not in self._held:
                found.add(id(node))
                wanted += [read for read in node.input if read]
        return [node for node in self._all if id(node) in found]
