"""The torch network while it is built."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from torch import fx, nn

from edgeprune.onnx_files.constants import Constants
from edgeprune.onnx_files.graph import array
from edgeprune.onnx_files.inference import Types
from edgeprune.onnx_import.names import place, valid_name


class Building:
    """A torch network that grows node by node."""

    def __init__(self, model: ModelProto, types: Mapping[int, Types], held: Constants, held_at_more: Constants) -> None:
        """`types`: shapes and types of all values at one batch size or two, the smaller first; `held` and
        `held_at_more`: what is constant at the first of them, and at the last."""
        self.model, self.held, self._held_at_more = model, held, held_at_more
        self.types, self.more = next(iter(types.values())), list(types.values())[-1]
        self.graph, self.root = fx.Graph(), nn.Module()
        self.values: dict[str, fx.Node] = {}
        self.done: set[str] = set()
        """Names of nodes that an earlier one took along."""
        self.outputs = {value.name for value in model.graph.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)
        self._layers: dict[object, str] = {}

    def constant(self, name: str) -> NDArray[Any] | None:
        """The values of a tensor that is the same in every run; None for what is not."""
        return array(self.held[name]) if name and name in self.held else None

    def varies(self, name: str) -> bool:
        """Whether a constant is another one at the larger batch."""
        return not np.array_equal(array(self.held[name]), array(self._held_at_more[name]))

    def tensor(self, name: str) -> fx.Node:
        """The node that gives a value of the file; of a constant, a buffer that holds it."""
        if name not in self.values:
            value = self.constant(name)
            assert value is not None, name  # the file's nodes are in order
            self.values[name] = self.buffer(name, value)
        return self.values[name]

    def buffer(self, name: str, values: NDArray[Any]) -> fx.Node:
        """The node that gives a constant tensor."""
        parent, child = place(self.root, valid_name(name).replace(".", "_"))
        parent.register_buffer(child, torch.from_numpy(values.copy()))
        with warnings.catch_warnings():  # the graph is not in its module yet
            warnings.simplefilter("ignore")
            return self.graph.get_attr(child)

    def layer(self, name: str, module: nn.Module, x: fx.Node, same: object = None) -> fx.Node:
        """A call of a new layer; of an earlier one where that was added for the `same` weights and settings."""
        if same is None or same not in self._layers:
            parent, child = place(self.root, name)
            parent.add_module(child, module.eval())
            path = next(path for path, found in self.root.named_modules() if found is module)
            self._layers[same if same is not None else path] = path
            return self.graph.call_module(path, (x,))
        return self.graph.call_module(self._layers[same], (x,))


def set_parameters(module: nn.Module, **values: NDArray[Any] | None) -> None:
    """Give a layer copies of these tensors, in float32; None leaves one as it is."""
    with torch.no_grad():
        for name, value in values.items():
            if value is not None:
                getattr(module, name).copy_(torch.from_numpy(np.array(value, np.float32, order="C")))
