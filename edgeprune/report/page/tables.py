"""The report's tables, from a bundle's parts. Text out of files is cleaned here and escaped where it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgeprune.bundles.manifest import Manifest
from edgeprune.io import formatting as f
from edgeprune.lowering.record import LoweringRecord
from edgeprune.profiling.estimating.estimates import Estimate
from edgeprune.profiling.result import ProfileResult, Result
from edgeprune.report.contents import MeasuredRun, SplitPlan
from edgeprune.report.document import Table, columns
from edgeprune.report.words.forms import executed_macs
from edgeprune.report.words.headline import plain_rows, ratio
from edgeprune.report.words.results import is_settled, samples_per_second, setting, unsettled_mark


def headline_table(manifest: Manifest, profile: ProfileResult | None, lowering: LoweringRecord | None) -> Table:
    """Dense against pruned, one figure a row; the trained network's alone where nothing is pruned."""
    if manifest.is_plain:
        return Table("Trained network", columns("figure", "value", numeric=("value",)), tuple(plain_rows(manifest)))
    rows: list[tuple[str, ...]] = []
    if accuracy := manifest.accuracy:
        where = f", {accuracy.n} images of {f.clean(accuracy.data)}" if accuracy.n else ""
        label = f.clean(accuracy.label)
        rows.append(_score_row(f"{label}{where}", accuracy.dense, accuracy.pruned, accuracy.metric))
        if accuracy.pruned_before_finetune is not None:
            before = accuracy.pruned_before_finetune
            rows.append(_score_row(f"{label} before fine-tuning", accuracy.dense, before, accuracy.metric))
        for name, score in accuracy.others:
            rows.append(_score_row(f.clean(name), score.dense, score.pruned, name))
    for label, counted in (("MACs (one sample)", manifest.macs), ("Parameters", manifest.params)):
        if counted:
            rows.append((label, f.count(counted.dense), f.count(counted.pruned), f"{f.times(ratio(counted))} less"))
    if manifest.macs and lowering and (executed := executed_macs(lowering, manifest)):
        less = f"{f.times(manifest.macs.dense / executed)} less"
        rows.append(("MACs executed in the chosen forms", f.count(manifest.macs.dense), f.count(executed), less))
    for result in profile.results if profile else ():
        dense = f.milliseconds(result.dense.p50_ms) if result.dense else f.NONE
        change = f.speed_change(result.realistic_speedup)
        rows.append((f"Latency p50 ({setting(result)})", dense, f.milliseconds(result.pruned.p50_ms), change))
    names = ("figure", "dense", "pruned", "change")
    return Table("Dense and pruned network", columns(*names, numeric=names[1:]), tuple(rows))


def _score_row(label: str, dense: float, pruned: float, metric: str) -> tuple[str, ...]:
    return label, f.score(dense, metric), f.score(pruned, metric), f.score_change(pruned - dense, metric)


def speed_table(profile: ProfileResult) -> Table:
    """Promised beside measured, one target and batch size a row."""
    names = ("where", "theoretical", "realistic", "95 % interval", "efficiency", "samples/s dense", "samples/s pruned")
    rows = tuple(
        (
            setting(result),
            f.times(result.theoretical_speedup),
            f.times(result.realistic_speedup) + unsettled_mark(is_settled(result)),
            f.interval(result.paired_interval),
            f.percent(result.efficiency),
            f.count(samples_per_second(result.batch_size, result.dense)),
            f.count(samples_per_second(result.batch_size, result.pruned)),
        )
        for result in profile.results
    )
    return Table("Theoretical and realistic speed-up", columns(*names, numeric=names[1:]), rows)


def latency_table(profile: ProfileResult) -> Table:
    """All percentiles."""
    names = ("where", "model", "runs", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "mean ms", "noise")
    rows = []
    for result in profile.results:
        for which, taken in (("dense", result.dense), ("pruned", result.pruned)):
            if taken is not None:
                times = (taken.p50_ms, taken.p90_ms, taken.p95_ms, taken.p99_ms, taken.mean_ms)
                where = f"{setting(result)} ({f.clean(result.provider)})"
                runs = f"{taken.n}{unsettled_mark(taken.settled)}"
                rows.append((where, which, runs, *map(f.bare_ms, times), f.percent(taken.noise)))
    return Table("Latencies", columns(*names, numeric=names[2:]), tuple(rows), folded=True)


def resource_table(profile: ProfileResult) -> Table:
    """Memory, energy, copies, and how the machine drifted, where a target tells them; empty columns are left out."""
    fields: Mapping[str, Callable[[Result], str]] = {
        "peak memory": lambda r: f.NONE if r.peak_memory_mb is None else f.size(r.peak_memory_mb * 1e6),
        "energy a run, dense": lambda r: _millijoules(r.dense_energy_mj),
        "energy a run, pruned": lambda r: _millijoules(r.energy_mj),
        "copying in ms": lambda r: f.bare_ms(r.copy_in_ms),
        "copying out ms": lambda r: f.bare_ms(r.copy_out_ms),
        "clock before, after": lambda r: _ends(r.drift.clock_mhz if r.drift else None, "MHz"),
        "temperature before, after": lambda r: _ends(r.drift.temperature_c if r.drift else None, "°C"),
        "slowed down by heat": lambda r: (
            f.plural(r.drift.throttled, "time") if r.drift and r.drift.throttled else f.NONE
        ),
    }
    told = {name: cells for name, tell in fields.items() if {*(cells := tuple(map(tell, profile.results)))} != {f.NONE}}
    rows = tuple(zip(map(setting, profile.results), *told.values(), strict=True)) if told else ()
    return Table("Memory, energy, copies and drift", columns("where", *told, numeric=tuple(told)), rows, folded=True)


def precision_table(profile: ProfileResult) -> Table:
    """What another number format changes of the outputs; rows outside their tolerance are flagged."""
    differences, accuracies = ("largest difference", "tolerance"), ("same class", "top-1", "top-1 in FP32")
    names = ("network", "target", "precision", *differences, "within it", *accuracies, "compared on")
    records = profile.precisions
    rows = tuple(
        (
            f.clean(x.network),
            f.clean(x.target),
            f.clean(x.precision),
            f"{x.max_rel:.1e}",
            f"{x.tolerance:g}",
            "yes" if x.passed else "NO",
            f.top1(x.agreement),
            f.top1(x.top1),
            f.top1(x.top1_fp32),
            f"{f.plural(x.n, 'input')}, {f.clean(x.data)}",
        )
        for x in records
    )
    flags = frozenset(number for number, record in enumerate(records) if not record.passed)
    caption = "Other precisions against FP32 (differences as shares of the output's range)"
    return Table(caption, columns(*names, numeric=(*differences, *accuracies)), rows, flags=flags)


def estimate_table(estimates: Sequence[Estimate]) -> Table:
    """One device and batch size a row, each labelled as what it is."""
    names = ("device", "batch", "threads", "estimated dense ms", "estimated pruned ms", "estimated speed-up", "basis")
    rows = tuple(
        (
            f.clean(e.device),
            str(e.batch_size),
            str(e.threads),
            f.bare_ms(e.dense_ms),
            f.bare_ms(e.pruned_ms),
            f.times(e.speedup),
            f.clean(e.source),
        )
        for e in estimates
    )
    return Table("Estimated latencies: not measured", columns(*names, numeric=names[1:6]), rows)


def _told(parts: Mapping[str, Sequence[tuple[int, int]]]) -> str:
    """Such as `hub 0:96; cam 96:128`."""
    runs = ((name, ",".join(f"{start}:{stop}" for start, stop in own)) for name, own in parts.items())
    return "; ".join(f"{name} {own}" for name, own in runs)


def _run_table(split: SplitPlan, run: MeasuredRun) -> Table:
    """What each device's time went to in a real run."""
    names = ("device", "computed", "predicted", "waited or exchanged", "bytes sent")
    sizes = {(move.from_, move.tensor, move.to): move.bytes for move in split.transfers}
    rows = []
    for device in split.devices:
        own = [span for span in run.spans if span.device == device.name]
        computed = sum(span.end_ms - span.start_ms for span in own if span.kind == "compute")
        sent = sum(sizes.get((device.name, span.tensor, span.to), 0) for span in own if span.kind == "transfer")
        times = map(f.milliseconds, (computed, device.busy_ms, run.latency_ms - computed))
        rows.append((f.clean(device.name), *times, f.size(sent)))
    return Table("Devices in the measured run", columns(*names, numeric=names[1:]), tuple(rows))


def split_tables(split: SplitPlan, run: MeasuredRun | None = None) -> list[Table]:
    """Devices, stages and transfers; and of a real run, where there is one."""
    device_names = ("device", "profile", "subgraphs", "MACs", "weights", "peak memory", "busy (predicted)")
    devices = tuple(
        (
            f.clean(d.name), f.clean(d.profile), str(len(d.subgraphs)), f.count(d.macs), f.size(d.weight_bytes),
            f.size(d.peak_memory_bytes), f.milliseconds(d.busy_ms),
        )
        for d in split.devices
    )  # fmt: skip
    stages = tuple(
        (
            str(stage.index),
            f.clean(stage.kind),
            ", ".join(f.clean(device) for device in stage.subgraphs),
            f.some([f.clean(layer) for layer in stage.layers]) or f.NONE,
            f.size(sum(move.bytes for move in split.transfers if move.stage == stage.index)),
        )
        for stage in split.stages
    )
    moves = tuple(
        (str(t.stage), f.clean(t.from_), f.clean(t.to), f.clean(t.tensor), f.size(t.bytes)) for t in split.transfers
    )
    parts = tuple(
        (f.clean(layer.name), str(layer.groups), f.clean(_told(layer.channels)), f.clean(_told(layer.inputs)) or f.NONE)
        for layer in split.layers
    )
    part_names = ("layer", "groups", "channels of the result", "of the input, where addends are exchanged")
    stage_names = ("stage", "kind", "devices", "divided layers", "received before")
    move_names = ("before stage", "from", "to", "tensor", "bytes")
    return [
        Table("Devices (MACs of one sample)", columns(*device_names, numeric=device_names[2:]), devices),
        *([_run_table(split, run)] if run else []),
        Table("Stages", columns(*stage_names, numeric=stage_names[-1:]), stages, folded=len(stages) > 12),
        Table("Parts of the layers", columns(*part_names, numeric=part_names[1:2]), parts, folded=len(parts) > 6),
        Table("Transfers of one sample", columns(*move_names, numeric=move_names[-1:]), moves, folded=len(moves) > 6),
    ]


def _millijoules(value: float | None) -> str:
    return f.NONE if value is None else f"{f.bare_ms(value)} mJ"


def _ends(values: tuple[float, float] | None, unit: str) -> str:
    return f.NONE if values is None else f"{values[0]:.0f}, {values[1]:.0f} {unit}"
