"""Times of many small models and of their nodes, taken in turn: in ONNX Runtime, which tells those of nodes, or in any
other runtime, where a node takes what its model takes longer than without it."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Mapping, Sized
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from onnx import ModelProto

from edgeprune.calibration.probes import PROBE, without_probe
from edgeprune.io import progress
from edgeprune.io.arrays import Feeds
from edgeprune.onnx_files.inputs import input_specs
from edgeprune.onnx_files.model import save_onnx
from edgeprune.precision.formats import Precision
from edgeprune.profiling.measurement import Measurement, interleave
from edgeprune.profiling.precise_models import converted_for
from edgeprune.profiling.profiler import TimedOrtRunner
from edgeprune.profiling.samples import load_samples
from edgeprune.profiling.setup import ProfileOptions, random_feeds
from edgeprune.runners.base import ProfiledRunner, RunOptions
from edgeprune.runners.cores import pinned
from edgeprune.runners.onnxruntime.node_times import NodeRecorder
from edgeprune.runners.registry import open_runner, require
from edgeprune.runners.target import OpenOptions, Source

REORDERS = ""
"""Under what a stopwatch gives all reordering of data together."""
WARMUP, RUNS = 3, 40
"""Rounds of one set of models."""
SECONDS, SECONDS_A_MODEL = 3.0, 0.3
"""Time after which no more rounds are begun: so much, or so much for each model, whichever is longer."""

TICK_S = 1e-9
"""What takes no time takes so much."""

K = TypeVar("K", bound=Hashable)


class Stopwatch(Protocol):
    """Takes the times of models. Those of one call run in turn."""

    def nodes(self, models: Mapping[K, ModelProto], threads: int) -> Mapping[K, Mapping[str, Measurement]]:
        """The nodes of every model by name, and as `REORDERS` the reordering of data that the runtime added."""

    def runs(self, models: Mapping[K, ModelProto], threads: int) -> Mapping[K, Measurement]:
        """Every model as a whole."""


@dataclass(frozen=True)
class OrtStopwatch:
    """Times of ONNX Runtime's CPU provider."""

    pin: tuple[int, ...] = ()
    """Cores to pin threads to, as many as will be used; empty: the system decides."""

    def nodes(self, models: Mapping[K, ModelProto], threads: int) -> dict[K, dict[str, Measurement]]:
        with ExitStack() as stack:
            runners = {key: self._opened(model, threads, stack) for key, model in models.items()}
            recorders = {key: NodeRecorder(runner, _feeds(runner, models[key])) for key, runner in runners.items()}
            calls = {str(key): recorder.run for key, recorder in recorders.items()}
            stack.enter_context(pinned(self.pin[:1]))
            interleave(calls, warmup=WARMUP, iterations=RUNS, time_limit_s=_limit(models))
            return {key: _by_node(recorder, runners[key]) for key, recorder in recorders.items()}

    def runs(self, models: Mapping[K, ModelProto], threads: int) -> dict[K, Measurement]:
        with ExitStack() as stack:
            runners = {key: self._opened(model, threads, stack) for key, model in models.items()}
            return _whole(runners, models, self.pin)

    def _opened(self, model: ModelProto, threads: int, stack: ExitStack) -> TimedOrtRunner:
        options = RunOptions(threads=threads, spinning=False, pin=self.pin[:threads])
        runner = TimedOrtRunner(model, options)
        stack.callback(runner.close)
        return runner


@dataclass(frozen=True)
class RuntimeStopwatch:
    """Times of a target in a precision, of whole models alone: a node takes what its model takes longer than without
    it."""

    target: str
    precision: Precision = "fp32"
    pin: tuple[int, ...] = ()

    def nodes(self, models: Mapping[K, ModelProto], threads: int) -> dict[K, dict[str, Measurement]]:
        both = {
            (key, whole): model if whole else without_probe(model)
            for key, model in models.items()
            for whole in (True, False)
        }
        taken = self.runs(both, threads)
        found = {}
        for key in models:
            rest = min(taken[key, False].seconds)
            seconds = tuple(max(time - rest, TICK_S) for time in taken[key, True].seconds)
            found[key] = {PROBE: Measurement(PROBE, seconds)}
        return found

    def runs(self, models: Mapping[K, ModelProto], threads: int) -> dict[K, Measurement]:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeprune-")))
            runners = {}
            for number, (key, model) in enumerate(models.items()):
                runners[key] = self._opened(model, threads, folder / str(number))
                stack.callback(runners[key].close)
            return _whole(runners, models, self.pin)

    def _opened(self, model: ModelProto, threads: int, folder: Path) -> ProfiledRunner:
        options = ProfileOptions(threads, precision=self.precision, pin=self.pin[:threads])
        target, source = require(self.target, self.precision), Source(model)
        if target.is_given(self.precision):
            folder.mkdir()
            save_onnx(model, folder / "probe.onnx")
            samples = load_samples(model, "", 0)
            with progress.shown(False):
                source = Source(converted_for(target, folder / "probe.onnx", "pruned", options, samples, folder))
        return open_runner(self.target, source, OpenOptions(options.run_options(), self.precision))


def _whole(
    runners: Mapping[K, ProfiledRunner], models: Mapping[K, ModelProto], pin: tuple[int, ...]
) -> dict[K, Measurement]:
    calls = {str(key): runner.prepared(_feeds(runner, models[key])) for key, runner in runners.items()}
    with pinned(pin[:1]):
        taken = interleave(calls, warmup=WARMUP, iterations=4 * RUNS, time_limit_s=_limit(models))
    return {key: taken[str(key)] for key in models}


def _limit(models: Sized) -> float:
    return max(SECONDS, SECONDS_A_MODEL * len(models))


def _feeds(runner: ProfiledRunner, model: ModelProto) -> Feeds:
    return dict(zip(runner.input_names, random_feeds(input_specs(model), 1, 0), strict=True))


def _by_node(recorder: NodeRecorder, runner: TimedOrtRunner) -> dict[str, Measurement]:
    """Times by the model's own nodes; what the runtime added to reorder data, run by run, together."""
    found: dict[str, tuple[float, ...]] = {}
    for (name, _, _), seconds in recorder.durations(warmup=WARMUP).items():
        node = runner.original_node(name) or REORDERS
        before = found.get(node, (0.0,) * len(seconds))
        found[node] = tuple(a + b for a, b in zip(before, seconds, strict=True))
    return {node: Measurement(node, seconds) for node, seconds in found.items()}
