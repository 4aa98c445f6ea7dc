"""What `edgeprune profile` prints: of networks, and of a machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.cli.tables import milliseconds, say, speedup, table
from edgeprune.io import progress

if TYPE_CHECKING:
    from edgeprune.devices.device_profile import DeviceProfile, Marked
    from edgeprune.profiling.result import ProfileResult, Result


def show(result: ProfileResult) -> None:
    """The headline of every result, the layers of the first, what failed, and unless quiet all warnings, and what to
    try."""
    _results(result.results)
    if result.results and result.results[0].layers:
        _layers(result.results)
    if result.estimates:
        estimated = [
            (
                *(e.device, e.threads, e.batch_size, milliseconds(e.dense_ms), milliseconds(e.pruned_ms)),
                *(speedup(e.speedup), e.source),
            )
            for e in result.estimates
        ]
        heads = ("device", "threads", "batch", "dense ms", "pruned ms", "speed-up", "from")
        table("estimates: nothing of this was measured", heads, estimated)
    _precisions(result)
    for failure in result.failures:
        say(f"not measured ({failure.setting}): {failure.error}")
    if progress.is_shown():
        for text in _remarks(result.results):
            say(text)


def _results(results: Iterable[Result]) -> None:
    rows = [
        (
            r.target,
            r.threads,
            r.batch_size,
            milliseconds(r.dense.p50_ms) if r.dense else "",
            milliseconds(r.pruned.p50_ms),
            speedup(r.theoretical_speedup),
            speedup(r.realistic_speedup),
            f"{r.paired_interval[0]:.2f}-{r.paired_interval[1]:.2f}" if r.paired_interval else "",
            f"{r.efficiency:.2f}" if r.efficiency else "",
        )
        for r in results
    ]
    times = ("dense p50 ms", "pruned p50 ms")
    columns = ("target", "threads", "batch", *times, "theoretical", "realistic", "95%", "efficiency")
    table("profile", columns, rows)


def _layers(results: tuple[Result, ...]) -> None:
    """The layers of the first result, and how many other results have some."""
    from edgeprune.io.formatting import plural
    from edgeprune.report.words.results import setting

    first, *rest = results
    rows = [
        (
            x.name,
            x.lowering,
            x.macs,
            milliseconds(x.dense_ms),
            milliseconds(x.pruned_ms),
            f"{x.efficiency:.2f}" if x.efficiency else "",
            f"{x.bound_share:.0%}" if x.bound_share else "",
            x.cause,
        )
        for x in first.layers
    ]
    names = ("layer", "lowering", "MACs", "dense ms", "pruned ms", "efficiency", "of bound", "likely cause")
    others = sum(bool(other.layers) for other in rest)
    more = f" (of {plural(others, 'more setting')}: in profile.json, or --json, and the report)" if others else ""
    table(f"layers on {setting(first)}{more}", names, rows)


def _remarks(results: tuple[Result, ...]) -> Iterable[str]:
    """Warnings, and what to try, each once with the settings that it holds for."""
    from edgeprune.report.words.results import placed, without_figures

    warnings = [(text, r) for r in results for text in r.warnings]
    advice = [(text, r) for r in results for text in r.advice]
    yield from (f"note: {text}" for text in placed(warnings, len(results), alike=without_figures))
    yield from (f"what to try: {text}" for text in placed(advice, len(results), alike=_remedy))


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
            f"{len(p.formats) - len(p.other_layers)} of {len(p.formats)}" if p.formats else "not told",
            f"{p.n} of {p.data}",
        )
        for p in result.precisions
    ]
    names = ("target", "network", "precision", "max rel", "tolerance", "same class", "top-1", "top-1 in fp32")
    heads = (*names, "layers that ran in it", "inputs")
    if rows:
        table("compared with FP32", heads, rows)


def show_device(profile: DeviceProfile, path: Path) -> None:
    """Every figure of a device profile with how sure it is, and how to use the file."""
    rows = [(key, _figure(marked), marked.certainty, marked.source) for key, marked in profile.figures().items()]
    table(f"{profile.name}: {profile.description}", ("figure", "value", "certainty", "source"), rows)
    say(f"Use it: --device-profile {path}")


def _figure(marked: Marked) -> str:
    from msgspec import to_builtins

    values = {key: value for key, value in to_builtins(marked).items() if key not in ("certainty", "source") and value}
    return ", ".join(f"{value:g}" if key == "value" else f"{key} {value}" for key, value in values.items())
