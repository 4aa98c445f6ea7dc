"""The report's tables, from a bundle's parts. Text out of files is cleaned here and escaped where it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from edgeprune.bundles.manifest import Manifest
from edgeprune.io import formatting as f
from edgeprune.lowering.record import LoweringRecord
from edgeprune.plans.plan import Plan
from edgeprune.profiling.estimating.estimates import Estimate
from edgeprune.profiling.result import LayerResult, ProfileResult, Result
from edgeprune.report.contents import SplitPlan
from edgeprune.report.document import Table, columns
from edgeprune.report.words.forms import executed_macs
from edgeprune.report.words.headline import plain_rows, ratio
from edgeprune.report.words.results import is_settled, machine_words, samples_per_second, setting, unsettled_mark

WORDS: Mapping[str, str] = {
    "MAC": "one multiply-add. FLOPs = 2 x MACs; this report shows MACs everywhere.",
    "theoretical speed-up": "MACs of the dense network / MACs of the pruned one: what most publications state.",
    "realistic speed-up": "latency dense / latency pruned, both measured in turn in one run on the same machine.",
    "efficiency": "realistic speed-up / theoretical speed-up: how much of the promise was kept.",
    "p50, p90, p95, p99": "latencies that 50, 90, 95 and 99 of 100 runs did not exceed.",
    "noise": "interquartile range / median of the runs. Above 10 %, take the figures as rough.",
    "interval": "the true median of the speed-up lies in it with 95 % confidence.",
    "filter, kernel": "filter f has weights W[f], shaped (input channels, k, k); its kernel for channel c is W[f, c].",
    "group": "part of a grouped convolution: some filters that read some of the input channels, and no others.",
    "lowering": "the form in which a layer is written to ONNX; all of a layer's forms compute the same.",
    "grouped, merged, split, padded, dense": "forms: as planned; groups joined; one convolution a group; channels "
    "filled up to the target's block; without groups. What joining and filling adds are zeros.",
    "executed MACs": "what a form computes, filled-in zeros included; never used for the theoretical speed-up.",
    "form 4 x 32→16": "a grouped convolution of 4 groups, each of 16 filters that read 32 channels.",
    "gather": "an operation that puts channels into another order; folding removes those that weights can absorb.",
    "of the roof": "least time that the device's roofline allows for a layer / its time. The roofline is the lower of "
    "the peak rate and what memory can feed at the layer's arithmetic intensity (FLOPs a byte moved).",
    "unsettled": "the time limit came before the median was known as closely as was asked.",
    "parity": "largest difference between the exported model and the dense one with zeros at the pruned weights.",
    "stage": "a maximal part of the network that one device can run without data from another device.",
}
_MOST_SETTINGS = 60


def headline_table(manifest: Manifest, profile: ProfileResult | None, lowering: LoweringRecord | None) -> Table:
    """Dense against pruned, one figure a row; the trained network's alone where nothing is pruned."""
    if manifest.is_plain:
        return Table("Trained network", columns("figure", "value", numeric=("value",)), tuple(plain_rows(manifest)))
    rows: list[tuple[str, ...]] = []
    if accuracy := manifest.accuracy:
        where = f", {accuracy.n} images of {f.clean(accuracy.data)}" if accuracy.n else ""
        change = f.points(accuracy.pruned - accuracy.dense)
        rows.append((f"Top-1{where}", f.top1(accuracy.dense), f.top1(accuracy.pruned), change))
        if accuracy.pruned_before_finetune is not None:
            before = accuracy.pruned_before_finetune
            rows.append(
                ("Top-1 before fine-tuning", f.top1(accuracy.dense), f.top1(before), f.points(before - accuracy.dense))
            )
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


def estimate_layers_table(one: Estimate) -> Table:
    """What most of each layer's estimated time is."""
    names = ("layer", "estimated dense ms", "estimated pruned ms", "mostly")
    rows = tuple(
        (f.shortened(f.clean(x.name), 64), f.bare_ms(x.dense_ms), f.bare_ms(x.pruned_ms), f.clean(x.bound))
        for x in one.layers
    )
    where = f"{f.clean(one.device)}, batch {one.batch_size}, {f.plural(one.threads, 'thread')}"
    return Table(f"Estimated layers on {where}: not measured", columns(*names, numeric=names[1:3]), rows, folded=True)


def layer_table(result: Result, *, folded: bool) -> Table:
    """Every layer, with the cause where it falls short; such rows are flagged."""
    bounded, mixed = any(x.bound_share is not None for x in result.layers), len(result.providers) > 1
    names = ("layer", "form", "MACs dense", "MACs", "dense ms", "pruned ms", "theory", "real", "efficiency")
    names = (*names, *(("of the roof",) if bounded else ()), *(("ran on",) if mixed else ()), "cause")
    rows = tuple(
        (
            f.shortened(f.clean(layer.name), 64),
            layer_form(layer),
            f.count(layer.dense_macs),
            f.count(layer.macs),
            f.bare_ms(layer.dense_ms),
            f.bare_ms(layer.pruned_ms),
            f.times(layer.theoretical_speedup),
            f.times(layer.realistic_speedup),
            f.percent(layer.efficiency),
            *((f.percent(layer.bound_share),) if bounded else ()),
            *((f.clean(layer.provider) or f.NONE,) if mixed else ()),
            f.harmless(layer.cause),
        )
        for layer in result.layers
    )
    slow = frozenset(
        number
        for number, layer in enumerate(result.layers)
        if layer.cause and layer.theoretical_speedup != 1 and layer.efficiency is not None
    )
    return Table(f"Layers on {setting(result)}", columns(*names, numeric=names[2 : 9 + bounded]), rows, folded, slow)


def layer_form(layer: LayerResult) -> str:
    """dense, or how many groups of what: 4 x 32→16; another lowering than grouped is named."""
    if layer.lowering == "dense":
        return "dense"
    named = "" if layer.lowering == "grouped" else f"{f.clean(layer.lowering)} "
    return f"{named}{layer.groups}\N{NO-BREAK SPACE}x\N{NO-BREAK SPACE}{layer.in_per_group}→{layer.out_per_group}"


def dense_table(plan: Plan) -> Table:
    """What stayed as it was, one reason a row. In a plan that thins, a layer without a reason follows its channels."""
    by_reason: dict[str, list[str]] = {}
    for entry in plan.layers:
        if entry.is_dense and not entry.kept_filters and (entry.note or not plan.thins):
            by_reason.setdefault(f.clean(entry.note) or "the plan gives no reason", []).append(f.clean(entry.name))
    rows = tuple((reason, str(len(names)), f.some(names)) for reason, names in by_reason.items())
    title = "Layers that keep all filters" if plan.thins else "Layers that the plan left dense"
    return Table(title, columns("reason", "layers", "which", numeric=("layers",)), rows)


def split_tables(split: SplitPlan) -> list[Table]:
    """Devices, stages and transfers."""
    device_names = ("device", "profile", "subgraphs", "MACs", "weights")
    devices = tuple(
        (f.clean(d.name), f.clean(d.profile), str(len(d.subgraphs)), f.count(d.macs), f.size(d.weight_bytes))
        for d in split.devices
    )
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
    stage_names = ("stage", "kind", "devices", "divided layers", "received before")
    move_names = ("before stage", "from", "to", "tensor", "bytes")
    return [
        Table("Devices (MACs of one sample)", columns(*device_names, numeric=device_names[2:]), devices),
        Table("Stages", columns(*stage_names, numeric=stage_names[-1:]), stages, folded=len(stages) > 12),
        Table("Transfers of one sample", columns(*move_names, numeric=move_names[-1:]), moves, folded=len(moves) > 6),
    ]


def checks_table(manifest: Manifest) -> Table:
    """What was verified, and what is left of the Gathers."""
    rows = []
    if parity := manifest.parity:
        rows += [
            ("Parity", "passed" if parity.passed else "FAILED"),
            ("Largest difference", f"{parity.max_rel:.1e} of the output's range, {parity.max_abs:.1e} absolute"),
            ("Tolerance", f"{parity.tolerance:.0e} of the output's range"),
            ("Inputs", ", ".join(f.clean(name) for name in parity.inputs) or f.NONE),
        ]
    if gathers := manifest.gathers:
        rows += [
            ("Gathers before folding", str(gathers.before_fold)),
            ("Gathers in the exported model", str(gathers.after_fold)),
        ]
    return Table("Checks of the exported model", columns("check", "result"), tuple(rows))


def settings_table(manifest: Manifest, plan: Plan | None) -> Table:
    """How the bundle was made."""
    training = {name: value for name, value in manifest.training.items() if name != "seed"} if manifest.is_plain else {}
    settings = manifest.settings or (plan.settings if plan else training)
    pairs: list[tuple[str, object]] = [
        ("architecture", manifest.arch),
        ("method", manifest.method or (plan.method if plan else "")),
        ("input of one sample", " x ".join(map(str, manifest.input_shape))),
        ("classes", manifest.num_classes or ""),
        ("opset", manifest.opset or ""),
        ("seed", manifest.seed),
        ("edgeprune", manifest.edgeprune_version),
        *_flat(settings),
        ("plan SHA-256", plan.sha256() if plan else ""),
    ]
    return Table("Settings", columns("setting", "value"), _pairs(pairs))


def environment_table(profile: ProfileResult | None, manifest: Manifest) -> Table:
    """Where it was measured, or made."""
    if profile is None:
        return Table("Made with", columns("what", "value"), _pairs(manifest.environment.items()))
    machine, how = profile.environment, profile.settings
    most, least = ("at most ", " or more") if how.interval else ("", "")
    pairs: list[tuple[str, object]] = [
        *machine_words(machine).items(),
        ("threads", machine.threads),
        ("pinned to cores", ", ".join(map(str, how.pin))),
        ("idle threads", ("spin" if how.spinning else "sleep") if machine.threads > 1 else ""),
        (
            "runs of each model",
            f"{most}{how.iterations}, after {how.warmup} of warm-up{least}, dense and pruned in turn",
        ),
        ("measured until", f"the 95 % interval was {how.interval:.1%} of the speed-up wide" if how.interval else ""),
        ("process", "a fresh one for every target" if how.fresh_process else ""),
        *machine.runtime_versions.items(),
    ]
    return Table("Measured on", columns("what", "value"), _pairs(pairs))


def words_table(*, plain: bool) -> Table:
    """The words that the report uses; that of a network that is not pruned uses few."""
    words = tuple((word, meaning) for word, meaning in WORDS.items() if word == "MAC" or not plain)
    return Table("Words of this report", columns("word", "meaning"), words)


def _pairs(pairs: Iterable[tuple[str, object]]) -> tuple[tuple[str, str], ...]:
    return tuple((f.clean(name), f.clean(value)) for name, value in pairs if value != "")


def _flat(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Nested settings as dotted names."""
    found: list[tuple[str, object]] = []
    for name, value in settings.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return found[:_MOST_SETTINGS]


def _millijoules(value: float | None) -> str:
    return f.NONE if value is None else f"{f.bare_ms(value)} mJ"


def _ends(values: tuple[float, float] | None, unit: str) -> str:
    return f.NONE if values is None else f"{values[0]:.0f}, {values[1]:.0f} {unit}"
