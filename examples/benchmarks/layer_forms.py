"""What is left of a grouped layer's promise in the best form: alone, in its place, and beside its roofline bound.

edgeprune tune out --no-cache
python examples/benchmarks/layer_forms.py out layer1.1.conv2 layer2.1.conv2 layer3.1.conv2 layer4.1.conv1

Alone: one network a form, of this layer only, in turn on random inputs, one thread. In place: what the tuning of the
bundle measured (lowering.json). Bound: multiply-adds of the plan at the machine's fastest rate, or its bytes at the
memory's, whichever takes longer. Without names of layers, all are measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import roofline
from onnx import ModelProto, TensorProto, helper

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.names import LOWERING, MODEL, PLAIN_MODEL
from edgeprune.devices.this_machine import this_machine_block
from edgeprune.errors import unknown_name
from edgeprune.lowering.forms import DENSE, GROUPED, Form, candidate_forms
from edgeprune.lowering.layers import GroupedLayer, grouped_layers
from edgeprune.lowering.record import LayerChoice, load_lowering
from edgeprune.lowering.writing import lower
from edgeprune.onnx_files.model import load_model
from edgeprune.profiling.measurement import interleave
from edgeprune.profiling.profiler import TimedOrtRunner
from edgeprune.runners.base import RunOptions

HEADS = (
    "layer",
    "alone: dense ms",
    "planned",
    "best",
    "form",
    "in place: dense ms",
    "planned",
    "best",
    "form",
    "bound",
)


def alone(layer: GroupedLayer, form: Form) -> ModelProto:
    """A network of this layer only."""
    lowered = lower(layer, form)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *shape])
        for name, shape in ((layer.source, layer.source_shape), (layer.output, layer.output_shape))
    ]
    graph = helper.make_graph(list(lowered.nodes), "layer", ends[:1], ends[1:], list(lowered.initializers))
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def times_alone(layer: GroupedLayer, block: int) -> dict[str, float]:
    """Form -> milliseconds."""
    values = np.random.default_rng(0).standard_normal((1, *layer.source_shape)).astype(np.float32)
    with ExitStack() as stack:
        runs = {}
        for form in candidate_forms(layer, block):
            runner = TimedOrtRunner(alone(layer, form), RunOptions(spinning=False))
            stack.callback(runner.close)
            runs[str(form)] = runner.prepared({layer.source: values})
        return {form: taken.p50_ms for form, taken in interleave(runs, warmup=5, iterations=60).items()}


def row(name: str, taken: dict[str, float], choice: LayerChoice, bound_ms: float) -> tuple[str, ...]:
    cells = [name]
    for times in (taken, choice.costs):
        best = min(times, key=lambda form: times[form])
        dense = times[str(DENSE)]
        shares = (f"{times[form] / dense:.2f}" for form in (str(GROUPED), best))
        cells += [f"{dense:.2f}", *shares, best]
    return (*cells, f"{bound_ms / choice.costs[str(DENSE)]:.2f}")


def rows(bundle: Path, wanted: Sequence[str]) -> Iterator[tuple[str, ...]]:
    opened, block = open_bundle(bundle), this_machine_block()
    plain = opened.path(PLAIN_MODEL if opened.has(PLAIN_MODEL) else MODEL)
    layers = grouped_layers(load_model(plain))
    choices = {choice.name: choice for choice in load_lowering(opened.path(LOWERING)).layers}
    roof = roofline.measure_roofline(1, block)
    for name in wanted or layers:
        if name not in layers:
            raise unknown_name("grouped layer", name, layers)
        layer = layers[name]
        bound = roof.bound_ms(alone(layer, GROUPED), 1)
        yield row(name, times_alone(layer, block), choices[name], bound)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="tuned")
    parser.add_argument("layers", nargs="*", help="all by default")
    asked = parser.parse_args(arguments)
    print(f"| {' | '.join(HEADS)} |", f"|{'---|' * len(HEADS)}", sep="\n")
    for cells in rows(asked.bundle, asked.layers):
        print(f"| {' | '.join(cells)} |", flush=True)
    print("\nTimes of forms and the bound are shares of the dense layer's; the bound of that in place.")


if __name__ == "__main__":
    main()
