"""How much faster a network in groups is in INT8 than its dense baseline in FP32, on each runtime, in one run.

    python examples/benchmarks/int8_ratio.py BUNDLE [SECONDS] [--data D]

BUNDLE is one of `edgeprune export`. Without --data INT8 is calibrated on random inputs: the times are right all the
same. Prints, for each target, medians and the median over all rounds of dense FP32's time over its own.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from edgeprune.onnx_files.inputs import input_specs
from edgeprune.onnx_files.model import load_model
from edgeprune.profiling.measurement import interleave, median_interval, paired_ratios, warm_up
from edgeprune.profiling.precise_models import precise_models
from edgeprune.profiling.samples import load_samples
from edgeprune.profiling.setup import ProfileOptions, random_feeds
from edgeprune.profiling.subject import Subject
from edgeprune.runners.registry import open_runner, target_named
from edgeprune.runners.target import OpenOptions, Source

TARGETS = ("cpu", "openvino-native", "litert")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("seconds", type=float, nargs="?", default=120)
    parser.add_argument("--data", default="")
    given = parser.parse_args()
    subject, options = Subject.of(given.bundle), ProfileOptions(precision="int8")
    model = load_model(subject.pruned)
    samples = load_samples(model, given.data, 0)
    values = random_feeds(input_specs(model), 1, 0)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        precise = precise_models(subject.files_for, {}, TARGETS, options, samples, Path(folder))
        runs: dict[str, Callable[[], object]] = {}
        for name in TARGETS:
            for precision, files in (("fp32", subject.files_for(target_named(name))), ("int8", precise.files[name])):
                for which, path in files.items():
                    runner = open_runner(name, Source(path), OpenOptions(options.run_options(), precision))
                    stack.callback(runner.close)
                    feeds = dict(zip(runner.input_names, values, strict=True))
                    runs[f"{name} {precision} {which}"] = runner.prepared(feeds)
        warm_up(runs, time_limit_s=given.seconds / 4)
        taken = interleave(runs, warmup=0, iterations=10_000, time_limit_s=given.seconds)
    for warning in precise.warnings:
        print("note:", warning)
    for key, measured in taken.items():
        ratios = paired_ratios(taken[f"{key.split()[0]} fp32 dense"], measured)
        low, high = median_interval(ratios)
        print(f"{key:32} {measured.p50_ms:8.2f} ms  {median(ratios):5.2f}x  ({low:.2f}-{high:.2f}, {measured.n} runs)")


if __name__ == "__main__":
    main()
