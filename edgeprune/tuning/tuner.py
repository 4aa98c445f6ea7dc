"""Measure on this machine in which form each grouped layer runs fastest, and take the fastest network.

First every distinct layer is timed in each of its forms, in its place: once for each form there is a network in which
every layer that can has it, and the runtime tells the times of its nodes. (Alone, out of caches that a network never
finds so full, a layer takes other times, and other forms win.) Then whole networks are timed beside the dense one: the
layers as planned, as the cost table predicts, each in the form that was fastest, and all dense; the fastest is taken.
What was measured is kept in a cache and looked up by structure: equal layers of other networks are not measured again.
Where whole networks' times are noisy the machine was busy, and nothing of that run is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Protocol, cast

from onnx import ModelProto, TensorProto

from edgeprune.devices.device_profile import DeviceProfile
from edgeprune.errors import InputError
from edgeprune.io import progress
from edgeprune.lowering.costs import predict
from edgeprune.lowering.forms import DENSE, GROUPED, Form, candidate_forms, shape_of
from edgeprune.lowering.layers import GroupedLayer, grouped_layers
from edgeprune.lowering.linear import linear_layers
from edgeprune.lowering.model import lower_model
from edgeprune.lowering.record import FromCache, LoweringRecord, NetworkTime, layer_choices
from edgeprune.onnx_files.graph import constants
from edgeprune.onnx_files.model import input_specs
from edgeprune.profiling.environment import crowding, current_environment
from edgeprune.profiling.layer_times import LayerTime, ModelLayers, attribute_times
from edgeprune.profiling.measurement import NOISY, Measurement, interleave
from edgeprune.profiling.setup import ProfiledRunner, RecordedRunner, random_feeds
from edgeprune.runners.base import Feeds, RunOptions
from edgeprune.runners.registry import OpenOptions, Source, open_runner, require, target_named
from edgeprune.tuning.cache import CachedTime, TuningCache

AS_PLANNED, PREDICTED, FASTEST, ALL_DENSE = "as planned", "predicted forms", "fastest forms", "all dense"
POINTWISE = "linear layers as convolutions"
DENSE_NETWORK = "dense network"
RUNTIMES = {"cpu": ("ONNX Runtime", "onnxruntime"), "openvino-native": ("OpenVINO", "openvino")}
"""Targets whose runtime takes the times of nodes run by run: its name, and the package that it comes in."""
CLOCK_TICK_MS = 1e-3
"""The runtime tells the times of nodes in microseconds."""
WARMUP, RUNS = 2, 12
"""Runs of a network in which the times of its layers are taken, in turn with those of the others."""
SECONDS_A_NETWORK = 2.0
REPEATS = 3
"""A noisy measurement is taken so many times at most; the steadiest counts."""
_ALONG = frozenset({"Add", "Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
WORTH = 0.99
"""Another form than the plan's own is taken if it needs at most so much of its time; so with linear layers."""


def require_tunable(target: str) -> None:
    """InputError if the target is unknown, tells no times of nodes run by run, or cannot be used on this machine."""
    if target_named(target).name not in RUNTIMES:
        raise InputError(
            f"target {target} is not one that forms can be tuned for",
            expected=f"one of {', '.join(RUNTIMES)}",
            remedy=f"export with --as-planned, and measure with `edgeprune profile DIR --target {target}`",
        )
    require(target)


def runtime_here(target: str) -> str:
    """Name and version of the runtime that serves a target on this machine; without a version if it is not there."""
    name, package = RUNTIMES.get(target, (target, target))
    try:
        return f"{name} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return name


def is_tuned_for(record: LoweringRecord | None, target: str, threads: int, batch_size: int) -> bool:
    """Whether forms were measured on this machine, in the runtime that is here, for just that use."""
    if record is None or record.chosen_by != "measured":
        return False
    here = current_environment(threads).cpu, runtime_here(target), target, threads, batch_size
    return here == (record.device, record.runtime, record.target, record.threads, record.batch_size)


@dataclass(frozen=True)
class TuneOptions:
    """How to tune."""

    threads: int = 1
    batch_size: int = 1
    target: str = "cpu"
    cache: Path | None = None
    """None: measure everything, and keep nothing."""
    seed: int = 0

    def check(self) -> None:
        """InputError for values that make no sense, or a target that cannot be used here."""
        self.run_options().check()
        require_tunable(self.target)
        if self.batch_size < 1:
            raise InputError(f"--batch-size {self.batch_size} is out of range", expected="1 or more")

    def run_options(self) -> RunOptions:
        return RunOptions(threads=self.threads, spinning=False)


def tune(model: ModelProto, dense: ModelProto | None, profile: DeviceProfile, options: TuneOptions) -> LoweringRecord:
    """The fastest forms of the grouped layers of a model (all grouped), on the target.

    `dense` is the network before pruning; `profile` gives the channel block for padding, and a prediction to compare
    with. InputError if the batch size does not fit the model.
    """
    options.check()
    environment = current_environment(options.threads)
    ours = environment.runtime_versions.get("edgeprune", "")  # it decides how a form is written
    machine = f"edgeprune {ours} | {runtime_here(options.target)} | {environment.cpu} | {options.threads} threads"
    cache = TuningCache.load(options.cache, machine)
    layers = grouped_layers(model)
    timer = _Timer(options, cache)
    block = profile.channel_block.fp32
    forms = {name: candidate_forms(layer, block) for name, layer in layers.items()}
    costs = _in_place(model, layers, forms, timer)
    fastest = {name: _fastest(costs[name]) for name in layers}
    networks, chosen = _whole(model, dense, {FASTEST: fastest, PREDICTED: predict(layers, profile).forms()}, timer)
    notes = timer.notes()
    if not notes:
        cache.save()
    return LoweringRecord(
        chosen_by="measured",
        device=environment.cpu,
        threads=options.threads,
        batch_size=options.batch_size,
        runtime=runtime_here(options.target),
        target=options.target,
        layers=layer_choices(layers, chosen.forms, costs),
        networks=networks,
        chosen=chosen.what,
        pointwise=chosen.pointwise,
        notes=(*crowding(options.threads, environment.cores), *notes),
        from_cache=timer.from_cache(),
    )


@dataclass(frozen=True)
class _Network:
    what: str
    forms: Mapping[str, Form]
    pointwise: tuple[str, ...] = ()

    def lowered(self, model: ModelProto) -> ModelProto:
        return lower_model(model, self.forms, self.pointwise)

    def __str__(self) -> str:
        """What sets it apart from other networks of the same layers."""
        forms = ",".join(f"{name}={form}" for name, form in self.forms.items())
        return f"{forms} pointwise {','.join(self.pointwise)}" if self.pointwise else forms


class TunedRunner(ProfiledRunner, RecordedRunner, Protocol):
    """What the runners of `RUNTIMES` offer."""


class _Timer:
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

    def layer_times(self, models: Mapping[Form, ModelProto]) -> dict[Form, dict[str, LayerTime]]:
        """The times of each model's layers, with the Gathers and the reordering of data that they need."""
        with ExitStack() as stack:
            runners = {form: self._open(model, stack) for form, model in models.items()}
            recorders = {form: runner.recorder(self._feeds(runner, models[form])) for form, runner in runners.items()}
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

    def _open(self, model: ModelProto, stack: ExitStack) -> TunedRunner:
        run = OpenOptions(self.options.run_options())
        runner = cast(TunedRunner, open_runner(self.options.target, Source(model), run))
        stack.callback(runner.close)
        return runner

    def _feeds(self, runner: TunedRunner, model: ModelProto) -> Feeds:
        values = random_feeds(input_specs(model), self.options.batch_size, self.options.seed)
        return dict(zip(runner.input_names, values, strict=True))

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
                runner = self._open(model, stack)
                runs[name] = runner.prepared(self._feeds(runner, model))
            for _ in range(REPEATS):
                taken = interleave(runs, warmup=2, iterations=60, time_limit_s=seconds * len(runs))
                if not best or _spread(taken) < _spread(best):
                    best = taken
                if not any(measured.is_noisy for measured in best.values()):
                    break
        return {name: CachedTime(measured.p50_ms, round(measured.noise, 4)) for name, measured in best.items()}


def _in_place(
    model: ModelProto, layers: Mapping[str, GroupedLayer], forms: Mapping[str, Sequence[Form]], timer: _Timer
) -> dict[str, dict[Form, float]]:
    """Each layer's forms with the milliseconds that they take. Equal layers share the median of their times."""
    batch = timer.options.batch_size
    keys = {name: {form: _layer_key(layer, form, batch) for form in forms[name]} for name, layer in layers.items()}
    wanted = sorted({form for name in layers for form in forms[name]})
    if not all(timer.cache.times.keys() >= set(own.values()) for own in keys.values()):
        networks = {}
        for form in progress.track(wanted, "writing every layer in each form"):
            having = {name: form for name in layers if form in forms[name]}
            networks[form] = lower_model(model, having)
        for form, times in timer.layer_times(networks).items():
            taken: dict[str, list[float]] = {}
            for name in layers:
                if form in forms[name] and name in times:
                    taken.setdefault(keys[name][form], []).append(times[name].total)
            for key, values in taken.items():
                timer.keep(key, CachedTime(max(median(values), CLOCK_TICK_MS)))
    known = timer.cache.times
    timer.forms.update(key for own in keys.values() for key in own.values())
    return {name: {form: known[key].ms for form, key in own.items() if key in known} for name, own in keys.items()}


def _whole(
    model: ModelProto, dense: ModelProto | None, proposed: Mapping[str, Mapping[str, Form]], timer: _Timer
) -> tuple[tuple[NetworkTime, ...], _Network]:
    """What whole networks take, the dense one first, and the one to use."""
    layers = next(iter(proposed.values()))
    named = {
        AS_PLANNED: dict.fromkeys(layers, GROUPED),
        ALL_DENSE: dict.fromkeys(layers, DENSE),
        **{what: dict(forms) for what, forms in proposed.items()},
    }
    candidates: list[_Network] = []
    for what, chosen_forms in named.items():
        if all(chosen_forms != network.forms for network in candidates):
            candidates.append(_Network(what, chosen_forms))
    if linear := linear_layers(model):
        candidates.append(_Network(f"{FASTEST}, {POINTWISE}", proposed[FASTEST], linear))
    plain = structure_key(model)
    batch = timer.options.batch_size
    keys = {network.what: _digest(f"{plain} {network} batch {batch}") for network in candidates}
    if dense is not None:
        keys = {DENSE_NETWORK: _digest(f"{structure_key(dense)} beside {plain} batch {batch}"), **keys}
    models: dict[str, ModelProto] = {}
    if not timer.knows(keys):
        progress.note("timing whole networks")
        models = {network.what: network.lowered(model) for network in candidates}
        if dense is not None:
            models = {DENSE_NETWORK: dense, **models}
    times = timer.times(keys, models, SECONDS_A_NETWORK)
    base = times.get(DENSE_NETWORK, times[AS_PLANNED])
    chosen = min(candidates, key=lambda network: times[network.what] * (1 / WORTH if network.pointwise else 1))
    if times[chosen.what] > base:
        chosen = next(network for network in candidates if set(network.forms.values()) <= {DENSE})
    shown = tuple(NetworkTime(what, round(ms, 6), round(base / ms, 4)) for what, ms in times.items())
    return shown, chosen


def _fastest(costs: Mapping[Form, float]) -> Form:
    if GROUPED not in costs:  # the runtime did not tell: its optimised model has no such node
        return GROUPED
    best = min(costs, key=lambda form: costs[form])
    return best if costs[best] <= WORTH * costs[GROUPED] else GROUPED


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


def structure_key(model: ModelProto) -> str:
    """A digest of what decides about a model's speed: its operations, how they are joined, and shapes. No weights."""
    numbers: dict[str, int] = {}
    held = constants(model)
    lines = [f"{spec.shape} {spec.dtype}" for spec in input_specs(model)]
    for node in model.graph.node:
        inputs = [_operand(value, held, numbers) for value in node.input]
        for value in node.output:
            numbers[value] = len(numbers)
        attributes = sorted(attribute.SerializeToString(deterministic=True).hex() for attribute in node.attribute)
        lines.append(" ".join([node.domain, node.op_type, *inputs, *attributes]))
    return _digest("\n".join(lines))


def _operand(value: str, held: Mapping[str, TensorProto], numbers: dict[str, int]) -> str:
    if value in held:
        return f"{held[value].data_type}{tuple(held[value].dims)}"
    return f"%{numbers.setdefault(value, len(numbers))}"


def _layer_key(layer: GroupedLayer, form: Form, batch: int) -> str:
    """Under what the time of a layer in one form is remembered."""
    settings = sorted(attribute.SerializeToString(deterministic=True).hex() for attribute in layer.attributes)
    facts = (
        form, shape_of(layer, form), layer.source_shape, layer.output_shape, layer.kernel, str(layer.weight.dtype),
        layer.bias is None, settings, batch,
    )  # fmt: skip
    return _digest(repr(facts))


def _spread(measured: Mapping[str, Measurement]) -> float:
    return max(measurement.noise for measurement in measured.values())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
