"""Measure on this machine in which form each grouped layer runs fastest, and take the fastest network.

First every distinct layer is timed in each of its forms, in its place: once for each form there is a network in which
every layer that can has it, and the runtime tells the times of its nodes. (Alone, out of caches that a network never
finds so full, a layer takes other times, and other forms win.) A runtime that does not tell has each layer timed as a
model of its own (see `alone`). Then whole networks are timed beside the dense one: the
layers as planned, as the cost table predicts, each in the form that was fastest, and all dense; the fastest is taken.
What was measured is kept in a cache and looked up by structure: equal layers of other networks are not measured again.
Where whole networks' times are noisy the machine was busy, and nothing of that run is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from onnx import ModelProto

from edgeprune.devices.device_profile import DeviceProfile
from edgeprune.io import progress
from edgeprune.lowering.costs import predict
from edgeprune.lowering.forms import DENSE, GROUPED, Form, candidate_forms
from edgeprune.lowering.layers import GroupedLayer, grouped_layers
from edgeprune.lowering.linear import linear_layers
from edgeprune.lowering.model import lower_model
from edgeprune.lowering.record import LoweringRecord, NetworkTime, layer_choices
from edgeprune.profiling.environment import crowding, current_environment
from edgeprune.profiling.tuned_for import runtime_here
from edgeprune.tuning.alone import alone
from edgeprune.tuning.cache import CachedTime, TuningCache
from edgeprune.tuning.keys import digest, layer_key, structure_key
from edgeprune.tuning.options import TuneOptions
from edgeprune.tuning.timer import CLOCK_TICK_MS, Timer

AS_PLANNED, PREDICTED, FASTEST, ALL_DENSE = "as planned", "predicted forms", "fastest forms", "all dense"
POINTWISE = "linear layers as convolutions"
DENSE_NETWORK = "dense network"
SECONDS_A_NETWORK = 2.0
WORTH = 0.99
"""Another form than the plan's own is taken if it needs at most so much of its time; so with linear layers."""


def tune(model: ModelProto, dense: ModelProto | None, profile: DeviceProfile, options: TuneOptions) -> LoweringRecord:
    """The fastest forms of the grouped layers of a model (all grouped), on the target.

    `dense` is the network before pruning; `profile` gives the channel block for padding, and a prediction to compare
    with. InputError if the batch size does not fit the model; GateError if the target gives other outputs than ONNX
    Runtime, before anything is timed on it.
    """
    options.check()
    environment = current_environment(options.threads)
    ours = environment.runtime_versions.get("edgeprune", "")  # it decides how a form is written
    machine = f"edgeprune {ours} | {runtime_here(options.target)} | {environment.cpu} | {options.threads} threads"
    cache = TuningCache.load(options.cache, machine)
    layers = grouped_layers(model)
    timer = Timer(options, cache)
    block = profile.channel_block.fp32
    forms = {name: candidate_forms(layer, block) for name, layer in layers.items()}
    costs = _costs(model, layers, forms, timer)
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


def _costs(
    model: ModelProto, layers: Mapping[str, GroupedLayer], forms: Mapping[str, Sequence[Form]], timer: Timer
) -> dict[str, dict[Form, float]]:
    """Each layer's forms with the milliseconds that they take. Equal layers share the median of their times.

    A form that the runtime refuses has none.
    """
    batch = timer.options.batch_size
    keys = {name: {form: layer_key(layer, form, batch) for form in forms[name]} for name, layer in layers.items()}
    if not all(timer.cache.times.keys() >= set(own.values()) for own in keys.values()):
        if timer.options.in_place:
            _time_in_place(model, keys, timer)
        else:
            _time_alone(model, layers, keys, timer)
    known = timer.cache.times
    timer.forms.update(key for own in keys.values() for key in own.values())
    return {name: {form: known[key].ms for form, key in own.items() if key in known} for name, own in keys.items()}


Keys = Mapping[str, Mapping[Form, str]]
"""Layer -> its forms -> under what each one's time is remembered."""


def _time_in_place(model: ModelProto, keys: Keys, timer: Timer) -> None:
    """One network for each form, in which every layer that can has it."""
    networks = {}
    wanted = sorted({form for own in keys.values() for form in own})
    for form in progress.track(wanted, "writing every layer in each form"):
        networks[form] = lower_model(model, {name: form for name, own in keys.items() if form in own})
    for form, times in timer.layer_times(networks).items():
        taken: dict[str, list[float]] = {}
        for name, own in keys.items():
            if form in own and name in times:
                taken.setdefault(own[form], []).append(times[name].total)
        for key, values in taken.items():
            timer.keep(key, CachedTime(max(median(values), CLOCK_TICK_MS)))


def _time_alone(model: ModelProto, layers: Mapping[str, GroupedLayer], keys: Keys, timer: Timer) -> None:
    """Each distinct layer as a model of its own, in all of its forms."""
    distinct: dict[tuple[str, ...], str] = {}
    for name, own in keys.items():
        distinct.setdefault(tuple(own.values()), name)
    wanted = [name for own, name in distinct.items() if not timer.cache.times.keys() >= set(own)]
    for name in progress.track(wanted, "timing each layer in each form"):
        one = alone(model, layers[name], timer.options.batch_size)
        models = {form: lower_model(one, {name: form}) for form in keys[name]}
        for form, ms in timer.alone_times(models).items():
            timer.keep(keys[name][form], CachedTime(ms))


def _whole(
    model: ModelProto, dense: ModelProto | None, proposed: Mapping[str, Mapping[str, Form]], timer: Timer
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
    keys = {network.what: digest(f"{plain} {network} batch {batch}") for network in candidates}
    if dense is not None:
        keys = {DENSE_NETWORK: digest(f"{structure_key(dense)} beside {plain} batch {batch}"), **keys}
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
