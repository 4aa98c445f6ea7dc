"""The report's sections on what was measured: speeds, single layers, what to try."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgeprune.io import formatting as f
from edgeprune.profiling.result import Latency, ProfileResult, Result
from edgeprune.report.document import Block, Notes, Picture, Section
from edgeprune.report.page import layer_tables, tables
from edgeprune.report.views.measurements import Axis, Distribution, Roofline, Sweep, Waterfall, sweep, typical_share
from edgeprune.report.words.results import placed, setting

MOST_LAYER_TABLES = 6
"""Settings whose layers are listed on the page; with more, the JSON and CSV files hold the others."""
MOST_PICTURED = 3
"""Targets whose layers are drawn: the first setting of each."""
MOST_ESTIMATED = 3
"""Estimates whose layers are listed."""
FEW_STEPS = 3
AXES: tuple[Axis, ...] = ("batch size", "threads")


def speed_blocks(profile: ProfileResult) -> Iterator[Block]:
    """Promised beside measured, all latencies, sweeps, single runs, and what makes the figures doubtful."""
    results = profile.results
    if any(result.realistic_speedup for result in results):
        yield Picture("speed-ups", "Theoretical against realistic speed-up", profile, _speedup_words(results))
        yield tables.speed_table(profile)
    for axis in AXES:
        if view := sweep(results, axis):
            name, caption = f"sweep-{axis.replace(' ', '-')}", f"Speed-up and samples a second over the {axis}"
            yield Picture(name, caption, view, _sweep_words(view))
    if view_of_runs := Distribution.of(results):
        caption = "How long single runs took (line: median)"
        yield Picture("runs", caption, view_of_runs, _distribution_words(results, view_of_runs))
    yield tables.latency_table(profile)
    resources = tables.resource_table(profile)
    if resources.rows:
        yield resources
    precisions = tables.precision_table(profile)
    if precisions.rows:
        yield precisions
    if doubts := (*not_measured(profile), *doubtful(results)):
        yield Notes(doubts, warning=True)


def not_measured(profile: ProfileResult) -> tuple[str, ...]:
    """What was asked for, and could not be measured."""
    return tuple(f"Not measured: {f.clean(one.setting)}: {f.harmless(one.error)}" for one in profile.failures)


def doubtful(results: Sequence[Result]) -> tuple[str, ...]:
    """What makes figures doubtful, once each, with the settings that it holds for."""
    told = [(text, result) for result in results for text in (*_mixed(result), *result.warnings)]
    return placed(told, len(results))


def layers_section(profile: ProfileResult | None, *, thins: bool) -> Section:
    """Every layer of every result (as far as a page holds them), and pictures of the first of each target."""
    measured = [result for result in (profile.results if profile else ()) if result.layers]
    return Section("layers", "Layer by layer", tuple(_layer_blocks(measured, thins=thins)) if measured else ())


def advice_section(profile: ProfileResult | None) -> Section:
    """What to try next."""
    results = profile.results if profile else ()
    items = placed([(text, result) for result in results for text in result.advice], len(results))
    return Section("try", "What to try", (Notes(items),) if items else ())


def estimates_section(profile: ProfileResult | None) -> Section:
    """What devices that are not here would take, kept apart from all that was measured."""
    estimates = profile.estimates if profile else ()
    if not estimates:
        return Section("estimates", "", ())
    text = (
        "Nothing in this section was measured: the figures are computed from device profiles, and as sure as these. "
        "To know, run edgeprune profile on the device itself."
    )
    tables_ = [tables.estimate_table(estimates)]
    tables_ += [layer_tables.estimate_layers_table(one) for one in estimates[:MOST_ESTIMATED] if one.layers]
    return Section("estimates", "Estimates for other devices", (Notes((text,), warning=True), *tables_))


def _layer_blocks(measured: list[Result], *, thins: bool) -> Iterator[Block]:
    yield (
        "A layer's time holds its Gathers and the reordering of data that the runtime adds for it. Layers are timed "
        "with the runtime's profiler, whose clock has steps of a microsecond: short layers are rough. An efficiency "
        "above 100 % is noise, or a dense layer whose shape the runtime takes badly."
    )
    first = measured[0]
    pictured = list({(result.target, result.precision): result for result in reversed(measured)}.values())[::-1]
    for number, result in enumerate(pictured[:MOST_PICTURED]):
        yield from _layer_pictures(result, f"-{number}" if number else "")
    yield from (layer_tables.layer_table(result, folded=result is not first) for result in measured[:MOST_LAYER_TABLES])
    if len(measured) > MOST_LAYER_TABLES:
        left = [setting(result) for result in measured[MOST_LAYER_TABLES:]]
        yield f"report.json and report.csv hold the layers of {f.plural(len(left), 'more setting')}: {'; '.join(left)}."
    if first.pruned_other_ms is not None:
        other = f"{f.milliseconds(first.pruned_other_ms)} of the pruned network's time is no layer's"
        dense = "" if first.dense_other_ms is None else f" (dense: {f.milliseconds(first.dense_other_ms)})"
        pruned = (
            "They work on the channels that are left, or add thinner branches to whole streams"
            if thins
            else "Pruning leaves it as it is"
        )
        yield f"{other}{dense}: activations, adds, pooling. {pruned}."


def _layer_pictures(result: Result, suffix: str) -> Iterator[Picture]:
    where = setting(result)
    if waterfall := Waterfall.of(result):
        caption = f"From the dense to the pruned network's time on {where}"
        yield Picture(f"waterfall{suffix}", caption, waterfall, _waterfall_words(waterfall))
    if any(layer.pruned_ms for layer in result.layers):
        text = "The table below holds the times of all layers."
        yield Picture(f"layers{suffix}", f"Time of each layer on {where}", result, text)
    if roofline := Roofline.of(result):
        yield Picture(f"roofline{suffix}", f"Rate of each layer on {where}, under the device's roof", roofline,
                      _roofline_words(roofline))  # fmt: skip


def _speedup_words(results: tuple[Result, ...]) -> str:
    found = [result for result in results if result.realistic_speedup and result.efficiency]
    if not found:
        return ""
    best = max(found, key=lambda result: result.efficiency or 0.0)
    worst = min(found, key=lambda result: result.efficiency or 0.0)
    if best is worst:
        return f"{f.percent(best.efficiency)} of the theoretical speed-up is realised."
    return (
        f"From {f.percent(worst.efficiency)} ({setting(worst)}) to {f.percent(best.efficiency)} ({setting(best)}) of "
        "the theoretical speed-up is realised."
    )


def _sweep_words(view: Sweep) -> str:
    """Where each line starts and ends; the table of speed-ups holds what is between."""

    def at(x: int) -> str:
        return f"batch {x}" if view.axis == "batch size" else f.plural(x, "thread")

    parts = []
    for line in view.lines:
        ends = [
            f"{f.times(result.realistic_speedup)} at {at(x)}" if result.realistic_speedup
            else f"{f.milliseconds(result.pruned.p50_ms)} at {at(x)}"
            for x, result in ((line.x[0], line.results[0]), (line.x[-1], line.results[-1]))
        ]  # fmt: skip
        parts.append(f"{line.label}: {ends[0]}, {ends[1]}")
    more = f" {f.plural(view.left_out, 'more line')} left out." if view.left_out else ""
    return f"{'; '.join(parts)}. Dashed: theoretical speed-up, and the dense network.{more}"


def _distribution_words(results: tuple[Result, ...], view: Distribution) -> str:
    more = f" {f.plural(view.left_out, 'more setting')} left out." if view.left_out else ""
    noisiest = max(
        ((taken.noise, which, result) for result in results for which, taken in _both(result) if taken),
        key=lambda found: found[0],
    )
    noise, which, result = noisiest
    return (
        f"The middle half of the runs spreads over at most {f.percent(noise)} of the median ({which}, "
        f"{setting(result)}); the table of latencies holds the percentiles.{more}"
    )


def _waterfall_words(view: Waterfall) -> str:
    layers = sorted((step for step in view.steps if step.is_layer), key=lambda step: -step.saved_ms)
    saved = [step for step in layers if step.saved_ms > 0][:FEW_STEPS]
    lost = [step for step in reversed(layers) if step.saved_ms < 0][:FEW_STEPS]
    text = f"The layers' times, and all else, add up to {f.milliseconds(view.dense_ms)} dense and "
    text += f"{f.milliseconds(view.pruned_ms)} pruned."
    if saved:
        text += f" Most is saved by {', '.join(f'{s.name} ({f.milliseconds(s.saved_ms)})' for s in saved)}."
    if lost:
        text += f" Slower than before: {', '.join(f'{s.name} ({f.milliseconds(-s.saved_ms)})' for s in lost)}."
    return text


def _roofline_words(view: Roofline) -> str:
    share = typical_share(view)
    if share is None or view.roof is None:
        return "No roof is known for this device: only the rates are shown."
    peak, slope = view.roof
    low = min((p for p in view.points if p.bound), key=lambda p: p.achieved / (p.bound or 1.0))
    waiting = sum(p.intensity * slope < peak for p in view.points)
    return (
        f"Half of the layers reach {f.percent(share)} or more of what the device could do at their intensity; the "
        f"least, {low.name}, {f.percent(low.achieved / (low.bound or 1.0))}. {waiting} of {len(view.points)} layers "
        "lie where memory, not arithmetic, sets the bound."
    )


def _mixed(result: Result) -> Iterator[str]:
    """Where nodes ran on several providers, a speed-up is that of the mixture."""
    if len(result.providers) > 1:
        parts = sorted(result.providers.items(), key=lambda pair: -pair[1])
        counted = ", ".join(f"{f.plural(count, 'node')} on {f.clean(name)}" for name, count in parts)
        yield f"what ran is a mixture: {counted}"


def _both(result: Result) -> tuple[tuple[str, Latency | None], ...]:
    return ("dense", result.dense), ("pruned", result.pruned)
