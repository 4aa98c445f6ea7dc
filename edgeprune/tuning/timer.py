"""Times of models and of their layers, taken in turn, or remembered."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Protocol, cast

from onnx import ModelProto

from edgeprune.errors import InputError, SlowPathError
from edgeprune.io import progress
from edgeprune.io.arrays import Feeds
from edgeprune.lowering.forms import Form
from edgeprune.lowering.record import FromCache
from edgeprune.onnx_files.inputs import input_specs
from edgeprune.profiling.agreement import allowed, reference_outputs, require_agreement
from edgeprune.profiling.layer_times import LayerTime, ModelLayers, attribute_times
from edgeprune.profiling.measurement import NOISY, Measurement, interleave
from edgeprune.profiling.setup import random_feeds
from edgeprune.runners.base import ProfiledRunner, RecordedRunner
from edgeprune.runners.registry import open_runner
from edgeprune.runners.target import OpenOptions, Source
from edgeprune.tuning.cache import CachedTime, TuningCache
from edgeprune.tuning.options import TuneOptions

CLOCK_TICK_MS = 1e-3
"""The runtime tells the times of nodes in microseconds."""
WARMUP, RUNS = 2, 12
"""Runs of a network in which the times of its layers are taken, in turn with those of the others."""
SECONDS_ALONE = 0.25
"""For a layer in one form."""
REPEATS = 3
"""A noisy measurement is taken so many times at most; the steadiest counts."""
_ALONG = frozenset({"Add", "Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})


class TunedRunner(ProfiledRunner, RecordedRunner, Protocol):
    """What the runners offer whose targets tell layers."""


class Timer:
    """Times models in turn, or remembers what their like took."""

    def __init__(self, options: TuneOptions, cache: TuningCache) -> None:
        self.options, self.cache = options, cache
        self.remembered = set(cache.times)
        """Keys of what was not measured in this run."""
        self.networks: dict[str, CachedTime] = {}
        """What was asked for of whole networks, by their keys."""
        self.forms: set[str] = set()
        """Keys of what was asked for of layers in their forms."""

    def times(self, keys: Mapping[str, str], models: Mapping[str, ModelProto], seconds: float) -> dict[str, float]:
        """Milliseconds of each model by name; `keys` says under what each is remembered."""
        missing = {name for name, key in keys.items() if key not in self.cache.times}
        if missing:  # all of them again: only times of one run can be compared
            for name, time in self._measure(models, seconds).items():
                self.keep(keys[name], time)
        self.networks |= {key: self.cache.times[key] for key in keys.values()}
        return {name: self.cache.times[key].ms for name, key in keys.items()}

    def alone_times(self, models: Mapping[Form, ModelProto]) -> dict[Form, float]:
        """Milliseconds of one layer as a model of its own in each form; without those that the runtime refuses.

        GateError if the target gives other outputs than ONNX Runtime.
        """
        with ExitStack() as stack:
            runs = {}
            for form, model in models.items():
                try:
                    runner, feeds = self._open(model, f"a layer {form}", stack)
                except (InputError, SlowPathError):
                    continue
                runs[str(form)] = runner.prepared(feeds)
            taken = interleave(runs, warmup=2, iterations=60, time_limit_s=SECONDS_ALONE * len(runs)) if runs else {}
        return {Form.parse(text): max(measured.p50_ms, CLOCK_TICK_MS) for text, measured in taken.items()}

    def layer_times(self, models: Mapping[Form, ModelProto]) -> dict[Form, dict[str, LayerTime]]:
        """The times of each model's layers, with the Gathers and the reordering of data that they need."""
        with ExitStack() as stack:
            opened = {form: self._open(model, f"each layer {form}", stack) for form, model in models.items()}
            runners = {form: runner for form, (runner, _) in opened.items()}
            recorders = {form: runner.recorder(feeds) for form, (runner, feeds) in opened.items()}
            order = list(recorders)
            for number in progress.track(range(WARMUP + RUNS), "timing every layer in each form", total=WARMUP + RUNS):
                for form in order if number % 2 else reversed(order):
                    recorders[form].run()
            found = {}
            for form, model in models.items():
                nodes = recorders[form].finish(warmup=WARMUP)
                original = {node.name: runners[form].original_node(node.name) for node in nodes}
                found[form] = attribute_times(nodes, original, _owners(model, self.options.batch_size))[0]
        return found

    def _open(self, model: ModelProto, what: str, stack: ExitStack) -> tuple[TunedRunner, Feeds]:
        """The network on the target, and inputs for it; GateError if it does not give ONNX Runtime's outputs there."""
        target, run = self.options.target, self.options.run_options()
        runner = cast(TunedRunner, open_runner(target, Source(model), OpenOptions(run)))
        stack.callback(runner.close)
        values = random_feeds(input_specs(model), self.options.batch_size, self.options.seed)
        feeds = dict(zip(runner.input_names, values, strict=True))
        expected = reference_outputs(model, values, run.threads)
        require_agreement(
            expected, list(runner.run(feeds).values()), allowed(model), f"target {target}: the network ({what})"
        )
        return runner, feeds

    def keep(self, key: str, time: CachedTime) -> None:
        """Remember what was measured."""
        self.cache.times[key] = time
        self.remembered.discard(key)

    def knows(self, keys: Mapping[str, str]) -> bool:
        return all(key in self.cache.times for key in keys.values())

    def from_cache(self) -> FromCache:
        return FromCache(len(self.remembered & self.forms), len(self.remembered & self.networks.keys()))

    def notes(self) -> tuple[str, ...]:
        """What makes the times doubtful."""
        noisy = sum(time.is_noisy for time in self.networks.values())
        if not noisy:
            return ()
        return (
            f"{noisy} of {len(self.networks)} networks' times spread by more than {NOISY:.0%} however often they were "
            "repeated: the machine was busy, and nothing of this is remembered. Close other programs and tune again.",
        )

    def _measure(self, models: Mapping[str, ModelProto], seconds: float) -> dict[str, CachedTime]:
        best: dict[str, Measurement] = {}
        with ExitStack() as stack:
            runs = {}
            for name, model in models.items():
                runner, feeds = self._open(model, name, stack)
                runs[name] = runner.prepared(feeds)
            for _ in range(REPEATS):
                taken = interleave(runs, warmup=2, iterations=60, time_limit_s=seconds * len(runs))
                if not best or _spread(taken) < _spread(best):
                    best = taken
                if not any(measured.is_noisy for measured in best.values()):
                    break
        return {name: CachedTime(measured.p50_ms, round(measured.noise, 4)) for name, measured in best.items()}


def _owners(model: ModelProto, batch: int) -> dict[str, str]:
    """Node -> its layer, for the layers, the Gathers around them, and the elementwise operations behind them: a form
    with which the runtime cannot compute these along costs their time."""
    owners = dict(ModelLayers.of(model, batch).owners)
    makers = {value: node.name for node in model.graph.node for value in node.output}
    for node in model.graph.node:  # in order, so that a chain of them belongs to the layer in front
        if node.op_type in _ALONG:
            found = [owners[makers[value]] for value in node.input if owners.get(makers.get(value, ""))]
            owners |= {node.name: found[0]} if found else {}
    return owners


def _spread(measured: Mapping[str, Measurement]) -> float:
    return max(measurement.noise for measurement in measured.values())
