"""Estimates by a calibrated device profile beside measured latency, on cores of this machine.

python examples/benchmarks/estimates.py --quick -o runs/estimates       (a few networks, some minutes)
python examples/benchmarks/estimates.py -o runs/estimates               (those of realistic.py, dense and grouped)
    [--networks torchvision:resnet18,resnet56] [--methods gconv,tmi-gkp-paper] [--groups 4,8]
    [--bundles DIR,DIR] [--profile my-machine.toml] [--cores 0,1] [--rounds 30]

Calibrates first (or takes --profile), then runs the dense network and the pruned one, as planned and with predicted
forms, in turn; random weights are enough. --bundles takes what is exported already instead. Everything on one pinned
core, or with one thread on each of several. Writes my-machine.toml, results.json and results.md.

An estimate's error is how far it is from the median of the runs, either way. On a machine that others use, too, runs
are interrupted; `undisturbed` adds up every node's fastest run instead, which no interruption reaches.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
from realistic import METHODS, NETWORKS, Case, cases

import edgeprune
from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.names import DENSE_MODEL, MODEL, PLAIN_MODEL
from edgeprune.deployment.lower_bundle import LowerOptions
from edgeprune.devices.device_profile import DeviceProfile, load_profile
from edgeprune.io import progress
from edgeprune.io.files import pretty_json, write_atomically
from edgeprune.onnx_files.inputs import input_specs
from edgeprune.onnx_files.model import load_model
from edgeprune.pipeline.profile import calibrate
from edgeprune.pipeline.tune import tune as tune_bundle
from edgeprune.profiling.environment import current_environment, load_average
from edgeprune.profiling.estimating.estimates import estimate_nodes, total_ms
from edgeprune.profiling.measurement import NOISY, interleave
from edgeprune.profiling.profiler import TimedOrtRunner
from edgeprune.profiling.setup import random_feeds
from edgeprune.pruning.network import load_network
from edgeprune.pruning.options import NetworkSource
from edgeprune.runners.base import RunOptions
from edgeprune.runners.cores import pinned
from edgeprune.runners.onnxruntime.node_times import NodeRecorder

DENSE, PLANNED, LOWERED = "dense", "as planned", "predicted forms"
QUICK = (
    *cases(["torchvision:resnet18"], ["gconv", "tmi-gkp-paper"], [4]),
    *cases(["torchvision:mobilenet_v2", "resnet56"], ["gconv"], [4]),
)
NODE_RUNS = 12


class Row(msgspec.Struct, frozen=True):
    """One ONNX file, batch 1."""

    case: str
    variant: str
    estimate_ms: float
    p50_ms: float
    undisturbed_ms: float
    """Sum of the fastest run of every node."""
    noise: float
    """Interquartile range over median of the runs."""
    load: float | None
    """Load average of the machine before."""

    error: float
    """How far the estimate is from the median, as a share of it."""
    undisturbed_error: float
    """The same from `undisturbed_ms`."""


def exported(case: Case, folder: Path) -> dict[str, Path]:
    """The case's ONNX files by variant."""
    network = load_network(NetworkSource(case.network, random_init=True))
    edgeprune.export(case.prune(network), folder, as_planned=True)
    tune_bundle(folder, LowerOptions())
    return files_of(folder)


def files_of(folder: Path) -> dict[str, Path]:
    """The ONNX files of a bundle by variant."""
    bundle = open_bundle(folder)
    planned = bundle.path(PLAIN_MODEL if bundle.has(PLAIN_MODEL) else MODEL)
    found = {DENSE: bundle.path(DENSE_MODEL), PLANNED: planned}
    return found | ({LOWERED: bundle.path(MODEL)} if bundle.has(PLAIN_MODEL) else {})


def measured(
    case: str, files: Mapping[str, Path], profile: DeviceProfile, cores: tuple[int, ...], rounds: int
) -> Iterator[Row]:
    """A row for every file; all are run in turn, with a thread on each of the cores."""
    options = RunOptions(threads=len(cores), spinning=False, pin=cores)
    load = load_average()
    with ExitStack() as stack:
        models = {name: load_model(path) for name, path in files.items()}
        runners = {name: stack.enter_context(TimedOrtRunner(path, options)) for name, path in files.items()}
        feeds = {
            name: dict(zip(runner.input_names, random_feeds(input_specs(models[name]), 1, 0), strict=True))
            for name, runner in runners.items()
        }
        stack.enter_context(pinned(cores[:1]))
        runs = {name: runner.prepared(feeds[name]) for name, runner in runners.items()}
        taken = interleave(runs, warmup=3, iterations=rounds)
        recorders = {name: NodeRecorder(runner, feeds[name]) for name, runner in runners.items()}
        interleave({name: recorder.run for name, recorder in recorders.items()}, warmup=2, iterations=NODE_RUNS)
        for name, model in models.items():
            fastest = math.fsum(min(seconds) for seconds in recorders[name].durations().values()) * 1e3
            estimated = total_ms(estimate_nodes(model, profile, threads=len(cores)))
            p50, noise = taken[name].p50_ms, taken[name].noise
            errors = abs(estimated / p50 - 1), abs(estimated / fastest - 1)
            yield Row(case, name, estimated, p50, fastest, noise, load, *errors)


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """The errors in words."""
    for what, errors in (
        ("median of the runs", [row.error for row in rows]),
        ("sum of the nodes' fastest runs", [row.undisturbed_error for row in rows]),
    ):
        yield (
            f"{len(rows)} files, estimate against the {what}: median error {statistics.median(errors):.1%}, "
            f"worst {max(errors):.1%}"
        )
    pairs = [(rows_of[0], row) for rows_of in _by_case(rows) for row in rows_of[1:]]
    if pairs:
        errors = [abs(dense.estimate_ms / row.estimate_ms / (dense.p50_ms / row.p50_ms) - 1) for dense, row in pairs]
        yield f"speed-ups over dense: median error {statistics.median(errors):.1%}, worst {max(errors):.1%}"
    if noisy := sum(row.noise > NOISY for row in rows):
        yield f"{noisy} of {len(rows)} medians are doubtful: the middle half of the runs spreads over {NOISY:.0%}"


def _by_case(rows: Sequence[Row]) -> list[list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.case, []).append(row)
    return list(found.values())


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown."""
    heads = ["case", "variant", "estimate ms", "median ms", "error", "undisturbed ms", "error", "noise"]
    yield from (f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}")
    for row in rows:
        cells = (
            row.case, row.variant, f"{row.estimate_ms:.2f}", f"{row.p50_ms:.2f}", f"{row.error:.0%}",
            f"{row.undisturbed_ms:.2f}", f"{row.undisturbed_error:.0%}", f"{row.noise:.0%}",
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--methods", default="gconv,tmi-gkp-paper,tmi-gkp-aligned")
    parser.add_argument("--groups", default="4")
    parser.add_argument("--bundles", default="")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--cores", type=_numbers, default=(0,), help="one thread on each; numbers with commas")
    parser.add_argument("--rounds", type=int, default=30)
    asked = parser.parse_args(arguments)
    known = [method.name for method in METHODS]
    if unknown := set(asked.methods.split(",")) - set(known):
        parser.error(f"unknown methods {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    asked.out.mkdir(parents=True, exist_ok=True)
    with progress.shown():
        if asked.profile:
            profile = load_profile(asked.profile)
        else:
            profile = calibrate(asked.out / "my-machine.toml", asked.cores)
    rows: list[Row] = []
    for case, files in _work(asked):
        print(case, flush=True)
        rows += measured(case, files, profile, asked.cores, asked.rounds)
        _write(asked.out, rows, profile, len(asked.cores))
    return rows


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _work(asked: argparse.Namespace) -> Iterator[tuple[str, dict[str, Path]]]:
    """Every case's name and its files, which are gone when the next is asked for."""
    for folder in (Path(name) for name in asked.bundles.split(",") if name):
        yield folder.name, files_of(folder)
    if asked.bundles:
        return
    groups = [int(count) for count in asked.groups.split(",")]
    for case in QUICK if asked.quick else cases(asked.networks.split(","), asked.methods.split(","), groups):
        with tempfile.TemporaryDirectory(dir=asked.out) as folder:
            yield case.name, exported(case, Path(folder) / "bundle")


def _write(out: Path, rows: Sequence[Row], profile: DeviceProfile, cores: int) -> None:
    """What there is so far, and print it."""
    environment = current_environment(cores)
    used = f"{cores} core{'s' if cores > 1 else ''}"
    machine = f"{environment.cpu}, {used}, {environment.platform}, {environment.runtime_versions}"
    lines = [*table(rows), "", *(f"- {line}" for line in summary(rows)), f"- {machine}"]
    data = {
        "rows": rows,
        "summary": list(summary(rows)),
        "profile": msgspec.to_builtins(profile, str_keys=True),
        "environment": environment,
    }
    write_atomically(out / "results.json", pretty_json(data))
    write_atomically(out / "results.md", "\n".join(lines).encode() + b"\n")
    print("\n".join(lines[lines.index("") + 1 :]), flush=True)


if __name__ == "__main__":
    main()
