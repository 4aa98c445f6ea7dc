"""The small ONNX models that calibration times: each has one node of interest, called `PROBE`, in the middle of others,
so that it finds its data as a node of a network does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeprune.devices.figures import KernelKind

Varied = Literal["filters", "width", "depth"]
PROBE = "probe"
WIDTHS, WIDTH = (7, 14, 28, 56), 28
"""Columns of output that are tried, and those that convolutions have where something else is varied."""
MATRICES, MATRIX_SIDE = 48, 1024
"""192 MiB of weights together: so much more than caches hold that little of it stays there from run to run."""


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
    height: int = 14
    """Rows of the output: few, since short runs are seldom interrupted."""
    stride: int = 1

    @property
    def macs(self) -> int:
        return self.groups * self.filters * self.inputs * self.kernel**2 * self.height * self.width

    def model(self) -> ModelProto:
        """Behind another convolution, which leaves the data in the layout that the runtime prefers; a network's first,
        on fewer than 4 channels, reads the input itself."""
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
            nodes.insert(0, helper.make_node("Conv", ["input", "scale"], ["lead"], "lead", group=channels))
            tensors.append(numpy_helper.from_array(np.ones((channels, 1, 1, 1), np.float32), "scale"))
        return _model(nodes, (1, channels, self.height * self.stride, self.width * self.stride), tensors)


def conv_probes(block: int) -> dict[tuple[KernelKind, Varied, int], ConvProbe]:
    """Every kind of convolution, by filters a group, by columns of the output, and by multiply-adds of one output.

    Of each the two others stay as they are. For (kind, what is varied, its value).
    """
    unit = max(block, 4)  # where any number of channels is fast, shapes still have to be of a usual size
    found: dict[tuple[KernelKind, Varied, int], ConvProbe] = {}
    for filters in (unit, 2 * unit, 4 * unit, 8 * unit):
        groups = max(4 * unit // filters, 1)
        found["spatial", "filters", filters] = ConvProbe(groups, 4 * unit, filters, WIDTH)
        found["pointwise", "filters", filters] = ConvProbe(groups, 16 * unit, filters, WIDTH, 1)
    for inputs in (unit, 4 * unit):
        found["spatial", "depth", 9 * inputs] = ConvProbe(4 * unit // inputs, inputs, 4 * unit, WIDTH)
    for inputs in (unit, 2 * unit, 4 * unit, 16 * unit):
        found["pointwise", "depth", inputs] = ConvProbe(16 * unit // inputs, inputs, 4 * unit, WIDTH, 1)
    for width in WIDTHS:
        count = WIDTHS[-1] ** 2 // width**2  # narrower, so more of them: short times are told badly
        found["spatial", "width", width] = ConvProbe(max(count // 8, 1), 4 * unit, 4 * unit, width)
        found["pointwise", "width", width] = ConvProbe(count, 4 * unit, 4 * unit, width, 1)
        found["depthwise", "width", width] = ConvProbe(8 * unit * WIDTHS[-1] // width, 1, 1, width, height=width)
    found["depthwise", "filters", 1] = found["depthwise", "width", WIDTH]
    for kernel in (3, 7):
        found["image", "depth", 3 * kernel**2] = ConvProbe(1, 3, 4 * unit, 2 * WIDTH, kernel, stride=2)
    found["image", "filters", 4 * unit] = ConvProbe(1, 3, 4 * unit, 2 * WIDTH, 7, stride=2)
    return found | (_off_block_probes(unit) if block > 1 else {})


def _off_block_probes(unit: int) -> dict[tuple[KernelKind, Varied, int], ConvProbe]:
    """The same of convolutions whose channels miss the block. Their groups are matrix products, one by one, so that it
    matters how many positions each has."""
    half, deep = unit // 2, unit * 9 // 4
    found: dict[tuple[KernelKind, Varied, int], ConvProbe] = {}
    kinds: tuple[tuple[KernelKind, int, int], ...] = (("off_block", 3, 2), ("off_block_pointwise", 1, 8))
    for kind, kernel, groups in kinds:
        for filters in sorted({max(unit * eighths // 8, 1) for eighths in (1, 2, 4, 6, 12, 20)}):
            found[kind, "filters", filters] = ConvProbe(groups, deep, filters, WIDTH, kernel, height=WIDTH)
        for inputs in sorted({max(unit // 8, 1), half, deep}):
            found[kind, "depth", inputs * kernel**2] = ConvProbe(groups, inputs, half, WIDTH, kernel, height=WIDTH)
        for width in WIDTHS:
            count = max(groups * WIDTH**2 // width**2, 2)
            found[kind, "width", width] = ConvProbe(count, half, half, width, kernel, height=width)
    for width in WIDTHS:
        channels = 2 * unit * WIDTHS[-1] // width - 2
        found["off_block_depthwise", "width", width] = ConvProbe(channels, 1, 1, width, height=width)
    found["off_block_depthwise", "filters", 1] = found["off_block_depthwise", "width", WIDTH]
    return found


def without_probe(model: ModelProto) -> ModelProto:
    """The same model without the node of interest: what it was given goes where its result went, or out."""
    found = ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    nodes = list(graph.node)
    place = next(place for place, node in enumerate(nodes) if node.name == PROBE)
    probe = nodes.pop(place)
    given, made = probe.input[0], probe.output[0]
    for node in nodes:
        node.input[:] = [given if name == made else name for name in node.input]
    if made == graph.output[0].name:
        last = next(node for node in nodes if given in node.output)
        last.output[:] = [made]
        for node in nodes:
            node.input[:] = [made if name == given else name for name in node.input]
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return found


def concat_probe(size: int) -> ModelProto:
    """A Concat that reads and writes `size` bytes together, half of them each."""
    shape = (1, 64, size // 4 // 4 // 64)
    nodes = [
        helper.make_node("Neg", ["input"], ["a"], "first"),
        helper.make_node("Abs", ["input"], ["b"], "second"),
        helper.make_node("Concat", ["a", "b"], ["output"], PROBE, axis=1),
    ]
    return _model(nodes, shape, [])


def gather_probe(size: int) -> ModelProto:
    """A Gather over channels that reads and writes `size` bytes together, between convolutions that read and write the
    same: what the runtime reorders, it reorders in tensors of this size. The output is read as it lies."""
    side = 32
    channels = size // 8 // side**2
    rng = np.random.default_rng(0)
    scale = numpy_helper.from_array(np.ones((channels, 1, 1, 1), np.float32), "scale")
    order = numpy_helper.from_array(rng.permutation(channels), "order")
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    nodes = [
        helper.make_node("Conv", ["input", "scale"], ["a"], "lead", group=channels),
        helper.make_node("Gather", ["a", "order"], ["b"], PROBE, axis=1),
        helper.make_node("Conv", ["b", "scale"], ["c"], "behind", group=channels),
        helper.make_node("ReduceMean", ["c", "axes"], ["output"], "mean"),
    ]
    return _model(nodes, (1, channels, side, side), [scale, order, axes])


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
