"""How long a whole `edgeprune export` takes, beside another build's where one is given, and where its time goes.

python examples/benchmarks/export_time.py [--against PATH/TO/edgeprune] [--repeats 3] [--threads 1] [-- FLAGS]

FLAGS are those of `edgeprune export`, by default a ResNet-50 with random weights in 4 groups. Both builds take turns.
Printed are the medians of the time on the clock and on the processors, their ratios, and one run's parts; a part holds
those that are indented under it.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

FLAGS = ["--arch", "torchvision:resnet50", "--random-init", "--method", "gconv", "--groups", "4"]
PARTS = {
    "prune": "edgeprune.pruning.pruned.prune_network",
    "trace": "edgeprune.tracing.trace.trace",
    "rewrite": "edgeprune.rewriting.rewrite.rewrite",
    "save weights": "edgeprune.pruning.pruned.save_weights",
    "fold": "edgeprune.rewriting.fold.fold",
    "to ONNX": "edgeprune.exporters.to_onnx.to_onnx",
    "capture": "edgeprune.exporters.decomposed.decomposed",
    "simplify": "edgeprune.exporters.to_onnx._simplified",
    "masked reference": "edgeprune.rewriting.rewrite.masked",
    "float64 reference": "edgeprune.deployment.exporting._references",
    "save ONNX": "edgeprune.onnx_files.model.save_onnx",
    "parity": "edgeprune.deployment.parity.measure_parity",
    "lower": "edgeprune.deployment.lower_bundle.lower_into",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="the `edgeprune` of another build")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("flags", nargs="*", default=FLAGS, help="of `edgeprune export`")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(
        options.threads
    )  # for the commands and, since torch is not loaded yet, for here
    commands = {"this build": [sys.executable, "-m", "edgeprune.cli"]}
    if options.against:
        commands["the other"] = [options.against]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        out = ["-o", f"{folder}/out", "--overwrite", "--quiet"]
        for _ in range(options.repeats):
            for name, command in commands.items():
                found[name].append(timed([*command, "export", *options.flags, *out]))
        medians = {
            name: [statistics.median(figures) for figures in zip(*runs, strict=True)] for name, runs in found.items()
        }
        for name, (clock, processors) in medians.items():
            print(
                f"{name:12} {clock:6.2f} s on the clock, {processors:6.2f} s on the processors, {options.repeats} runs"
            )
        if options.against:
            clock, processors = (mine / its for mine, its in zip(*medians.values(), strict=True))
            print(f"{'ratio':12} {clock:6.2f} on the clock, {processors:8.2f} on the processors")
        print_parts([*options.flags, *out])


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds on the clock and on the processors of one command."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    clock, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def print_parts(flags: list[str]) -> None:
    """Where the time of a run inside this process goes; what is imported on the way is a part of its own."""
    started, seconds, inside = time.process_time(), dict[str, float](), list[str]()
    for place in PARTS.values():
        importlib.import_module(place.rpartition(".")[0])
    for package in ("torchvision", "onnxsim", "onnxscript", "torch.export._trace"):
        importlib.import_module(package)
    print(f"{time.process_time() - started:6.2f} s importing")

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def watching(*args: Any, **kwargs: Any) -> Any:
            inside.append(name)
            path, begun = " / ".join(inside), time.process_time()
            seconds.setdefault(path, 0.0)
            try:
                return function(*args, **kwargs)
            finally:
                seconds[path] += time.process_time() - begun
                inside.pop()

        return watching

    for name, place in PARTS.items():
        function = getattr(importlib.import_module(place.rpartition(".")[0]), place.rpartition(".")[2])
        replacement = watched(name, function)
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").startswith("edgeprune"):
                for key in [key for key, value in vars(module).items() if value is function]:
                    setattr(module, key, replacement)
    from edgeprune.cli import main as command_line

    with contextlib.redirect_stdout(io.StringIO()):
        command_line(["export", *flags])
    for path, spent in seconds.items():
        *above, name = path.split(" / ")
        print(f"{spent:6.2f} s {'  ' * len(above)}{name}")


if __name__ == "__main__":
    main()
