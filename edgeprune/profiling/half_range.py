"""Whether FP16 can hold what a network computes: the largest value that each of its nodes gave on real inputs.

A run on a processor proves nothing about it: ONNX Runtime and OpenVINO compute FP16 files in FP32 there, and hide what
would overflow on the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, TensorProto, helper

from edgeprune.errors import GateError
from edgeprune.io.arrays import Feeds
from edgeprune.io.formatting import some
from edgeprune.onnx_files.constants import constants
from edgeprune.onnx_files.inputs import static_batch
from edgeprune.onnx_files.shapes import concrete_types
from edgeprune.profiling.samples import rebatched
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner

LARGEST = 65504.0
"""FP16's largest number."""
NEAR = 0.25
"""Share of it above which a node is named: other inputs may well give four times as much."""


def largest_values(model: ModelProto, batches: Sequence[Feeds]) -> dict[str, float]:
    """Node -> the largest absolute value of its results in FP32, over all of the inputs; infinite where one is none."""
    types = concrete_types(model, static_batch(model) or 1)
    ranks = {
        name: len(shape) for name, (shape, kind) in types.items() if shape is not None and kind == TensorProto.FLOAT
    }
    fixed, given = constants(model), {output.name for output in model.graph.output}
    told = [
        (name, node.name) for node in model.graph.node for name in node.output if name in ranks and name not in fixed
    ]
    shown = ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * ranks[name])
        for name, _ in told
        if name not in given
    )
    found = dict.fromkeys((node for _, node in told), 0.0)
    with OrtRunner(shown, RunOptions()) as runner:
        for feeds in batches:
            values = runner.run(feeds)
            for name, node in told:
                largest = float(np.abs(values[name]).max(initial=0.0))
                found[node] = max(found[node], largest if np.isfinite(largest) else np.inf)
    return found


def half_remarks(network: str, model: ModelProto, batches: Sequence[Feeds], batch: int, told: str) -> tuple[str, ...]:
    """A sentence on the nodes whose values come near FP16's largest number on these inputs (run in batches of so many,
    and called `told`); empty where none does. GateError where one is beyond it."""
    values = largest_values(model, rebatched(batches, batch))
    return range_remarks(network, values, told)


def range_remarks(network: str, values: Mapping[str, float], told: str) -> tuple[str, ...]:
    """As `half_remarks`, of values that are known."""
    beyond = [f"{name} ({value:.3g})" for name, value in values.items() if value > LARGEST]
    if beyond:
        raise GateError(
            f"{network} does not fit into FP16: on {told} {len(beyond)} of its nodes give more than {LARGEST:g}: "
            f"{some(beyond)}"
        )
    near = [f"{name} ({value:.3g})" for name, value in values.items() if value > NEAR * LARGEST]
    if not near:
        return ()
    return (
        f"{network}: on {told} {len(near)} of its nodes give more than a quarter of what FP16 holds ({LARGEST:g}), "
        f"which other inputs may exceed: {some(near)}",
    )
