"""How good the profiler is: whether it repeats itself, agrees with other clocks, and costs nothing.

python examples/benchmarks/profiler.py BUNDLE [--repeats 5] [--threads 1] [--pin 0] [--json FILE]

BUNDLE is copied, never written to. Three figures, each beside its target; the exit status is 3 if one is missed:

repeatability  The bundle is profiled `--repeats` times; (largest - smallest) / median of the speed-ups. Beside it, the
               same of the latencies, which other programs on the machine move much more.
agreement      Around every profile, a loop in a fresh process of its own runs each model alone, with nothing but
               onnxruntime and a clock. The largest deviation of the profiler's figure from the loop's: of the speed-up,
               and of both latencies. The runtime's own clock (its trace) is read in the same process, and
               onnxruntime_perf_test is asked where it is installed.
cost           In one process, runs that the profiler times alternate with runs that nothing does but two clock
               reads, on the bundle's pruned model and on one of about a millisecond.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from cause_cases import millisecond_model

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.names import DENSE_MODEL, MODEL
from edgeprune.io.files import pretty_json
from edgeprune.onnx_files.inputs import input_specs
from edgeprune.onnx_files.model import load_model
from edgeprune.pipeline.profile import profile as profile_bundle
from edgeprune.profiling.environment import current_environment
from edgeprune.profiling.measurement import interleave
from edgeprune.profiling.profiler import TimedOrtRunner
from edgeprune.profiling.result import Environment, Result
from edgeprune.profiling.setup import ProfileOptions, random_feeds
from edgeprune.runners.cores import pinned

TARGETS = {"repeatability": 0.05, "agreement": 0.05, "cost": 0.02}
AGREED = ("speed-up", "dense latency", "pruned latency")
LOOP_SECONDS, LOOP_RUNS = 3.0, 50
"""A loop runs so long, and so often, at least."""
COST_BLOCKS, COST_RUNS = 40, 10

# Deliberately without anything of edgeprune.
LOOP = """
import json, sys, tempfile, time, statistics, os
import numpy as np, onnxruntime as ort
path, threads, seconds, runs, pin = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
if pin:
    os.sched_setaffinity(0, [int(pin.split(",")[0])])
def session(trace=""):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if "," in pin:
        cores = ";".join(str(int(core) + 1) for core in pin.split(",")[1:])
        options.add_session_config_entry("session.intra_op_thread_affinities", cores)
    if trace:
        options.enable_profiling, options.profile_file_prefix = True, trace
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
model = session()
rng = np.random.default_rng(0)
shape = lambda value: [size if isinstance(size, int) else 1 for size in value.shape]
feeds = {value.name: rng.standard_normal(shape(value)).astype(np.float32) for value in model.get_inputs()}
for _ in range(20):
    model.run(None, feeds)
times, begun = [], time.perf_counter()
while len(times) < runs or time.perf_counter() - begun < seconds:
    start = time.perf_counter()
    model.run(None, feeds)
    times.append(time.perf_counter() - start)
with tempfile.TemporaryDirectory() as folder:
    traced = session(os.path.join(folder, "trace"))
    for _ in range(runs):
        traced.run(None, feeds)
    events = json.load(open(traced.end_profiling()))
runtime = [event["dur"] / 1e3 for event in events if event.get("name") == "model_run"][10:]
fast = sorted(times)[len(times) // 10] * 1e3
print(json.dumps({"loop": statistics.median(times) * 1e3, "fast_loop": fast, "runtime": statistics.median(runtime)}))
"""


Clocks = Mapping[str, Mapping[str, float]]
"""dense, pruned -> clock -> milliseconds."""


class Taken(msgspec.Struct, frozen=True):
    """One model by every clock, in milliseconds (p50)."""

    profiler: float
    loop: float
    runtime: float
    """By the runtime's own trace."""
    perf_test: float | None = None
    fast_profiler: float = 0.0
    """The fastest tenth of the runs takes at most so long: where other programs run, these are the undisturbed ones."""
    fast_loop: float = 0.0


class Round(msgspec.Struct, frozen=True):
    """One profile, and what the other clocks say before and after it."""

    speedup: float
    interval: tuple[float, float]
    settled: bool
    runs: int
    dense: Taken
    pruned: Taken

    @property
    def loop_speedup(self) -> float:
        return self.dense.loop / self.pruned.loop


class Figures(msgspec.Struct, frozen=True):
    """All that was found; shares of 1."""

    environment: Environment
    rounds: tuple[Round, ...]
    repeatability: dict[str, float]
    agreement: dict[str, float]
    cost: dict[str, float]

    def passed(self) -> dict[str, bool]:
        """Whether every figure that counts meets its target."""
        return {
            name: all(share <= target for what, share in getattr(self, name).items() if counts(name, what))
            for name, target in TARGETS.items()
        }


def counts(figure: str, what: str) -> bool:
    """Whether a target is set for it: latencies do not repeat themselves where other programs run, and of other clocks
    the loop is the simplest."""
    return what in {"repeatability": ("speed-up",), "agreement": AGREED}.get(figure, (what,))


def measure(bundle: Path, repeats: int, options: ProfileOptions) -> Figures:
    """Of a bundle that may be written to."""
    environment = current_environment(options.threads)
    opened = open_bundle(bundle)
    models = {"dense": opened.path(DENSE_MODEL), "pruned": opened.path(MODEL)}
    rounds: list[Round] = []
    for number in range(repeats):
        print(f"round {number + 1} of {repeats}", flush=True)
        before = {name: outside(path, options) for name, path in models.items()}
        (result,) = profile_bundle(bundle, None, ("cpu",), options).results
        after = {name: outside(path, options) for name, path in models.items()}
        rounds.append(_round(result, before, after))
    return Figures(environment, tuple(rounds), _repeatability(rounds), _agreement(rounds), _costs(models, options))


def outside(model: Path, options: ProfileOptions) -> Mapping[str, float]:
    """Milliseconds by clocks outside of edgeprune, each in a fresh process."""
    pin = ",".join(map(str, options.pin))
    command = [sys.executable, "-c", LOOP, model, options.threads, LOOP_SECONDS, LOOP_RUNS, pin]
    found: dict[str, float] = json.loads(subprocess.check_output(list(map(str, command)), text=True))
    tool = shutil.which("onnxruntime_perf_test")
    if tool:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "times.csv"
            asked = ["-I", "-m", "times", "-r", str(LOOP_RUNS), "-x", str(options.threads), "-y", "1", "-s"]
            subprocess.run([tool, *asked, str(model), str(out)], check=True, capture_output=True)
            seconds = [float(line.split(",")[-1]) for line in out.read_text().splitlines() if line]
        found["perf_test"] = median(seconds) * 1e3
    return found


def _round(
    result: Result, before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]
) -> Round:
    assert result.dense is not None
    assert result.realistic_speedup is not None
    assert result.paired_interval is not None
    latencies = {"dense": result.dense, "pruned": result.pruned}
    taken = {}
    for name, latency in latencies.items():
        clocks = {clock: (before[name][clock] + after[name][clock]) / 2 for clock in before[name]}
        fast = float(np.percentile(latency.samples_ms, 10))
        taken[name] = Taken(latency.p50_ms, fast_profiler=fast, **clocks)
    return Round(
        result.realistic_speedup,
        result.paired_interval,
        result.pruned.settled,
        result.pruned.n,
        taken["dense"],
        taken["pruned"],
    )


def _repeatability(rounds: Sequence[Round]) -> dict[str, float]:
    return {
        "speed-up": _spread([taken.speedup for taken in rounds]),
        "ratio of the medians": _spread([taken.dense.profiler / taken.pruned.profiler for taken in rounds]),
        "dense latency": _spread([taken.dense.profiler for taken in rounds]),
        "pruned latency": _spread([taken.pruned.profiler for taken in rounds]),
        "speed-up of the loops": _spread([taken.loop_speedup for taken in rounds]),
    }


def _spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / median(values)


def _agreement(rounds: Sequence[Round]) -> dict[str, float]:
    """How far the median of the rounds is from that of other clocks."""

    def deviation(ours: Callable[[Round], float], theirs: Callable[[Round], float]) -> float:
        return abs(median(map(ours, rounds)) / median(map(theirs, rounds)) - 1)

    return {
        "speed-up": deviation(lambda r: r.speedup, lambda r: r.loop_speedup),
        "dense latency": deviation(lambda r: r.dense.profiler, lambda r: r.dense.loop),
        "pruned latency": deviation(lambda r: r.pruned.profiler, lambda r: r.pruned.loop),
        "speed-up, by the runtime's trace": deviation(
            lambda r: r.speedup, lambda r: r.dense.runtime / r.pruned.runtime
        ),
        "dense latency, fastest tenth": deviation(lambda r: r.dense.fast_profiler, lambda r: r.dense.fast_loop),
        "pruned latency, fastest tenth": deviation(lambda r: r.pruned.fast_profiler, lambda r: r.pruned.fast_loop),
    }


def _costs(models: Mapping[str, Path], options: ProfileOptions) -> dict[str, float]:
    """Share by which a run takes longer where the profiler times it."""
    return {
        "bundle's pruned model": _cost(load_model(models["pruned"]), options),
        "model of about 1 ms": _cost(millisecond_model(), options),
    }


def _cost(model: Any, options: ProfileOptions) -> float:
    values = random_feeds(input_specs(model), 1, 0)
    with closing(TimedOrtRunner(model, options.run_options())) as runner, pinned(options.pin[:1]):
        feeds = dict(zip(runner.input_names, values, strict=True))
        run, session, names = runner.prepared(feeds), runner._session, list(runner.output_names)
        ratios = []
        for _ in range(COST_BLOCKS):
            timed = interleave({"model": run}, warmup=2, iterations=COST_RUNS)["model"].seconds
            for _ in range(2):
                session.run(names, feeds)
            plain = []
            for _ in range(COST_RUNS):
                start = time.perf_counter()
                session.run(names, feeds)
                plain.append(time.perf_counter() - start)
            ratios.append(median(timed) / median(plain))
    return median(ratios) - 1


def table(figures: Figures) -> str:
    lines = ["| figure | of | found | target | |", "|---|---|---|---|---|"]
    for name, target in TARGETS.items():
        for what, share in getattr(figures, name).items():
            verdict = f"{target:.0%} | {'met' if share <= target else 'MISSED'}" if counts(name, what) else " | "
            lines.append(f"| {name} | {what} | {share:.1%} | {verdict} |")
    load = figures.environment.load_average
    return "\n".join([*lines, f"load average before: {load}; {figures.environment.cores} cores"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pin", default="", help="cores, separated by commas, one a thread")
    parser.add_argument("--time-limit", type=float, default=ProfileOptions.time_limit_s)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    pin = tuple(int(core) for core in asked.pin.split(",")) if asked.pin else ()
    options = ProfileOptions(asked.threads, per_layer=False, pin=pin, time_limit_s=asked.time_limit)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        copy = shutil.copytree(asked.bundle, Path(folder) / "bundle")
        figures = measure(copy, asked.repeats, options)
    print(table(figures))
    if asked.json:
        asked.json.write_bytes(pretty_json(figures))
    return 0 if all(figures.passed().values()) else 3


if __name__ == "__main__":
    sys.exit(main())
