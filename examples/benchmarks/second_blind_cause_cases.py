"""Second blind set: cases built after the rules that name causes were mended by the first one, and without knowledge of
them; healthy layers, which no cause must be named of, are among them.

Each expected cause follows from how the model is built and from the figures of an AVX-512 core: a peak of 192 GFLOP/s,
of which dense 3x3 layers reach 0.87 and 1x1 layers 0.82; 20 GB/s from memory, 60 from the L2 cache; a channel block of
16, four blocks of filters at a time. Comments give times worked out before any measurement. Layers "alone" have no
baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from blind_cause_cases import OUTSIDE, Gathers, Layer, Network, _between, _case, _linear, _mobile, _Net, _residual
from cause_cases import LAYER, Case
from onnx import ModelProto

from edgeprune.profiling.setup import Pair


def cases() -> tuple[Case, ...]:
    """All of them."""
    return (
        *_healthy(),
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
        *_others(),
    )


def _healthy() -> Iterator[Case]:
    # on the block, eight blocks of filters a group, like the dense layer: 1.40 ms of 2.81, half as promised
    yield _case("healthy, 2 groups of 128", "", Layer(256, 256, 20, groups=2))
    # on the block, four blocks of filters a group: 1.03 ms of 3.1, a third as promised
    yield _case("healthy, 3 groups of 64", "", Layer(192, 192, 28, groups=3))
    # whole blocks of inputs and filters, four at a time in both: 0.34 ms of 1.38, a quarter as promised
    yield _case("healthy, 64 of 128 channels", "", Layer(64, 64, 28), Layer(128, 128, 28))
    # whole blocks; the last two of six blocks of filters run at 0.9: 0.41 ms of 1.13, of which 0.40 were promised
    yield _case("healthy, 96 of 160 in a ResNet block", "", Layer(96, 96, 20), Layer(160, 160, 20), network=_residual)
    # whole blocks, four at a time in both: 164 us of 655, a quarter as promised; bytes of both from the L2 cache
    yield _case("healthy, 1x1, 128 of 256 channels", "", Layer(128, 128, 28, 1), Layer(256, 256, 28, 1))
    # on the block, four blocks of filters a group: 0.48 ms of 0.96, half as promised
    yield _case("healthy, 5x5, 2 groups of 64", "", Layer(128, 128, 14, 5, groups=2))
    # on the block, eight blocks of filters a group: 0.69 ms of 1.38, half as promised
    yield _case("healthy, stride 2, 2 groups of 128", "", Layer(256, 256, 28, stride=2, groups=2), network=_silu)


def _off_block() -> Iterator[Case]:
    # 12 is no multiple of 16: 120 us at 0.36 of the peak; 66 on the block; reordering 10
    yield _case("dilated, 8 groups of 12", "off-block", Layer(96, 96, 20, groups=8), network=_dilated)
    # 40 is no multiple of 16: 171 us at 0.59; 126 on the block; reordering 9
    yield _case("1x7, 3 groups of 40", "off-block", Layer(120, 120, 17, 7, groups=3), network=_wide)
    # 12 is no multiple of 16: 160 us at 0.36; 90 on the block; reordering 2
    yield _case("7x7, 4 groups of 12", "off-block", Layer(48, 48, 14, 7, groups=4))
    # 56 is no multiple of 16: 226 us, as 60 was measured; 132 on the block; reordering 6
    yield _case("2 groups of 56", "off-block", Layer(112, 112, 14, groups=2))
    # depthwise kernels take multiples of 4 channels: 100 us and more without them, 20 with them; reordering 10
    thin = Layer(46, 46, 28, 5, groups=46)
    yield _case(
        "SiLU block, depthwise 5x5, 46 of 48", "off-block", thin, Layer(48, 48, 28, 5, groups=48), network=_silu
    )


def _gathers() -> Iterator[Case]:
    # 245 us of arithmetic at the rate of the dense layer; Gather and what it makes the runtime reorder 110
    yield _case("Gather behind 6 groups of 64", "gather", Layer(384, 384, 28, 1, groups=6), gathers="behind")
    # 167 us of arithmetic at the dense rate; two Gathers and reordering 160
    yield _case("Gathers around 2 groups of 64", "gather", Layer(128, 128, 40, 1, groups=2), gathers="both")
    # 205 us of arithmetic at the dense rate; Gather and reordering 95
    block = Layer(320, 320, 28, 1, groups=5)
    yield _case("SiLU block, Gather in front", "gather", block, network=_silu, gathers="before")
    # a Concat keeps the blocked layout, a Gather does not: 120 us at the dense rate; Gather and reordering 57
    yield _case("Gather behind a Concat", "gather", Layer(256, 256, 24, 1, groups=4), network=_joined, gathers="before")


def _reorders() -> Iterator[Case]:
    # 90 us of arithmetic; reordering in front and behind 52, for the dense layer as well; fewer filters at a time: 10
    layer = Layer(192, 192, 32, 1, groups=6)
    yield _case("6 groups of 32 between InstanceNormalizations", "reorder", layer, network=_instance_normalized)
    # 46 us of arithmetic; reordering 27, of the dense layer 217 of 2800; fewer filters at a time: 5
    thin = Layer(32, 32, 56, 1)
    yield _case(
        "32 of 256 channels between LayerNormalizations",
        "reorder",
        thin,
        Layer(256, 256, 56, 1),
        network=_layer_normalized,
    )
    # 67 us of arithmetic; reordering 40, for the dense layer as well; fewer filters at a time: 8
    yield _case("pixel shuffles, 8 groups of 32", "reorder", Layer(256, 256, 24, 1, groups=8), network=_pixel_shuffled)


def _zeros() -> Iterator[Case]:
    # 20 of 32 inputs and filters: 546 us, 330 of them zeros; two blocks of filters at a time 55; Gathers 35
    yield _case("5x5, 20 padded to 32", "zeros", Layer(80, 80, 20, 5, groups=4), form="padded:32")
    # four times the planned arithmetic, at the rate of the dense layer
    yield _case("stride 2, 8 groups merged to 2", "zeros", Layer(256, 256, 20, 3, 2, 8), form="merged:2")
    # reads all 128 channels instead of the 32 of each group that a Gather took: four times the planned arithmetic
    gathered = Layer(96, 96, 20, groups=3, source=128)
    yield _case("3 gathered groups written as dense", "zeros", gathered, gathers="before", form="dense")


def _part_blocks() -> Iterator[Case]:
    # 24 of 32 inputs and filters: 0.56 of the arithmetic is of use; two blocks of filters: 0.9
    yield _case("5x5, 24 of 96 channels", "part-block", Layer(24, 24, 20, 5), Layer(96, 96, 20, 5))
    # 50 of 64 inputs and filters: 0.61 of the arithmetic is of use; four blocks of filters, as in the dense layer
    yield _case("50 of 64 channels", "part-block", Layer(50, 50, 28), Layer(64, 64, 28))
    # 36 of 48 inputs and filters: 0.56 of the arithmetic is of use; three blocks of filters: 0.95
    yield _case("1x1, 36 of 144 channels", "part-block", Layer(36, 36, 40, 1), Layer(144, 144, 40, 1))
    # 22 of 32 inputs and filters: 0.47 of the arithmetic is of use; two blocks of filters: 0.9
    yield _case("1x7, 22 of 64 channels", "part-block", Layer(22, 22, 28, 7), Layer(64, 64, 28, 7), network=_wide)


def _few_filters() -> Iterator[Case]:
    # one block of filters at a time: 0.65 of the peak, the dense layer has 0.87; on narrow maps 0.6; all else fits
    yield _case("9x9, 10 groups of 16", "few-filters", Layer(160, 160, 9, groups=10))
    # the same
    yield _case("7x7 on 10x10, 6 groups of 16", "few-filters", Layer(96, 96, 10, 7, groups=6))
    # the same without groups: 16 filters are left of 96
    yield _case("5x5, 16 of 96 filters", "few-filters", Layer(96, 16, 7, 5), Layer(96, 96, 7, 5))
    # the same
    yield _case("5x5, 14x14 to 7x7, 8 groups of 16", "few-filters", Layer(128, 128, 14, 5, 2, 8))


def _memory() -> Iterator[Case]:
    # one multiply-add for each weight, 19 MB: 500 us at least; arithmetic 49 us
    yield Case("linear alone, 9216 to 512", "memory-bound", lambda: Pair(None, _linear(9216, 512)))
    # 9 MB: 450 us from memory, 225 from the L3 cache; arithmetic 42 us at the peak, 80 at the rate of such kernels
    yield _case("depthwise, stride 2, 144 channels", "memory-bound", Layer(144, 144, 112, stride=2, groups=144))
    # 5 MB: 250 us from memory, 125 from the L3 cache; arithmetic 24 us at the peak, 45 at the rate of such kernels
    block = Layer(320, 320, 56, stride=2, groups=320)
    yield _case("SiLU block alone, depthwise, stride 2", "memory-bound", block, None, network=_silu)
    # four multiply-adds for each weight, 9.4 MB: 235 us at least, 470 from memory; arithmetic 98 us
    yield _case("3x3 on 2x2 alone, 512 channels", "memory-bound", Layer(512, 512, 2), None)


def _compute() -> Iterator[Case]:
    # hundreds of FLOP a byte, on the block, 64 filters: about 0.85 of the peak, bytes take a twentieth
    yield _case("7x7 alone, 64 channels", "compute-bound", Layer(64, 64, 14, 7), None)
    # the same with 128 filters
    yield _case("1x7 alone, 128 channels", "compute-bound", Layer(128, 128, 17, 7), None, network=_wide)
    # 80 FLOP a byte, on the block: 0.8 of the peak
    yield _case("SiLU block alone, 1x1, 256 to 512", "compute-bound", Layer(256, 512, 20, 1), None, network=_silu)


def _kernels() -> Iterator[Case]:
    # depthwise kernels load a value for each multiply-add, and borders are slow: 65 us; at the peak 22; bytes 10
    yield _case("depthwise 9x9 on 10x10 alone", "kernel", Layer(256, 256, 10, 9, groups=256), None)
    # the same: 70 us; at the peak 24; bytes 12
    yield _case("SiLU block alone, 11x11 on 10x10", "kernel", Layer(192, 192, 10, 11, groups=192), None, network=_silu)


def _dispatch() -> Iterator[Case]:
    # 2,304 multiply-adds, 9 kB of weights: 0.2 us
    yield Case("linear, 96 to 24 of 96", "dispatch", lambda: Pair(_linear(96, 96), _linear(96, 24)))
    # four Gathers, four convolutions and a Concat; 16,384 multiply-adds each: 0.2 us
    yield _case("4 convolutions on 4x4", "dispatch", Layer(128, 128, 4, 1, groups=4), form="split")
    # a Gather and two reorderings of 4 kB: less than 0.1 us each; 32,768 multiply-adds: 0.4 us
    yield _case("Gather on 4x4, 2 groups of 32", "dispatch", Layer(64, 64, 4, 1, groups=2), gathers="before")
    # 4,800 multiply-adds, 5 kB: 0.1 us
    tiny = Layer(48, 48, 2, 5, groups=48)
    yield _case("MobileNet block, 5x5 on 2x2", "dispatch", tiny, network=_mobile)


def _threads() -> Iterator[Case]:
    # 2 us of arithmetic for both threads together; waking one takes 7 and more
    yield replace(_case("1x1 on 5x5, two threads", "threads", Layer(192, 192, 5, 1, groups=3)), threads=2)
    # 1 us of arithmetic and bytes
    yield replace(_case("depthwise 5x5, two threads", "threads", Layer(64, 64, 7, 5, groups=64)), threads=2)
    # 1 us of arithmetic for both threads; the dense layer has 8
    thin = _case("32 of 96 on 4x4, two threads", "threads", Layer(32, 32, 4), Layer(96, 96, 4))
    yield replace(thin, threads=2)


def _others() -> Iterator[Case]:
    # the trace names another provider for this node only
    thin = _case("64 of 128, another provider", "fallback", Layer(64, 64, 28, 3, 2), Layer(128, 128, 28, 3, 2))
    yield replace(thin, trick="fallback")
    # on the block, 64 filters, at the dense rate: nothing is missing but for what the clock says, differently each turn
    yield replace(_case("stride 2, 2 groups of 64, restless", "noise", Layer(128, 128, 28, 3, 2, 2)), trick="noise")
    # the same: half of the filters
    half = _case("1x1, 128 of 256 filters, restless", "noise", Layer(256, 128, 20, 1), Layer(256, 256, 20, 1))
    yield replace(half, trick="noise")
    # the same layer in both files, and the plan says so
    yield Case("a layer that the plan left", "kept", _left)


def _left() -> Pair:
    model = _between()(Layer(96, 96, 14), "")
    return Pair(model, model, {LAYER: "its output is added to one that is not pruned"})


def _between_two(add: Callable[[_Net], None]) -> Network:
    """Between two of the same operations, with a 1x1 convolution at each end."""

    def network(layer: Layer, gathers: Gathers) -> ModelProto:
        net = _Net(OUTSIDE, layer.size)
        net.conv(layer.source or layer.inputs)
        add(net)
        net.examined(layer, gathers)
        add(net)
        net.conv(OUTSIDE)
        return net.model()

    return network


def _add_silu(net: _Net) -> None:
    value = net.value
    net.op("Sigmoid")
    net.op("Mul", value)


def _joined(layer: Layer, gathers: Gathers) -> ModelProto:
    """Behind two convolutions whose outputs are joined, as in U-Net."""
    net = _Net(OUTSIDE, layer.size)
    net.conv(layer.inputs // 2)
    net.op("Relu")
    first = net.value
    net.conv(layer.inputs // 2)
    net.op("Relu")
    net.op("Concat", first, axis=1)
    net.channels = layer.inputs
    net.examined(layer, gathers)
    net.op("Relu")
    net.conv(OUTSIDE)
    return net.model()


def _shaped(width_only: bool, dilation: int) -> Network:
    """Between two 1x1 convolutions, with a kernel of height 1, or with one whose taps are apart."""

    def network(layer: Layer, gathers: Gathers) -> ModelProto:
        net = _Net(OUTSIDE, layer.size)
        net.conv(layer.inputs)
        kernel = [1 if width_only else layer.kernel, layer.kernel]
        border = [dilation * (length // 2) for length in kernel]
        weight = net._weight(layer.filters, layer.inputs // layer.groups, *kernel)
        attributes = {"kernel_shape": kernel, "pads": border * 2, "dilations": [dilation] * 2}
        net.op("Conv", weight, name=LAYER, group=layer.groups, **attributes)
        net.channels = layer.filters
        net.conv(OUTSIDE)
        return net.model()

    return network


_wide = _shaped(width_only=True, dilation=1)
_dilated = _shaped(width_only=False, dilation=2)


def _add_instance_normalization(net: _Net) -> None:
    ones, zeros = (net._constant(values(net.channels, np.float32)) for values in (np.ones, np.zeros))
    net.op("InstanceNormalization", ones, zeros)


def _add_layer_normalization(net: _Net) -> None:
    net.op("Transpose", perm=[0, 2, 3, 1])
    net.op("LayerNormalization", net._constant(np.ones(net.channels, np.float32)), axis=-1)
    net.op("Transpose", perm=[0, 3, 1, 2])


_silu = _between_two(_add_silu)
"""As in EfficientNet."""
_instance_normalized = _between_two(_add_instance_normalization)
"""As in networks that transfer style."""
_layer_normalized = _between_two(_add_layer_normalization)
"""Over the channels, as in ConvNeXt."""


def _pixel_shuffled(layer: Layer, gathers: Gathers) -> ModelProto:
    """Between channels that become positions, and positions that become channels again."""
    net = _Net(OUTSIDE, layer.size // 2)
    net.conv(4 * layer.inputs)
    net.op("DepthToSpace", blocksize=2)
    net.channels, net.size = layer.inputs, layer.size
    net.examined(layer, gathers)
    net.op("SpaceToDepth", blocksize=2)
    net.channels, net.size = 4 * layer.filters, layer.size // 2
    net.conv(OUTSIDE)
    return net.model()
