"""Blind set: cases built without knowledge of the rules that name causes, to see how these do on what they never saw.

Each expected cause follows from how the model is built and from the figures of an AVX-512 core: 192 GFLOP/s; 20 GB/s
from memory, 60 from the L2 cache; a channel block of 16, four blocks of filters at a time. Comments give times worked
out before any measurement, except where they say that layers were chosen again: those reached so much of their promise
that there was nothing to explain. Layers "alone" have no baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from cause_cases import LAYER, Case, Expected
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeprune.lowering.forms import Form
from edgeprune.lowering.layers import grouped_layers
from edgeprune.lowering.model import lower_model
from edgeprune.lowering.record import LoweringRecord, layer_choices
from edgeprune.profiling.setup import Pair

OUTSIDE = 16
"""Channels that a network takes and gives, unless the layer is at its end."""


@dataclass(frozen=True)
class Layer:
    """The layer that is examined."""

    inputs: int
    filters: int
    size: int
    """Height and width of what it reads."""
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    source: int = 0
    """Channels that a Gather in front of it takes its inputs from; 0: as many."""

    @property
    def size_out(self) -> int:
        return -(-self.size // self.stride)


Gathers = Literal["", "before", "behind", "both"]
"""Where channels are gathered."""
Network = Callable[[Layer, Gathers], ModelProto]


def cases() -> tuple[Case, ...]:
    """All of them."""
    return (
        *_off_block(),
        *_gathers(),
        *_reorders(),
        *_zeros(),
        *_part_blocks(),
        *_few_filters(),
        *_memory(),
        *_compute(),
        *_kernels(),
        *_dispatch(),
        *_threads(),
        *_fallbacks(),
        *_noise(),
    )


def _off_block() -> Iterator[Case]:
    # 20 is no multiple of 16: 730 us at 0.45 of the peak; 480 on the block; reordering 17
    yield _case("5x5, 4 groups of 20", "off-block", Layer(80, 80, 28, 5, groups=4))
    # 8 a group: 81 us at 0.2 of the peak; 25 on the block; reordering 15
    yield _case("stride 2, 14 groups of 8", "off-block", Layer(112, 112, 28, stride=2, groups=14))
    # inputs fit, filters do not: 130 us at 0.45; 75 on the block; reordering 12
    yield _case("4 groups, 32 inputs, 24 filters", "off-block", Layer(128, 96, 20, groups=4))
    # filters fit, inputs do not: 130 us at 0.45; 85 on the block; reordering 12
    yield _case("4 groups, 24 inputs, 32 filters", "off-block", Layer(96, 128, 20, groups=4))
    # 60 is no multiple of 16: 250 us at 0.4; 120 on the block; reordering 5
    yield _case("3 groups of 60", "off-block", Layer(180, 180, 10, groups=3))
    # 4 a group: 200 us at 0.12; 40 on the block; reordering 17
    yield _case("40 groups of 4", "off-block", Layer(160, 160, 20, groups=40))
    # 4 a group, as in ResNeXt: 450 us at 0.13; 90 on the block; reordering 40
    yield _case("ResNeXt block, 48 groups of 4", "off-block", Layer(192, 192, 28, groups=48), network=_residual)
    # 40 is no multiple of 16: 330 us at 0.5; 200 on the block; reordering 10
    yield _case("5x5, stride 2, 2 groups of 40", "off-block", Layer(80, 80, 28, 5, 2, 2))
    # the second of three such layers in a row: 270 us at 0.35; 140 on the block; nothing is reordered between them
    yield _case("second of three, 8 groups of 12", "off-block", Layer(96, 96, 28, groups=8), network=_stacked)
    # depthwise kernels take multiples of 4 channels: for others, slower ones take several times as long
    thin = Layer(54, 54, 28, groups=54)
    yield _case(
        "MobileNet block, depthwise, 54 of 64", "off-block", thin, Layer(64, 64, 28, groups=64), network=_mobile
    )
    thin = Layer(90, 90, 14, 5, groups=90)
    # the same: 90 is no multiple of 4
    yield _case(
        "MobileNet block, depthwise 5x5, 90 of 96", "off-block", thin, Layer(96, 96, 14, 5, groups=96), network=_mobile
    )


def _gathers() -> Iterator[Case]:
    # 123 us of arithmetic at the rate of the dense layer; Gather and what it makes the runtime reorder 57
    yield _case("Gather behind 3 groups of 64", "gather", Layer(192, 192, 28, 1, groups=3), gathers="behind")
    # 104 us of arithmetic at the dense rate; two Gathers and reordering 90
    yield _case("Gathers around 5 groups of 64", "gather", Layer(320, 320, 20, 1, groups=5), gathers="both")
    # a shortcut that reads a quarter of what the Gather moves: 82 us of arithmetic; Gather and reordering 170
    yield _case("Gather in front of a shortcut, stride 2", "gather", Layer(128, 128, 56, 1, 2, 2), gathers="before")
    # half of 256 channels are kept: 82 us of arithmetic at the dense rate; Gather and reordering 50
    kept = Layer(128, 128, 28, 1, groups=2, source=256)
    yield _case("Gather of half the channels", "gather", kept, Layer(256, 128, 28, 1), gathers="before")
    # 61 us of arithmetic at the dense rate; Gather and reordering 28
    block = Layer(384, 384, 14, 1, groups=6)
    yield _case("ResNet block, Gather in front", "gather", block, network=_residual, gathers="before")
    # the second of three layers, each with its Gather: 123 us of arithmetic at the dense rate; Gather and reordering 80
    layer = Layer(256, 256, 24, 1, groups=4)
    yield _case("second of three with Gathers", "gather", layer, network=_stacked, gathers="before")


def _reorders() -> Iterator[Case]:
    # Chosen again by their times: groups of 48 and 64, and 48 of 96 channels, came within 0.81 to 0.91 of the promise.
    # 132 us of arithmetic; reordering in front and behind 80, for the dense layer as well; fewer filters at a time: 15
    yield _case("6 groups of 32 in Softplus", "reorder", Layer(192, 192, 40, 1, groups=6), network=_between("Softplus"))
    # 46 us of arithmetic; reordering 27; fewer filters at a time: 5
    yield _case("16 groups of 32 in Cos", "reorder", Layer(512, 512, 14, 1, groups=16), network=_between("Cos"))
    # 23 us of arithmetic; reordering 14, of the dense layer 70 of 600; fewer filters at a time: 3
    thin = Layer(32, 32, 40, 1)
    yield _case("32 of 160 channels in Softsign", "reorder", thin, Layer(160, 160, 40, 1), network=_between("Softsign"))
    # the model's own input and output have no blocked layout: 92 us of arithmetic; reordering 54
    yield _case("8 groups of 32, nothing else", "reorder", Layer(256, 256, 28, 1, groups=8), network=_only)
    # channels are shuffled by Reshape and Transpose, in the plain layout: 69 us of arithmetic; reordering 40
    yield _case("ShuffleNet, 6 groups of 32", "reorder", Layer(192, 192, 28, 1, groups=6), network=_shuffled)


def _zeros() -> Iterator[Case]:
    # six times the planned arithmetic, at the rate of the dense layer
    yield _case("6 groups written as dense", "zeros", Layer(96, 96, 28, groups=6), form="dense")
    # four times the planned arithmetic, at the rate of the dense layer
    yield _case("12 groups merged to 3", "zeros", Layer(192, 192, 14, groups=12), form="merged:3")
    # 9 of 16 inputs and filters: 160 us, 110 of them zeros; Gathers that fill up 18
    yield _case("5x5, 9 padded to 16", "zeros", Layer(72, 72, 14, 5, groups=8), form="padded:16")
    # four times the planned arithmetic
    yield _case("1x1, 4 groups written as dense", "zeros", Layer(128, 128, 28, 1, groups=4), form="dense")
    # twice the planned arithmetic, at the rate of the dense layer
    yield _case("5x5, stride 2, 2 groups as dense", "zeros", Layer(64, 64, 28, 5, 2, 2), form="dense")
    # three times the planned arithmetic, at the rate of the dense layer
    yield _case("5x5, 6 groups merged to 2", "zeros", Layer(192, 192, 10, 5, groups=6), form="merged:2")


def _part_blocks() -> Iterator[Case]:
    # 36 of 48 inputs and filters: 0.56 of the arithmetic is of use; three blocks of filters instead of four: 0.95
    yield _case("36 of 64 channels", "part-block", Layer(36, 36, 20), Layer(64, 64, 20))
    # 20 of 32 inputs and filters: 0.39 of the arithmetic is of use; two blocks of filters: 0.9
    yield _case("5x5, 20 of 64 channels", "part-block", Layer(20, 20, 14, 5), Layer(64, 64, 14, 5))
    # 66 of 80 inputs and filters: 0.68 of the arithmetic is of use, and the fifth block holds two filters
    yield _case("1x1, 66 of 128 channels", "part-block", Layer(66, 66, 28, 1), Layer(128, 128, 28, 1))
    # 40 of 48 inputs and filters: 0.69 of the arithmetic is of use; three blocks of filters: 0.95
    yield _case("stride 2, 40 of 80 channels", "part-block", Layer(40, 40, 28, stride=2), Layer(80, 80, 28, stride=2))
    # 18 of 32 inputs and filters: 0.32 of the arithmetic is of use; as many blocks of filters as in the dense layer
    yield _case("ResNet block, 18 of 32", "part-block", Layer(18, 18, 28), Layer(32, 32, 28), network=_residual)
    # 35 of 48 inputs: 0.73 of the arithmetic is of use; as many filters as in the dense layer
    yield _case("35 of 64 inputs", "part-block", Layer(35, 64, 28), Layer(64, 64, 28))


def _few_filters() -> Iterator[Case]:
    # Chosen again by their times: on 20x20 and, with stride 2, on 14x14 such layers came within 0.84 to 0.96 of the
    # promise; on narrow maps there is less to do for each start of a row, which filters share.
    # one block of filters at a time: 0.65 of the peak, the dense layer has 0.87; all else fits
    yield _case("5x5, 7 groups of 16", "few-filters", Layer(112, 112, 14, 5, groups=7))
    # the same
    yield _case("10x10, 15 groups of 16", "few-filters", Layer(240, 240, 10, groups=15))
    # the same
    yield _case("14x14 to 7x7, 10 groups of 16", "few-filters", Layer(160, 160, 14, stride=2, groups=10))
    # the same without groups: 16 filters are left of 64
    yield _case("16 of 64 filters", "few-filters", Layer(256, 16, 7), Layer(256, 64, 7))
    # the same
    yield _case("ResNet block, 12 groups of 16", "few-filters", Layer(192, 192, 7, groups=12), network=_residual)


def _memory() -> Iterator[Case]:
    # 6 MB: 300 us from memory, 150 from the L3 cache; arithmetic 28 us at the peak, 52 at the rate of such kernels
    yield _case("depthwise, stride 2, 96 channels", "memory-bound", Layer(96, 96, 112, stride=2, groups=96))
    # 3.8 MB: 190 us from memory, 94 from the L3 cache; arithmetic 18 us at the peak, 38 at the rate of such kernels
    block = Layer(240, 240, 56, stride=2, groups=240)
    yield _case("MobileNet block alone, stride 2", "memory-bound", block, None, network=_mobile)
    # one multiply-add for each weight, 2 MB: 35 us at least; arithmetic 5 us
    yield Case("classifier alone, 512 to 1000", "memory-bound", lambda: Pair(None, _classifier(512, 1000)))
    # the same, 5.1 MB: 140 us at least; arithmetic 13 us
    yield Case("classifier alone, 1280 to 1000", "memory-bound", lambda: Pair(None, _classifier(1280, 1000)))
    # the same, 26 MB: 1100 us at least; arithmetic 67 us
    yield Case("linear alone, 25088 to 256", "memory-bound", lambda: Pair(None, _linear(25088, 256)))
    # one multiply-add for each weight, 4.2 MB: 115 us at least; arithmetic 11 us
    yield _case("1x1 on a pooled map alone", "memory-bound", Layer(2048, 512, 1, 1), None, network=_squeeze)
    # four multiply-adds for each weight, 4.2 MB: 115 us at least; arithmetic 44 us
    yield _case("1x1 on 2x2 alone, 1024 channels", "memory-bound", Layer(1024, 1024, 2, 1), None)


def _compute() -> Iterator[Case]:
    # hundreds of FLOP a byte, on the block, 64 and more filters: about 0.85 of the peak, bytes take a tenth
    yield _case("5x5 alone, 96 channels", "compute-bound", Layer(96, 96, 14, 5), None)
    # 85 FLOP a byte, on the block: 0.8 of the peak
    yield _case("1x1 alone, 512 to 256", "compute-bound", Layer(512, 256, 28, 1), None)
    # as the first
    yield _case("stride 2 alone, 128 to 256", "compute-bound", Layer(128, 256, 28, stride=2), None)
    # as the first
    yield _case("ResNet block alone, 192 channels", "compute-bound", Layer(192, 192, 14), None, network=_residual)
    # groups on the block with 64 filters each run as a dense layer does
    yield _case("4 groups of 64 alone", "compute-bound", Layer(256, 256, 14, groups=4), None)
    # kernels for images read three channels as they are: 0.8 of the peak; 58 FLOP a byte
    yield _case("7x7 on an image alone", "compute-bound", Layer(3, 64, 112, 7, 2), None, network=_stem)


def _kernels() -> Iterator[Case]:
    # depthwise kernels load a value for each multiply-add: 93 us; at the peak 31; bytes 10 even from memory
    yield _case("depthwise 11x11 alone", "kernel", Layer(128, 128, 14, 11, groups=128), None)
    # the same: 130 us; at the peak 43; bytes 10
    yield _case("MobileNet block alone, 13x13", "kernel", Layer(128, 128, 14, 13, groups=128), None, network=_mobile)


def _dispatch() -> Iterator[Case]:
    # 7,000 multiply-adds: 0.1 us
    yield _case("1x1 on 3x3, 3 groups of 16", "dispatch", Layer(48, 48, 3, 1, groups=3))
    # 1,024 multiply-adds, 4 kB of weights: less than 0.1 us
    yield _case("squeeze, 64 to 16", "dispatch", Layer(64, 16, 1, 1), Layer(64, 32, 1, 1), network=_squeeze)
    # 2,048 multiply-adds, 8 kB of weights: 0.1 us
    yield Case("linear, 64 to 32 of 64", "dispatch", lambda: Pair(_linear(64, 64), _linear(64, 32)))
    # eight Gathers, eight convolutions and a Concat; 9,216 multiply-adds each: 0.15 us
    yield _case("8 convolutions on 3x3", "dispatch", Layer(256, 256, 3, 1, groups=8), form="split")
    # 18,432 multiply-adds: 0.3 us
    yield _case("3x3 on 2x2, 2 groups of 16", "dispatch", Layer(32, 32, 2, groups=2))
    # 1,152 multiply-adds, 2 kB: less than 0.1 us
    yield _case("MobileNet block on 2x2", "dispatch", Layer(32, 32, 2, groups=32), Layer(32, 32, 2), network=_mobile)


def _threads() -> Iterator[Case]:
    # Chosen again by their times: with twice the arithmetic, on 7x7 and 10x10, such layers came within 0.8 to 0.98 of
    # the promise in some runs: waking took 7 to 10 us.
    # 3 us of arithmetic for both threads together, at the dense rate: waking one takes longer
    yield replace(_case("1x1 on 4x4, two threads", "threads", Layer(256, 256, 4, 1, groups=4)), threads=2)
    # 4 us of arithmetic for both threads, at the dense rate; the dense layer has 16
    thin = _case("64 of 128 on 3x3, two threads", "threads", Layer(64, 64, 3), Layer(128, 128, 3))
    yield replace(thin, threads=2)
    # 2 us of arithmetic and bytes
    yield replace(_case("depthwise on 7x7, two threads", "threads", Layer(96, 96, 7, groups=96)), threads=2)
    # 4 us of arithmetic for both threads; the dense layer has 7
    block = _case("ResNet block on 4x4, two threads", "threads", Layer(64, 64, 4, groups=2), network=_residual)
    yield replace(block, threads=2)


def _fallbacks() -> Iterator[Case]:
    # the trace names another provider for this node only
    strided = _case("5x5, stride 2, another provider", "fallback", Layer(96, 96, 28, 5, 2, 3))
    yield replace(strided, trick="fallback")
    # the same
    linear = Case(
        "linear, 600 to 300, another provider", "fallback", lambda: Pair(_linear(600, 600), _linear(600, 300))
    )
    yield replace(linear, trick="fallback")
    # the same
    block = _case("ResNet block, another provider", "fallback", Layer(64, 64, 28), Layer(96, 96, 28), network=_residual)
    yield replace(block, trick="fallback")


def _noise() -> Iterator[Case]:
    # on the block, 64 filters, at the dense rate: nothing is missing but for what the clock says, differently each turn
    # (chosen again: 64 of 128 with 5x5 gained from weights that fit the L2 cache, which hid part of what was missing)
    thin = _case("1x1, 128 of 256, restless", "noise", Layer(128, 128, 14, 1), Layer(256, 256, 14, 1))
    yield replace(thin, trick="noise")
    # the same
    block = _case("ResNet block, restless", "noise", Layer(128, 128, 20, groups=2), network=_residual)
    yield replace(block, trick="noise")
    # the same
    yield replace(_case("stride 2, 3 groups of 64, restless", "noise", Layer(192, 192, 20, 3, 2, 3)), trick="noise")


def _case(
    name: str,
    kind: Expected,
    layer: Layer,
    dense: Layer | Literal["ungrouped"] | None = "ungrouped",
    *,
    network: Network | None = None,
    gathers: Gathers = "",
    form: str = "",
) -> Case:
    """One pair: by default the layer without its groups, and the layer; both in the same surroundings."""
    place = network or _between()
    before = replace(layer, groups=1) if dense == "ungrouped" else dense

    def build() -> Pair:
        baseline = None if before is None else place(before, "")
        planned = place(layer, gathers)
        if not form:
            return Pair(baseline, planned)
        layers = layer_choices(grouped_layers(planned), {LAYER: Form.parse(form)}, {LAYER: {}})
        record = LoweringRecord("predicted", "", 1, 1, "", layers)
        kinds = {layer.name: layer.kind for layer in layers}
        return Pair(baseline, lower_model(planned, record.forms()), {}, record.planned_macs(), kinds)

    return Case(name, kind, build)


def _between(operation: str = "") -> Network:
    """Between two 1x1 convolutions, and two of these operations, which have no blocked layout."""

    def network(layer: Layer, gathers: Gathers) -> ModelProto:
        net = _Net(OUTSIDE, layer.size)
        net.conv(layer.source or layer.inputs)
        if operation:
            net.op(operation)
        net.examined(layer, gathers)
        if operation:
            net.op(operation)
        net.conv(OUTSIDE)
        return net.model()

    return network


def _stacked(layer: Layer, gathers: Gathers) -> ModelProto:
    """Between two others like it, with activations."""
    net = _Net(OUTSIDE, layer.size)
    net.conv(layer.inputs)
    for name in ("before", LAYER, "behind"):
        net.examined(layer, gathers, name)
        net.op("Relu")
    net.conv(OUTSIDE)
    return net.model()


def _only(layer: Layer, gathers: Gathers) -> ModelProto:
    """Nothing but the layer."""
    net = _Net(layer.inputs, layer.size)
    net.examined(layer, gathers)
    return net.model()


def _shuffled(layer: Layer, gathers: Gathers) -> ModelProto:
    """Between channel shuffles, as in ShuffleNet."""
    net = _Net(OUTSIDE, layer.size)
    net.conv(layer.inputs)
    net.op("Relu")
    net.shuffle(4)
    net.examined(layer, gathers)
    net.shuffle(4)
    net.conv(OUTSIDE)
    return net.model()


def _residual(layer: Layer, gathers: Gathers) -> ModelProto:
    """Behind a 3x3 convolution in a residual block, with its activations."""
    net = _Net(OUTSIDE, layer.size)
    net.conv(layer.inputs)
    net.op("Relu")
    shortcut = net.value
    net.conv(layer.inputs, 3)
    net.op("Relu")
    net.examined(layer, gathers)
    net.op("Add", shortcut)
    net.op("Relu")
    net.conv(OUTSIDE)
    return net.model()


def _mobile(layer: Layer, gathers: Gathers) -> ModelProto:
    """Between the expansion and the projection of an inverted residual."""
    net = _Net(OUTSIDE, layer.size)
    shortcut = net.value
    net.conv(layer.inputs)
    net.op("Relu")
    net.examined(layer, gathers)
    net.op("Relu")
    net.conv(OUTSIDE)
    if layer.stride == 1:
        net.op("Add", shortcut)
    return net.model()


def _squeeze(layer: Layer, gathers: Gathers) -> ModelProto:
    """On the pooled map of a squeeze-and-excitation block."""
    net = _Net(OUTSIDE, 4)
    net.conv(layer.inputs)
    excited = net.value
    net.pool()
    net.examined(layer, gathers)
    net.op("Relu")
    net.conv(layer.inputs)
    net.op("Sigmoid")
    net.op("Mul", excited)
    net.size = 4
    net.conv(OUTSIDE)
    return net.model()


def _stem(layer: Layer, gathers: Gathers) -> ModelProto:
    """On the image."""
    net = _Net(layer.inputs, layer.size)
    net.examined(layer, gathers)
    net.op("Relu")
    net.conv(OUTSIDE)
    return net.model()


def _classifier(features: int, classes: int) -> ModelProto:
    """A linear layer at the end, behind a convolution and pooling."""
    net = _Net(OUTSIDE, 7)
    net.conv(features)
    net.op("Relu")
    net.pool()
    net.linear(classes, LAYER)
    return net.model()


def _linear(inputs: int, outputs: int) -> ModelProto:
    """A linear layer in front of a small one."""
    net = _Net(inputs, 0)
    net.linear(outputs, LAYER)
    net.op("Relu")
    net.linear(10)
    return net.model()


class _Net:
    """A network that grows at its end. Size 0: it has no positions."""

    def __init__(self, channels: int, size: int) -> None:
        self.channels, self.size, self.value = channels, size, "input"
        self._input = helper.make_tensor_value_info("input", TensorProto.FLOAT, self._shape())
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []
        self._rng = np.random.default_rng(0)

    def op(self, kind: str, *others: str, name: str = "", **attributes: Any) -> None:
        made = f"value{len(self._nodes)}"
        name = name or f"{kind}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, [self.value, *others], [made], name, **attributes))
        self.value = made

    def conv(self, filters: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, name: str = "") -> None:
        weight = self._weight(filters, self.channels // groups, kernel, kernel)
        pads = [kernel // 2] * 4
        self.op("Conv", weight, name=name, group=groups, kernel_shape=[kernel] * 2, pads=pads, strides=[stride] * 2)
        self.channels, self.size = filters, -(-self.size // stride)

    def examined(self, layer: Layer, gathers: Gathers, name: str = LAYER) -> None:
        """The layer, with its Gathers."""
        if gathers in ("before", "both"):
            self._gather(layer.inputs, f"{name}.input_gather")
        self.conv(layer.filters, layer.kernel, stride=layer.stride, groups=layer.groups, name=name)
        if gathers in ("behind", "both"):
            self._gather(layer.filters, f"{name}.output_gather")

    def shuffle(self, groups: int) -> None:
        self.op("Reshape", self._integers(0, groups, self.channels // groups, self.size, self.size))
        self.op("Transpose", perm=[0, 2, 1, 3, 4])
        self.op("Reshape", self._integers(0, self.channels, self.size, self.size))

    def pool(self) -> None:
        self.op("GlobalAveragePool")
        self.size = 1

    def linear(self, outputs: int, name: str = "") -> None:
        if self.size:
            self.op("Flatten")
        self.op("Gemm", self._weight(outputs, self.channels), name=name, transB=1)
        self.channels, self.size = outputs, 0

    def model(self) -> ModelProto:
        self._nodes[-1].output[0] = "output"
        given = helper.make_tensor_value_info("output", TensorProto.FLOAT, self._shape())
        graph = helper.make_graph(self._nodes, "case", [self._input], [given], self._constants)
        return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])

    def _gather(self, kept: int, name: str) -> None:
        self.op("Gather", self._integers(*self._rng.permutation(self.channels)[:kept]), name=name, axis=1)
        self.channels = kept

    def _shape(self) -> list[int | str]:
        return ["batch", self.channels, self.size, self.size] if self.size else ["batch", self.channels]

    def _weight(self, *shape: int) -> str:
        scale = np.sqrt(np.prod(shape[1:]))
        return self._constant((self._rng.standard_normal(shape) / scale).astype(np.float32))

    def _integers(self, *values: int) -> str:
        return self._constant(np.array(values, np.int64))

    def _constant(self, values: np.ndarray) -> str:
        name = f"constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(values, name))
        return name
