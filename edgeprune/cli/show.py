"""What the CLI prints: tables on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from edgeprune.io import progress

if TYPE_CHECKING:
    from pathlib import Path

    from edgeprune.bundles.bundle import Bundle
    from edgeprune.devices.device_profile import DeviceProfile, Marked
    from edgeprune.lowering.record import LoweringRecord
    from edgeprune.partitioning.manifest import PartitionManifest
    from edgeprune.pipeline import CompareResult, RunResult
    from edgeprune.pipeline.inspect import Inspection
    from edgeprune.pipeline.list import Row
    from edgeprune.pipeline.train import TrainOutcome
    from edgeprune.profiling.result import ProfileResult
    from edgeprune.pruning.pruned import Pruned
    from edgeprune.training.loop import EvalResult

PIPE_WIDTH = 180
NUMERIC = frozenset("0123456789")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; cells that are numbers are set to the right."""
    body = [
        ["" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows
    ]
    shown = Table(title=_plain(title), title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        numeric = all(not row[number] or row[number][0] in NUMERIC for row in body)
        shown.add_column(column, justify="right" if numeric and body else "left", overflow="fold")
    for row in body:
        shown.add_row(*map(_plain, row))
    _console().print(shown)


def facts(title: str, pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values, one a line."""
    shown = Table(title=_plain(title), title_justify="left", title_style="bold", show_header=False)
    for name, value in pairs:
        shown.add_row(_plain(name), _plain(value))
    _console().print(shown)


def pruned(result: Pruned, bundle: Bundle) -> None:
    """The layers with what became of each, then the headline."""
    from edgeprune.plans.costs import planned_macs
    from edgeprune.plans.kept_channels import KeptChannels

    planned, kept = planned_macs(result.plan, result.graph), KeptChannels(result.plan, result.graph)
    recovery, notes = result.result.recovery, result.notes
    rows = []
    for e in result.plan.layers:
        layer = result.graph.layer(e.name)
        filters = kept.filters(layer)
        left = f"{len(filters.index)} of {filters.channels}"
        rows.append(
            (
                e.name,
                # columns only where the plan or the method has something to say
                *((left,) if result.plan.thins else ()),
                *((e.groups, e.kept or "") if result.plan.grouped() else ()),
                layer.macs,
                planned[e.name],
                *((_share(recovery.get(e.name)),) if recovery else ()),
                notes[e.name],
            )
        )
    names = (
        *(("filters",) if result.plan.thins else ()),
        *(("groups", "kept a group") if result.plan.grouped() else ()),
        *("MACs dense", "MACs pruned"),
        *(("importance kept",) if recovery else ()),
    )
    table("Layers", ("layer", *names, "note"), rows)
    headline(bundle)


def trained(outcome: TrainOutcome) -> None:
    """What training came to: as `prune` shows it where the network is pruned, else accuracy and size."""
    summary, bundle = outcome.summary, outcome.bundle
    if outcome.pruned is not None:
        pruned(outcome.pruned, bundle)
        return
    if summary.plan_sha256:
        headline(bundle)
        return
    accuracy, last = summary.accuracy, summary.history[-1]
    pairs = [("Network", bundle.manifest.arch), ("Epochs", str(summary.epochs))]
    pairs.append(("Top-1", f"{accuracy.dense:.2f}% of {accuracy.n} test images, {last.accuracy:.2f}% in training"))
    if summary.macs and summary.params:
        pairs += [("MACs", f"{summary.macs.dense:,}"), ("Parameters", f"{summary.params.dense:,}")]
    facts(str(bundle.folder), [*pairs, ("Seconds", f"{summary.seconds:.1f}")])


def headline(bundle: Bundle) -> None:
    """The headline table of a bundle, what to know of its layers' forms, and where its report lies."""
    from edgeprune.bundles.names import LOWERING, PROFILE
    from edgeprune.lowering.record import load_lowering
    from edgeprune.profiling.result import load_profile_result
    from edgeprune.report.words.forms import cache_sentence
    from edgeprune.report.words.headline import headline_rows

    measured = load_profile_result(bundle.path(PROFILE)) if bundle.has(PROFILE) else None
    lowered = load_lowering(bundle.path(LOWERING)) if bundle.has(LOWERING) else None
    facts(str(bundle.folder), headline_rows(bundle.manifest, measured, lowered))
    for text in filter(None, (cache_sentence(lowered), *lowered.notes) if lowered else ()):
        _say(text)
    if bundle.has("report.html"):
        _say(f"Report: {bundle.folder / 'report.html'}")


def lowering(record: LoweringRecord, bundle: Bundle) -> None:
    """The form of each layer beside what the others cost, and what whole networks took."""
    from edgeprune.lowering.forms import Form
    from edgeprune.report.words.forms import choice_sentence

    forms = sorted({form for layer in record.layers for form in layer.costs}, key=Form.parse)
    rows = [
        (layer.name, layer.form, layer.macs, layer.executed_macs, *(_ms(layer.costs.get(form)) for form in forms))
        for layer in record.layers
    ]
    table("Forms (ms)", ("layer", "form", "MACs", "executed", *forms), rows)
    networks = [
        (network.what, _ms(network.p50_ms), _times(network.speedup), "taken" if network.what == record.chosen else "")
        for network in record.networks
    ]
    table("Networks", ("network", "p50 ms", "speed-up", ""), networks)
    if choice := choice_sentence(record):
        _say(choice)
    headline(bundle)


def partition(manifest: PartitionManifest, bundle: Bundle) -> None:
    """Devices, stages, and what the split is predicted to bring."""
    from edgeprune.io.formatting import speed_change

    rows = [(d.name, d.profile, len(d.subgraphs), d.macs, d.weight_bytes) for d in manifest.devices]
    table("Devices", ("device", "profile", "subgraphs", "MACs", "weight bytes"), rows)
    predicted = manifest.predicted
    pairs = [
        ("stages", str(len(manifest.stages))),
        ("moved per inference", f"{predicted.bytes_per_inference:,} bytes in {len(manifest.transfers)} transfers"),
        ("predicted latency (estimate)", f"{predicted.latency_ms:.3f} ms"),
        ("against the host alone (estimate)", speed_change(predicted.speedup)),
        ("basis", predicted.basis),
    ]
    facts(str(bundle.folder), pairs)


def profile(result: ProfileResult) -> None:
    """The headline of every result, the layers of the first, what failed, and unless quiet all warnings, and what to
    try."""
    from edgeprune.io.formatting import plural
    from edgeprune.report.words.results import placed, setting, without_figures

    rows = [
        (
            r.target,
            r.threads,
            r.batch_size,
            _ms(r.dense.p50_ms) if r.dense else "",
            _ms(r.pruned.p50_ms),
            _times(r.theoretical_speedup),
            _times(r.realistic_speedup),
            f"{r.paired_interval[0]:.2f}-{r.paired_interval[1]:.2f}" if r.paired_interval else "",
            f"{r.efficiency:.2f}" if r.efficiency else "",
        )
        for r in result.results
    ]
    times = ("dense p50 ms", "pruned p50 ms")
    columns = ("target", "threads", "batch", *times, "theoretical", "realistic", "95%", "efficiency")
    table("profile", columns, rows)
    for r in result.results[:1]:
        layers = [
            (
                x.name,
                x.lowering,
                x.macs,
                _ms(x.dense_ms),
                _ms(x.pruned_ms),
                f"{x.efficiency:.2f}" if x.efficiency else "",
                f"{x.bound_share:.0%}" if x.bound_share else "",
                x.cause,
            )
            for x in r.layers
        ]
        if layers:
            names = ("layer", "lowering", "MACs", "dense ms", "pruned ms", "efficiency", "of bound", "likely cause")
            others = sum(bool(other.layers) for other in result.results[1:])
            more = (
                f" (of {plural(others, 'more setting')}: in profile.json, or --json, and the report)" if others else ""
            )
            table(f"layers on {setting(r)}{more}", names, layers)
    if result.estimates:
        estimated = [
            (e.device, e.threads, e.batch_size, _ms(e.dense_ms), _ms(e.pruned_ms), _times(e.speedup), e.source)
            for e in result.estimates
        ]
        heads = ("device", "threads", "batch", "dense ms", "pruned ms", "speed-up", "from")
        table("estimates: nothing of this was measured", heads, estimated)
    _precisions(result)
    for failure in result.failures:
        _console().print(f"not measured ({failure.setting}): {failure.error}", markup=False, soft_wrap=True)
    if not progress.is_shown():
        return
    count = len(result.results)
    notes = placed([(text, r) for r in result.results for text in r.warnings], count, alike=without_figures)
    tries = placed([(text, r) for r in result.results for text in r.advice], count, alike=_remedy)
    for text in (*(f"note: {text}" for text in notes), *(f"what to try: {text}" for text in tries)):
        _console().print(text, markup=False, soft_wrap=True)


def _remedy(advice: str) -> str:
    """What is advised, without the layers and figures behind it."""
    return advice.partition(": ")[0]


def _precisions(result: ProfileResult) -> None:
    """How far other precisions are from FP32."""
    rows = [
        (
            p.target,
            p.network,
            p.precision,
            f"{p.max_rel:.1e}",
            f"{p.tolerance:g}",
            "" if p.agreement is None else f"{p.agreement:.1f}%",
            "" if p.top1 is None else f"{p.top1:.2f}%",
            "" if p.top1_fp32 is None else f"{p.top1_fp32:.2f}%",
            f"{p.n} of {p.data}",
        )
        for p in result.precisions
    ]
    names = ("target", "network", "precision", "max rel", "tolerance", "same class", "top-1", "top-1 in fp32", "inputs")
    if rows:
        table("compared with FP32", names, rows)


def device(profile: DeviceProfile, path: Path) -> None:
    """Every figure of a device profile with how sure it is, and how to use the file."""
    rows = [(key, _figure(marked), marked.certainty, marked.source) for key, marked in profile.figures().items()]
    table(f"{profile.name}: {profile.description}", ("figure", "value", "certainty", "source"), rows)
    _console().print(f"Use it: --device-profile {path}", soft_wrap=True, highlight=False, markup=False)


def _figure(marked: Marked) -> str:
    from msgspec import to_builtins

    values = {key: value for key, value in to_builtins(marked).items() if key not in ("certainty", "source") and value}
    return ", ".join(f"{value:g}" if key == "value" else f"{key} {value}" for key, value in values.items())


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def run(result: RunResult) -> None:
    pairs = [(f"output {name}", " x ".join(map(str, shape))) for name, shape in result.outputs.items()]
    pairs.append(("first run", f"{result.milliseconds:.3f} ms"))
    pairs += [(f"computing on {device}", f"{ms:.3f} ms") for device, ms in result.devices.items()]
    if result.devices:
        pairs.append(("moved between devices", f"{result.transferred_bytes:,} bytes"))
    facts("run", pairs)


def comparison(result: CompareResult) -> None:
    """What changed, what else differs between the runs, what could not be compared, and where the page lies."""
    from edgeprune.io.formatting import signed_percent

    rows = [
        (
            c.target,
            c.precision,
            c.batch_size,
            c.threads,
            c.figure,
            f"{c.before:.3f}",
            f"{c.after:.3f}",
            signed_percent(c.relative),
            c.verdict,
        )
        for c in result.changes
    ]
    names = ("target", "precision", "batch", "threads", "figure", "before", "after", "change", "")
    if result.other_networks:
        _say(f"warning: {result.other_networks}")
    if rows:
        table(f"the last run against {result.baseline}", names, rows)
    if result.nothing_shared:
        _say(result.nothing_shared)
    for text in result.failures:
        _say(text)
    for text in result.differences:
        _say(f"not alike: {text}")
    for setting in () if result.nothing_shared else result.not_compared:
        _say(f"not compared, measured in one run only: {setting}")
    if result.passed:
        _say(result.passed)
    for path in result.files:
        _say(path)


def evaluation(result: EvalResult) -> None:
    facts("accuracy", [("top-1", f"{result.top1:.2f}%"), ("images", str(result.n)), ("loss", f"{result.loss:.4f}")])


def inspection(result: Inspection) -> None:
    facts(f"{result.path}: {result.kind}", result.facts.items())
    if result.rows:
        table("", result.columns, result.rows)


def listing(what: str, rows: Sequence[Row]) -> None:
    if what == "methods":
        _methods(rows)
    elif rows:
        table(what, tuple(rows[0]), [tuple(row.values()) for row in rows])


def _methods(rows: Sequence[Row]) -> None:
    """One table a method, its summary above its settings."""
    for head in (row for row in rows if not row["setting"]):
        _console().print(f"\n{head['method']}: {head['what']}", markup=False, highlight=False, style="bold")
        settings = [row for row in rows if row["method"] == head["method"] and row["setting"]]
        columns = ("setting", "default", "paper", "what")
        table("set with --set NAME=VALUE", columns, [tuple(row[name] for name in columns) for row in settings])


def _say(text: str) -> None:
    """A line as it is; names out of files are no markup."""
    _console().print(text, soft_wrap=True, highlight=False, markup=False)


def _plain(text: str) -> Any:
    from rich.text import Text  # names out of files must not be read as markup

    return Text(text)


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Nobody reads on (`| head`): print nothing more, but let the exit code still say how it went."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _console() -> Console:
    """Standard output; in a pipe or a file, lines are wide rather than wrapped."""
    console = _Output()
    return console if console.is_terminal or "COLUMNS" in os.environ else _Output(width=PIPE_WIDTH)
