"""The roofline of this machine, measured in ONNX Runtime, and the time that it leaves a network at least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise

import msgspec
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeprune.io.arrays import Array
from edgeprune.profiling.layer_times import ModelLayers
from edgeprune.profiling.measurement import interleave
from edgeprune.profiling.profiler import TimedOrtRunner
from edgeprune.runners.base import RunOptions

CHANNEL_BLOCKS, SIZE, CHAIN = 16, 28, 4
"""Channels (in blocks of the processor), height and width of the convolutions, and how many follow each other: the
runtime reorders its data in front of the first and behind the last, which is not their rate."""
ELEMENTS = 2**24
"""Of the tensor that is copied through an elementwise operation: 64 MB, more than a cache holds."""


class Roofline(msgspec.Struct, frozen=True):
    """What this machine does at most with so many threads."""

    threads: int
    macs_per_s: float
    bytes_per_s: float

    def bound_ms(self, model: ModelProto, batch: int) -> float:
        """Milliseconds that the layers with multiply-adds need at least, each for its arithmetic or its memory.

        Weights, inputs and outputs are taken to come from memory and to go there, also where a cache could hold them.
        """
        layers = ModelLayers.of(model, batch).layers
        seconds = (max(layer.macs / self.macs_per_s, layer.bytes_moved / self.bytes_per_s) for layer in layers)
        return math.fsum(seconds) * 1e3


def measure_roofline(threads: int, block: int, *, runs: int = 40) -> Roofline:
    """The fastest of several runs counts: other programs only ever make them slower."""
    channels = CHANNEL_BLOCKS * block
    macs = CHAIN * 9 * channels**2 * SIZE**2
    convolutions = _seconds(_convolutions(channels), np.zeros((1, channels, SIZE, SIZE), np.float32), threads, runs)
    elementwise = _seconds(_elementwise(), np.ones(ELEMENTS, np.float32), threads, runs)
    return Roofline(threads, macs / convolutions, 2 * 4 * ELEMENTS / elementwise)


def _seconds(model: ModelProto, values: Array, threads: int, runs: int) -> float:
    with closing(TimedOrtRunner(model, RunOptions(threads=threads, spinning=False))) as runner:
        run = runner.prepared({"input": values})
        return min(interleave({"run": run}, warmup=3, iterations=runs)["run"].seconds)


def _convolutions(channels: int) -> ModelProto:
    weight = np.random.default_rng(0).standard_normal((channels, channels, 3, 3)).astype(np.float32) / channels
    values = ["input", *(f"value{number}" for number in range(1, CHAIN)), "output"]
    nodes = [
        helper.make_node("Conv", [source, "weight"], [target], name=target, pads=[1, 1, 1, 1])
        for source, target in pairwise(values)
    ]
    return _model(nodes, (1, channels, SIZE, SIZE), [numpy_helper.from_array(weight, "weight")])


def _elementwise() -> ModelProto:
    return _model([helper.make_node("Relu", ["input"], ["output"])], (ELEMENTS,), [])


def _model(nodes: Sequence[NodeProto], shape: Sequence[int], initializers: Sequence[TensorProto]) -> ModelProto:
    source, target = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "output"))
    graph = helper.make_graph(nodes, "roofline", [source], [target], initializers)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
