"""Measure one pair of models on one target with one batch size: whole runs in turn, then every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from edgeprune import progress
from edgeprune.causes import LayerFacts, cause_of, dense_cause
from edgeprune.environment import load_average, usable_cores
from edgeprune.layer_times import LayerInfo, LayerTime, attribute_times, match_layers, median_time
from edgeprune.measurement import NOISY, Measurement, interleave, median_interval, paired_ratios
from edgeprune.onnx_model import input_specs
from edgeprune.profile_result import Latency, LayerResult, Result
from edgeprune.profile_setup import Batch, ProfiledRunner, ProfileOptions, Which, random_feeds
from edgeprune.runners.base import Feeds
from edgeprune.runners.registry import TARGETS

# Elsewhere one node holds the whole network, or times are those of starting kernels.
PER_LAYER_TARGETS = tuple(name for name, target in TARGETS.items() if target.tells_layers)
LAYER_BLOCKS = 5
"""Times of layers are taken in so many turns, dense and pruned alternating; the median of the turns counts."""
LAYER_ITERATIONS = 20
"""Runs at most of each turn: the trace of every node's times grows with them."""
DRIFT = 0.05
"""Difference between the two ways to state the realistic speed-up above which the machine was not steady."""


def measure_batch(runners: Mapping[Which, ProfiledRunner], batch: Batch, options: ProfileOptions) -> Result:
    """Run the models in turn, and their layers; `runners` holds "pruned" and, where there is a baseline, "dense"."""
    values = random_feeds(input_specs(batch.pair.pruned), batch.size, options.seed)
    feeds: dict[Which, Feeds] = {
        which: dict(zip(runner.input_names, values, strict=True)) for which, runner in runners.items()
    }
    load = load_average()
    measured = interleave(
        {which: runner.prepared(feeds[which]) for which, runner in runners.items()},
        warmup=options.warmup,
        iterations=options.iterations,
        time_limit_s=options.time_limit_s,
    )
    warnings = [*noise_warnings(measured, load, options), *batch.unsupported()]
    times: dict[Which, dict[str, LayerTime]] = {}
    others: dict[Which, float] = {}
    if options.per_layer and batch.target in PER_LAYER_TARGETS:
        progress.note(f"timing every layer on {batch.target}, batch {batch.size}")
        times, others = _layer_times(runners, feeds, batch, options)
    elif options.per_layer:
        warnings.append(f"{batch.target} does not tell the times of single layers: they are left out")
    speed = _Speed.of(measured, batch)
    pruned = runners["pruned"]
    return Result(
        target=batch.target,
        provider=pruned.provider,
        precision=options.precision,
        providers=pruned.providers(),
        threads=options.threads,
        batch_size=batch.size,
        dense=Latency.of(measured["dense"]) if "dense" in measured else None,
        pruned=Latency.of(measured["pruned"]),
        dense_macs=batch.dense_macs,
        pruned_macs=batch.pruned_macs,
        theoretical_speedup=rounded(speed.theoretical),
        realistic_speedup=rounded(speed.realistic),
        paired_speedup=rounded(speed.paired),
        paired_interval=speed.interval,
        efficiency=rounded(over(speed.realistic, speed.theoretical)),
        warnings=(*warnings, *speed.warnings()),
        layers=layer_rows(batch, times) if options.per_layer else (),
        dense_other_ms=rounded(others.get("dense")),
        pruned_other_ms=rounded(others.get("pruned")),
    )


def noise_warnings(measured: Mapping[str, Measurement], load: float | None, options: ProfileOptions) -> list[str]:
    """Sentences on what makes these times doubtful."""
    warnings = []
    cores = len(options.pin) or usable_cores()
    if load is not None and load > cores:
        warnings.append(f"the machine was busy before measuring: load average {load:.1f} on {cores} cores")
    if options.threads > cores:
        warnings.append(f"{options.threads} threads share {cores} core{'s' if cores > 1 else ''}")
    for name, taken in measured.items():
        if taken.is_noisy:
            warnings.append(
                f"{name}: the middle half of the runs spreads over {taken.noise:.0%} of the median "
                f"(steady is below {NOISY:.0%}); close other programs, or pin the threads to cores"
            )
    count = measured["pruned"].n
    if count < options.iterations:
        warnings.append(f"only {count} of {options.iterations} runs fitted into {options.time_limit_s:g} s")
    return warnings


def layer_rows(batch: Batch, times: Mapping[Which, Mapping[str, LayerTime]]) -> tuple[LayerResult, ...]:
    """One row for every layer of the pruned model; `times` may lack any of them."""
    before = match_layers(batch.dense.layers, batch.pruned.layers) if batch.dense else {}
    dense_times, pruned_times = times.get("dense", {}), times.get("pruned", {})
    return tuple(
        _layer_row(batch, layer, dense, dense_times.get(dense.name) if dense else None, pruned_times.get(layer.name))
        for layer in batch.pruned.layers
        for dense in [before.get(layer.name)]
    )


def _layer_row(
    batch: Batch, layer: LayerInfo, dense: LayerInfo | None, dense_time: LayerTime | None, pruned_time: LayerTime | None
) -> LayerResult:
    planned, note = batch.planned(layer), batch.pair.notes.get(layer.name, "")
    theoretical = over(dense.macs, planned) if dense else None
    realistic = over(dense_time.total, pruned_time.total) if dense_time and pruned_time else None
    cause = ""
    kind = batch.pair.lowerings.get(layer.name, "grouped" if layer.groups > 1 else "dense")
    is_pruned = dense is None or _channels(dense) != _channels(layer) or layer.name in batch.pair.lowerings
    if dense_time and pruned_time and theoretical and realistic:
        facts = LayerFacts(
            groups=layer.groups,
            in_per_group=layer.in_per_group,
            out_per_group=layer.out_per_group,
            macs=planned,
            executed_macs=layer.macs,
            bytes_moved=layer.bytes_moved,
            dense_ms=dense_time.total,
            pruned_ms=pruned_time.total,
            gather_ms=pruned_time.gather,
            reorder_ms=pruned_time.reorder,
            theoretical=theoretical,
            noise=max(dense_time.noise, pruned_time.noise),
            note=note,
            is_pruned=is_pruned,
            lowering=kind,
            is_conv=layer.op_type == "Conv",
        )
        cause = cause_of(facts, batch.machine)
    elif note and layer.groups == 1 and (dense is None or not is_pruned):
        cause = dense_cause(note)
    return LayerResult(
        name=layer.name,
        op_type=layer.op_type,
        lowering=kind,
        groups=layer.groups,
        in_per_group=layer.in_per_group,
        out_per_group=layer.out_per_group,
        dense_macs=dense.macs if dense else None,
        macs=planned,
        executed_macs=layer.macs,
        dense_ms=rounded(dense_time.total if dense_time else None),
        pruned_ms=rounded(pruned_time.total if pruned_time else None),
        gather_ms=rounded(pruned_time.gather if pruned_time else None),
        reorder_ms=rounded(pruned_time.reorder if pruned_time else None),
        theoretical_speedup=rounded(theoretical),
        realistic_speedup=rounded(realistic),
        efficiency=rounded(over(realistic, theoretical)),
        cause=cause,
        noise=rounded(max((time.noise for time in (dense_time, pruned_time) if time), default=None)),
    )


def _channels(layer: LayerInfo) -> tuple[int, int, int]:
    return layer.groups, layer.in_per_group, layer.out_per_group


@dataclass(frozen=True)
class _Speed:
    """Speed-ups of a whole network; None without a baseline."""

    theoretical: float | None
    realistic: float | None = None
    paired: float | None = None
    interval: tuple[float, float] | None = None

    @staticmethod
    def of(measured: Mapping[str, Measurement], batch: Batch) -> _Speed:
        theoretical = over(batch.dense_macs, batch.pruned_macs)
        if "dense" not in measured:
            return _Speed(theoretical)
        dense, pruned = measured["dense"], measured["pruned"]
        ratios = paired_ratios(dense, pruned)
        low, high = median_interval(ratios)
        return _Speed(theoretical, over(dense.p50_ms, pruned.p50_ms), median(ratios), (round(low, 6), round(high, 6)))

    def warnings(self) -> list[str]:
        sentences = []
        if self.realistic and self.paired and abs(self.realistic / self.paired - 1) > DRIFT:
            sentences.append(
                f"the machine was not steady: {self.realistic:.2f}x from the medians, "
                f"{self.paired:.2f}x from runs side by side"
            )
        if self.interval and self.interval[1] < 1:
            sentences.append("the pruned model is slower than the dense one")
        elif self.interval and self.interval[0] <= 1:
            sentences.append("dense and pruned cannot be told apart: the speed-up's interval holds 1")
        return sentences


def _layer_times(
    runners: Mapping[Which, ProfiledRunner], feeds: Mapping[Which, Feeds], batch: Batch, options: ProfileOptions
) -> tuple[dict[Which, dict[str, LayerTime]], dict[Which, float]]:
    """Times of the layers and of all else, the median of `LAYER_BLOCKS` turns."""
    iterations = min(max(options.iterations // LAYER_BLOCKS, 1), LAYER_ITERATIONS)
    turns: dict[Which, list[tuple[dict[str, LayerTime], float]]] = {which: [] for which in runners}
    for _ in range(LAYER_BLOCKS):
        for which, runner in runners.items():
            model = batch.pruned if which == "pruned" or batch.dense is None else batch.dense
            nodes = runner.profile_nodes(feeds[which], iterations)
            original = {node.name: runner.original_node(node.name) for node in nodes}
            turns[which].append(attribute_times(nodes, original, model.owners))
    times: dict[Which, dict[str, LayerTime]] = {}
    for which, turn in turns.items():
        taken = [layers for layers, _ in turn]
        common = [name for name in taken[0] if all(name in layers for layers in taken)]
        times[which] = {name: median_time([layers[name] for layers in taken]) for name in common}
    return times, {which: median(other for _, other in turn) for which, turn in turns.items()}


def over(first: float | None, second: float | None) -> float | None:
    return first / second if first and second else None


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
