"""The small ONNX models that calibration times: each has one node of interest, called `PROBE`, in the middle of others,
so that it finds its data as a node of a network does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

PROBE = "probe"
MATRICES, MATRIX_SIDE = 20, 1024
"""80 MiB of weights together: more than the usual cache holds."""


@dataclass(frozen=True)
class ConvProbe:
    """A convolution, padded so that a stride of 1 keeps the size."""

    groups: int
    inputs: int
    """Channels a group."""
    filters: int
    """A group."""
    width: int
    """Columns of the output."""
    kernel: int = 3
    stride: int = 1

    @property
    def height(self) -> int:
        """Rows of the output: few, since short runs are seldom interrupted."""
        return min(self.width, 14)

    @property
    def macs(self) -> int:
        return self.groups * self.filters * self.inputs * self.kernel**2 * self.height * self.width

    def model(self) -> ModelProto:
        """Behind a dense 1x1 convolution, which leaves the data in the layout that the runtime prefers; a network's
        first convolution, on fewer than 4 channels, reads the input itself."""
        channels = self.groups * self.inputs
        rng = np.random.default_rng(0)
        shape = (self.groups * self.filters, self.inputs, self.kernel, self.kernel)
        weight = rng.standard_normal(shape, np.float32) / math.sqrt(math.prod(shape[1:]))
        pad = self.kernel // 2
        conv = helper.make_node("Conv", ["input", "weight"], ["output"], PROBE, group=self.groups)
        conv.attribute.append(helper.make_attribute("pads", [pad] * 4))
        conv.attribute.append(helper.make_attribute("strides", [self.stride] * 2))
        nodes, tensors = [conv], [numpy_helper.from_array(weight, "weight")]
        if channels > 3:
            conv.input[0] = "lead"
            nodes.insert(0, helper.make_node("Conv", ["input", "mixing"], ["lead"], "lead"))
            tensors.append(_mixing(channels, "mixing"))
        return _model(nodes, (1, channels, self.height * self.stride, self.width * self.stride), tensors)


def concat_probe(size: int) -> ModelProto:
    """A Concat that reads and writes `size` bytes together, half of them each."""
    shape = (1, 64, size // 4 // 4 // 64)
    nodes = [
        helper.make_node("Neg", ["input"], ["a"], "first"),
        helper.make_node("Abs", ["input"], ["b"], "second"),
        helper.make_node("Concat", ["a", "b"], ["output"], PROBE, axis=1),
    ]
    return _model(nodes, shape, [])


def gather_probe(channels: int, side: int) -> ModelProto:
    """A Gather over channels between two convolutions; its output is read as it lies."""
    order = np.random.default_rng(0).permutation(channels)
    tensors = [_mixing(channels, "before"), _mixing(channels, "after"), numpy_helper.from_array(order, "order")]
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    nodes = [
        helper.make_node("Conv", ["input", "before"], ["a"], "lead"),
        helper.make_node("Gather", ["a", "order"], ["b"], PROBE, axis=1),
        helper.make_node("Conv", ["b", "after"], ["c"], "behind"),
        helper.make_node("ReduceMean", ["c", "axes"], ["output"], "mean"),
    ]
    return _model(nodes, (1, channels, side, side), [*tensors, axes])


def weights_probe() -> ModelProto:
    """Rows times matrices, one after the other, until the caches have forgotten the first: each is as fast as its
    weights come from memory."""
    rng = np.random.default_rng(0)
    values = ["input", *(f"value{number}" for number in range(1, MATRICES)), "output"]
    nodes, tensors = [], []
    for number, (source, target) in enumerate(pairwise(values)):
        weight = rng.standard_normal((MATRIX_SIDE, MATRIX_SIDE), np.float32) / MATRIX_SIDE
        tensors.append(numpy_helper.from_array(weight, f"weight{number}"))
        name = PROBE if number == MATRICES // 2 else f"node{number}"
        nodes.append(helper.make_node("Gemm", [source, f"weight{number}"], [target], name, transB=1))
    return _model(nodes, (1, MATRIX_SIDE), tensors)


def chain_probe(count: int) -> ModelProto:
    """So many convolutions that compute as good as nothing, one after the other."""
    values = ["input", *(f"value{number}" for number in range(1, count)), "output"]
    nodes = [
        helper.make_node("Conv", [source, "weight"], [target], f"node{number}")
        for number, (source, target) in enumerate(pairwise(values))
    ]
    return _model(nodes, (1, 16, 1, 1), [_mixing(16, "weight")])


def _mixing(channels: int, name: str) -> TensorProto:
    """Weight of a dense 1x1 convolution."""
    weight = np.random.default_rng(1).standard_normal((channels, channels, 1, 1), np.float32) / math.sqrt(channels)
    return numpy_helper.from_array(weight, name)


def _model(nodes: Sequence[NodeProto], shape: Sequence[int], tensors: Sequence[TensorProto]) -> ModelProto:
    source = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
    target = helper.make_tensor_value_info("output", TensorProto.FLOAT, [None] * len(shape))
    graph = helper.make_graph(nodes, "probe", [source], [target], tensors)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
