"""Pairs of small networks of which one layer is slower than promised for exactly one reason, that is known.

Each network is a 1x1 convolution, what is examined, and another 1x1 convolution, so that layouts are those within a
network. The layer that is examined is named `layer`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeprune.lowering.forms import GROUPED, Form
from edgeprune.lowering.layers import grouped_layers
from edgeprune.lowering.model import lower_model
from edgeprune.lowering.record import LoweringRecord, layer_choices
from edgeprune.profiling.explaining.causes import Kind
from edgeprune.profiling.setup import Pair

LAYER = "layer"
Expected = Kind | Literal[""]
"""The cause that must be named; empty: none, because the layer is as fast as promised."""


@dataclass(frozen=True)
class Conv:
    """The convolution that is examined, as it was and as it is pruned."""

    channels: int
    size: int
    """Height and width."""
    groups: int = 1
    kernel: int = 3
    filters: int = 0
    """0: as many as `channels`."""

    @property
    def out(self) -> int:
        return self.filters or self.channels


@dataclass(frozen=True)
class Case:
    """One pair, and the cause that its layer must be given, if any."""

    name: str
    kind: Expected
    build: Callable[[], Pair]
    threads: int = 1
    trick: Literal["", "fallback", "noise"] = ""
    """What no model brings about: another provider's name on the layer, or times that vary."""


def cases() -> tuple[Case, ...]:
    """All of them: every kind of cause that can be built, in several sizes."""
    return (
        *_off_block(),
        *_gathers(),
        *_forms(),
        *_kernels(),
        *_memory(),
        *_small(),
        *_alone(),
        Case("grouped, another provider ran it", "fallback", _pruned(Conv(128, 14, 2)), trick="fallback"),
        Case("linear, another provider ran it", "fallback", _linear(1024, 512), trick="fallback"),
        Case("grouped, on a restless machine", "noise", _pruned(Conv(128, 14, 2)), trick="noise"),
    )


def _off_block() -> Iterator[Case]:
    for channels, groups, size in ((64, 8, 28), (128, 32, 14), (96, 8, 14), (144, 4, 14), (72, 2, 28)):
        conv = Conv(channels, size, groups)
        yield Case(f"{channels // groups} channels a group", "off-block", _pruned(conv))


def _gathers() -> Iterator[Case]:
    for channels, groups, size in ((256, 4, 28), (128, 2, 56), (512, 8, 14)):
        conv = Conv(channels, size, groups, kernel=1)
        yield Case(f"Gather in front of {channels} channels", "gather", _pruned(conv, gather=True))
    for channels, groups, size in ((128, 4, 28), (64, 2, 28)):
        conv = Conv(channels, size, groups, kernel=1)
        yield Case(
            f"{channels} channels between operations in another layout",
            "reorder",
            _pruned(conv, around="Sin"),
        )


def _forms() -> Iterator[Case]:
    for form, channels, groups in (("dense", 128, 4), ("merged:2", 128, 8), ("padded:16", 64, 8), ("dense", 64, 8)):
        conv = Conv(channels, 14, groups)
        yield Case(f"{groups} groups written as {form}", "zeros", _pruned(conv, form=Form.parse(form)))


def _kernels() -> Iterator[Case]:
    for channels, filters, size in ((64, 24, 28), (128, 20, 14), (64, 34, 14)):
        conv = Conv(channels, size, filters=filters)
        yield Case(f"{filters} filters", "part-block", _pruned(conv, dense_filters=4 * filters // 16 * 16))
    for channels, groups, size in ((256, 16, 7), (320, 20, 7)):
        yield Case(f"16 filters in each of {groups} groups", "few-filters", _pruned(Conv(channels, size, groups)))


def _memory() -> Iterator[Case]:
    for channels, size in ((32, 56), (64, 28)):
        conv = Conv(channels, size, channels)
        yield Case(f"depthwise, {channels} channels", "memory-bound", _pruned(conv))


def _small() -> Iterator[Case]:
    for channels, groups, size in ((64, 4, 4), (32, 2, 4), (128, 8, 2)):
        conv = Conv(channels, size, groups, kernel=1)
        yield Case(f"1x1 on {size}x{size}, {channels} channels", "dispatch", _pruned(conv))
    yield Case("16 small convolutions", "dispatch", _pruned(Conv(256, 4, 16, kernel=1), form=Form.parse("split")))
    for channels, groups, size in ((64, 4, 14), (128, 8, 7)):
        yield Case(f"{channels} channels, two threads", "threads", _pruned(Conv(channels, size, groups)), threads=2)


def _alone() -> Iterator[Case]:
    """Without a baseline: what bounds the layer."""
    for inputs, outputs in ((2048, 2048), (4096, 1024)):
        build = _linear(inputs, outputs, with_dense=False)
        yield Case(f"linear, {inputs} to {outputs}", "memory-bound", build)
    build = _pruned(Conv(256, 56, 256), with_dense=False)
    yield Case("depthwise alone, 256 channels", "memory-bound", build)
    for channels, size in ((128, 14), (64, 28)):
        build = _pruned(Conv(channels, size), with_dense=False)
        yield Case(f"{channels} channels alone", "compute-bound", build)


def _pruned(
    conv: Conv,
    *,
    gather: bool = False,
    form: Form = GROUPED,
    around: str = "",
    dense_filters: int = 0,
    with_dense: bool = True,
) -> Callable[[], Pair]:
    def build() -> Pair:
        dense = Conv(conv.channels, conv.size, 1, conv.kernel, dense_filters or conv.out)
        planned = _network(conv, gather=gather, around=around)
        before = _network(dense, around=around) if with_dense else None
        if form == GROUPED:
            return Pair(before, planned)
        layers = layer_choices(grouped_layers(planned), {LAYER: form}, {LAYER: {}})
        record = LoweringRecord("predicted", "", 1, 1, "", layers)
        kinds = {layer.name: layer.kind for layer in layers}
        return Pair(before, lower_model(planned, record.forms()), {}, record.planned_macs(), kinds)

    return build


def _network(conv: Conv, *, gather: bool = False, around: str = "") -> ModelProto:
    """1x1 convolution, the layer (with its Gather, between operations that have no blocked layout), 1x1 convolution."""
    rng, numbers = np.random.default_rng(0), itertools.count()
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []

    def add(op: str, source: str, *inputs: str, name: str = "", **attributes: object) -> str:
        value = f"value{next(numbers)}"
        nodes.append(helper.make_node(op, [source, *inputs], [value], name or f"{op}_{value}", **attributes))
        return value

    def convolve(source: str, name: str, shape: Sequence[int], groups: int = 1) -> str:
        fan_in = int(np.prod(shape[1:]))
        weight = (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
        constants.append(numpy_helper.from_array(weight, f"{name}.weight"))
        kernel = shape[-1]
        return add(
            "Conv", source, f"{name}.weight", name=name, group=groups, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4
        )

    value = convolve("input", "first", (conv.channels, 16, 1, 1))
    if around:
        value = add(around, value)
    if gather:
        constants.append(numpy_helper.from_array(rng.permutation(conv.channels).astype(np.int64), "index"))
        value = add("Gather", value, "index", name=f"{LAYER}.input_gather", axis=1)
    shape = (conv.out, conv.channels // conv.groups, conv.kernel, conv.kernel)
    value = convolve(value, LAYER, shape, conv.groups)
    if around:
        value = add(around, value)
    convolve(value, "last", (16, conv.out, 1, 1))
    return _model(nodes, constants, ["batch", 16, conv.size, conv.size], ["batch", 16, conv.size, conv.size])


def _linear(inputs: int, outputs: int, *, with_dense: bool = True) -> Callable[[], Pair]:
    """A linear layer alone, thinner than it was."""

    def network(width: int) -> ModelProto:
        weight = np.random.default_rng(0).standard_normal((width, inputs)).astype(np.float32)
        tail = np.ones((8, width), np.float32)
        constants = [numpy_helper.from_array(weight, f"{LAYER}.weight"), numpy_helper.from_array(tail, "last.weight")]
        nodes = [
            helper.make_node("Gemm", ["input", f"{LAYER}.weight"], ["hidden"], LAYER, transB=1),
            helper.make_node("Gemm", ["hidden", "last.weight"], ["value"], "last", transB=1),
        ]
        return _model(nodes, constants, ["batch", inputs], ["batch", 8])

    return lambda: Pair(network(2 * outputs) if with_dense else None, network(outputs))


def _model(
    nodes: list[NodeProto], constants: list[TensorProto], taken: Sequence[int | str], given: Sequence[int | str]
) -> ModelProto:
    nodes[-1].output[0] = "output"
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, taken)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, given)],
        constants,
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def millisecond_model() -> ModelProto:
    """About a millisecond of convolutions on one core."""
    return _network(Conv(256, 14))
