"""INT8 where it pays: layers that the runtime computes faster in FP32 stay in it, if the whole network is then faster.

Grouped convolutions are where the two part: ONNX Runtime computes those of few channels more slowly in INT8.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from edgeprune.onnx_files.inputs import input_specs
from edgeprune.onnx_files.model import load_model, save_onnx
from edgeprune.precision.formats import Precision
from edgeprune.precision.quantization import to_int8
from edgeprune.profiling.layer_times import ModelLayers, attribute_times
from edgeprune.profiling.measurement import interleave
from edgeprune.profiling.samples import Samples
from edgeprune.profiling.setup import ProfileOptions, random_feeds
from edgeprune.runners.registry import open_runner
from edgeprune.runners.target import OpenOptions, Source, Target

SLOWER = 1.05
"""Times what it takes in FP32, from which on a layer counts as slower in INT8."""
RUNS, SECONDS = 20, 4.0
"""Of a network whose layers are timed; of whole networks in turn, at most."""


def may_mix(target: Target, options: ProfileOptions) -> bool:
    """Whether layers of it may stay in FP32: it is given an ONNX file, and tells the times of layers."""
    is_asked = options.precision == "int8" and options.fp32_where_faster
    return is_asked and target.tells_layers and target.int8_format == "onnx"


def with_faster_layers(
    target: Target, full: Path, eight: Path, options: ProfileOptions, samples: Samples
) -> tuple[Path, tuple[str, ...]]:
    """The network in INT8 with the layers in FP32 that are faster in it on the target, beside `eight`, and their names;
    `eight` itself and none where that makes the whole network no faster.

    `full`: the network in FP32.
    """
    in_full, in_eight = _layer_ms(target, full, full, "fp32", options), _layer_ms(target, eight, full, "int8", options)
    slower = tuple(name for name, ms in in_eight.items() if name in in_full and ms > SLOWER * in_full[name])
    if not slower:
        return eight, ()
    mixed = eight.with_name(f"{eight.name.removesuffix('.onnx')}-{target.name}.onnx")
    model = to_int8(
        load_model(full), samples.calibrate, symmetric=target.symmetric, bits=options.weight_bits, fp32_layers=slower
    )
    save_onnx(model, mixed)
    return (mixed, slower) if _is_faster(target, mixed, eight, options) else (eight, ())


def _layer_ms(
    target: Target, path: Path, full: Path, precision: Precision, options: ProfileOptions
) -> dict[str, float]:
    """Milliseconds of each layer by its name in the network in FP32; Gathers and reordering for it are its own."""
    batch, model = options.batch_sizes[0], load_model(full)
    with closing(open_runner(target.name, Source(path), OpenOptions(options.run_options(), precision))) as runner:
        values = random_feeds(input_specs(model), batch, options.seed)
        nodes = runner.profile_nodes(dict(zip(runner.input_names, values, strict=True)), RUNS)
        original = {node.name: runner.original_node(node.name) for node in nodes}
    times, _ = attribute_times(nodes, original, ModelLayers.of(model, batch).owners)
    return {name: time.total for name, time in times.items()}


def _is_faster(target: Target, mixed: Path, eight: Path, options: ProfileOptions) -> bool:
    how = OpenOptions(options.run_options(), "int8")
    with (
        closing(open_runner(target.name, Source(mixed), how)) as first,
        closing(open_runner(target.name, Source(eight), how)) as second,
    ):
        values = random_feeds(input_specs(load_model(eight)), options.batch_sizes[0], options.seed)
        calls = {
            name: runner.prepared(dict(zip(runner.input_names, values, strict=True)))
            for name, runner in (("mixed", first), ("int8", second))
        }
        taken = interleave(calls, warmup=3, iterations=200, time_limit_s=SECONDS)
    return taken["mixed"].p50_ms < taken["int8"].p50_ms
