"""The page that lines several runs up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgeprune.bundles.manifest import Accuracy, Count
from edgeprune.io import formatting as f
from edgeprune.profiling.result import Result
from edgeprune.report.comparison.changes import FIGURES, Change, Fact, change, change_words, facts, layer_changes
from edgeprune.report.comparison.compared import Compared, differences, failures, other_networks, shared_settings
from edgeprune.report.comparison.exchange import TITLE as EXCHANGE
from edgeprune.report.comparison.exchange import exchange_blocks, exchange_words, exchanged
from edgeprune.report.comparison.gate import nothing_shared
from edgeprune.report.comparison.runs import Run, all_settings
from edgeprune.report.document import Block, Document, Notes, Picture, Section, Table, Tile, columns
from edgeprune.report.page.making_tables import WORDS
from edgeprune.report.views.measurements import Trend
from edgeprune.report.words.forms import count_words, executed_macs
from edgeprune.report.words.results import Setting, unsettled_mark

MOST_PICTURED = 8
MOST_SETTINGS_WITH_LAYERS = 3
MOST_LAYERS = 15
_WORDS = ("MAC", "theoretical speed-up", "realistic speed-up", "efficiency", "interval", "unsettled")
BEYOND = "The 95 % intervals of the two runs do not overlap."


def build_comparison(compared: Compared) -> Document:
    """The whole page."""
    runs = compared.runs
    archs = dict.fromkeys(f.clean(run.manifest.arch) for run in runs if run.manifest and run.manifest.arch)
    names = f"{', '.join(archs)}: " if archs else ""
    dates = sorted({f.clean(run.profile.environment.date[:10]) for run in runs if run.is_measured})
    measured = f", measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}" if dates else ""
    failed = failures(runs)
    sections = (
        Section("alike", "What differs between the runs", tuple(_alike(runs))),
        Section("failures", "What could not be measured", (Notes(failed, warning=True),) if failed else ()),
        Section("exchange", EXCHANGE, tuple(exchange_blocks(runs))),
        *_setting_sections(compared),
        Section("networks", "The networks", (_network_table(runs),)),
        Section("layers", f"Layers of {f.clean(compared.last.name)}", tuple(_layer_blocks(compared))),
        Section("making", "How they were measured", (_fact_table(runs),)),
        Section("words", "Words", (_words_table(),)),
    )
    return Document(
        title=f"{names}{f.plural(len(runs), 'run')} compared",
        subtitle=f"edgeprune {f.clean(compared.version)}{measured}",
        summary=_summary(compared),
        tiles=tuple(_tiles(compared)),
        sections=tuple(section for section in sections if section.blocks),
    )


def verdict(one: Change | None) -> str:
    """Of a change; a dash for a figure that one of the runs lacks."""
    return f.NONE if one is None else one.verdict


def _alike(runs: Sequence[Run]) -> Iterator[Block]:
    found = tuple(filter(None, (other_networks(runs), *differences(runs))))
    if found:
        yield "These runs were not made alike. What is listed here may explain a change as well as the network may."
        yield Notes(found, warning=True)
    else:
        yield (
            "As far as they tell, the runs were made on the same machine, with the same versions and settings, of the "
            "same dense network. Noise is that within a run; from run to run a machine also drifts."
        )


def _summary(compared: Compared) -> str:
    shared = shared_settings(compared)
    first, last = f.clean(compared.baseline.name), f.clean(compared.last.name)
    if len(compared.runs) == 1:
        return f"{first} alone: give more runs, or --baseline, to compare."
    if not shared:
        return nothing_shared(compared.runs) or exchange_words(exchanged(compared.runs))
    told = []
    for setting in shared:
        changes = [_change(name, compared.baseline, compared.last, setting) for name in ("realistic", "p50")]
        words = [f"{change_words(one)}, {verdict(one)}" for one in changes if one is not None]
        if words:
            told.append(f"{setting}: {'; '.join(words)}.")
    other = other_networks(compared.runs)
    warned = f"{other[:1].upper()}{other[1:]}. " if other else ""
    differs = " The runs were not made alike: see below." if differences(compared.runs) else ""
    return f"{warned}{last} against {first}. On {' On '.join(told[:2])}{differs}"


def _tiles(compared: Compared) -> Iterator[Tile]:
    """The last run's figures in the first setting that both have."""
    shared = shared_settings(compared)
    if not shared:
        return
    result = compared.last.result(shared[0])
    if result is not None and result.realistic_speedup is not None:
        yield Tile(
            f.times(result.realistic_speedup), "realistic speed-up", f"{f.clean(compared.last.name)}, {shared[0]}"
        )
        yield Tile(f.times(result.theoretical_speedup), "theoretical speed-up", "from MACs")
    for name, label in (("realistic", "realistic speed-up"), ("p50", "latency p50")):
        one = _change(name, compared.baseline, compared.last, shared[0])
        if one is not None and len(compared.runs) > 1:
            tone = {"better": "good", "worse": "poor"}.get(verdict(one), "")
            detail = f"against {f.clean(compared.baseline.name)}, {verdict(one)}"
            yield Tile(f.signed_percent(one.relative), f"change of {label}", detail, tone)


def _setting_sections(compared: Compared) -> Iterator[Section]:
    """One section a setting, those of the first run first."""
    for number, setting in enumerate(all_settings(compared.runs)):
        blocks: list[Block] = []
        results = [(run.name, run.result(setting)) for run in compared.runs]
        trend = Trend.of(results) if number < MOST_PICTURED else None
        if trend:
            text = "Speed-ups and times of all runs, in the order given; the table below holds the figures."
            blocks.append(Picture(f"trend-{number}", f"From run to run on {setting}", trend, text))
        yield Section(f"setting-{number}", f"On {setting}", (*blocks, _setting_table(compared, setting)))


def _setting_table(compared: Compared, setting: Setting) -> Table:
    speeds = ("theoretical", "realistic", "95 % interval", "efficiency")
    times = ("dense p50 ms", "pruned p50 ms", "95 % interval ms")
    names = ("run", *speeds, *times, "against the first run")
    rows, flags = [], set()
    for number, run in enumerate(compared.runs):
        result = run.result(setting)
        if result is None:
            rows.append((f.clean(run.name), *[f.NONE] * 7, _missing(run, setting)))
            continue
        changes = [_change(name, compared.baseline, run, setting) if number else None for name in ("realistic", "p50")]
        if any(verdict(one) == "worse" for one in changes):
            flags.add(number)
        rows.append((f.clean(run.name), *_figures(result), _verdicts(changes, number)))
    caption = f"Runs on {setting}"
    return Table(caption, columns(*names, numeric=names[1:8]), tuple(rows), flags=frozenset(flags))


def _missing(run: Run, setting: Setting) -> str:
    asked = setting.target, setting.threads, setting.batch_size
    failed = any(failure.holds_for(*asked) for failure in run.profile.failures)
    return "could not be measured" if failed else "not measured"


def _figures(result: Result) -> tuple[str, ...]:
    low, high = result.pruned.p50_interval_ms
    dense = result.dense
    return (
        f.times(result.theoretical_speedup),
        f.times(result.realistic_speedup),
        f.interval(result.paired_interval),
        f.percent(result.efficiency),
        f"{f.bare_ms(dense.p50_ms)}{unsettled_mark(dense.settled)}" if dense else f.NONE,
        f"{f.bare_ms(result.pruned.p50_ms)}{unsettled_mark(result.pruned.settled)}",
        f"{f.bare_ms(low)} to {f.bare_ms(high)}",
    )


def _verdicts(changes: Sequence[Change | None], number: int) -> str:
    if not number:
        return "the first run"
    found = [
        f"{label} {f.signed_percent(one.relative)}, {verdict(one)}"
        for label, one in zip(("speed-up", "p50"), changes, strict=True)
        if one is not None
    ]
    return "; ".join(found) or "the first run lacks it"


def _scored(accuracy: Accuracy | None, value: float | None) -> str:
    """Top-1, or in another metric with its name."""
    metric = f.clean(accuracy.metric) if accuracy else ""
    return f.score(value, metric) + (f" {metric}" if metric else "")


def _network_table(runs: Sequence[Run]) -> Table:
    names = ("run", "method", "top-1 dense", "top-1", "MACs dense", "MACs", "executed MACs", "parameters", "forms")
    rows = []
    for run in runs:
        manifest, accuracy = run.manifest, run.manifest.accuracy if run.manifest else None
        macs, params = _macs(run), manifest.params if manifest else None
        executed = executed_macs(run.lowering, manifest) if run.lowering and manifest else None
        rows.append(
            (
                f.clean(run.name),
                f.clean(manifest.method) or f.NONE if manifest else "no bundle: not known",
                _scored(accuracy, accuracy.dense if accuracy else None),
                _scored(accuracy, accuracy.pruned if accuracy else None),
                f.count(macs.dense if macs else None),
                f.count(macs.pruned if macs else None),
                f.count(executed if executed is not None else macs.pruned if macs else None),
                f.count(params.pruned if params else None),
                count_words(run.lowering) if run.lowering else f.NONE,
            )
        )
    return Table("The networks of the runs", columns(*names, numeric=names[2:8]), tuple(rows))


def _macs(run: Run) -> Count | None:
    """Of one sample: the bundle's, or what the profile counted."""
    if run.manifest and run.manifest.macs:
        return run.manifest.macs
    counted = next((r for r in run.profile.results if r.dense_macs is not None), None)
    if counted is None or counted.dense_macs is None:
        return None
    return Count(counted.dense_macs // counted.batch_size, counted.pruned_macs // counted.batch_size)


def _layer_blocks(compared: Compared) -> Iterator[Block]:
    """Which layers changed most between the first and the last run."""
    first, last = compared.baseline, compared.last
    for setting in shared_settings(compared)[:MOST_SETTINGS_WITH_LAYERS] if first is not last else ():
        before, after = first.result(setting), last.result(setting)
        found = layer_changes(before, after) if before and after else ()
        if not found:
            continue
        names = ("layer", "form before", "form", "before ms", "ms", "change ms", "change", "beyond its noise")
        rows = tuple(
            (
                f.shortened(f.clean(one.name), 64),
                f.clean(one.before.lowering),
                f.clean(one.after.lowering),
                f.bare_ms(one.before_ms),
                f.bare_ms(one.after_ms),
                f.signed_ms(one.after_ms - one.before_ms),
                f.signed_percent(one.after_ms / one.before_ms - 1),
                "yes" if one.exceeds_noise else "no",
            )
            for one in found[:MOST_LAYERS]
        )
        slower = frozenset(
            number
            for number, one in enumerate(found[:MOST_LAYERS])
            if one.exceeds_noise and one.after_ms > one.before_ms
        )
        more = f", the {MOST_LAYERS} largest of {len(found)}" if len(found) > MOST_LAYERS else ""
        caption = f"Changes since {f.clean(first.name)} on {setting}{more}"
        yield Table(caption, columns(*names, numeric=names[3:7]), rows, flags=slower)


def _fact_table(runs: Sequence[Run]) -> Table:
    """A fact a row, a run a column; what differs is flagged."""
    found = facts(runs)
    rows = tuple(
        (f.clean(fact.name), *(f.clean(value) or f.NONE for value in fact.values), _differs(fact)) for fact in found
    )
    flags = frozenset(number for number, fact in enumerate(found) if fact.differs and fact.is_telling)
    names = ("what", *(f.clean(run.name) for run in runs), "the same")
    return Table("Machine, versions and settings of every run", columns(*names), rows, flags=flags)


def _differs(fact: Fact) -> str:
    if not fact.is_telling:
        return f.NONE
    return "differs" if fact.differs else "yes" if all(fact.values) else "as far as told"


def _words_table() -> Table:
    own = {
        "better, worse": f"of two runs. {BEYOND}",
        "another network": "the dense networks differ in MACs: which latency is better is not told.",
        "within noise": "the intervals overlap: the two runs cannot be told apart.",
        "first run": "the run that the others are held against: the first one given, or that of --baseline.",
    }
    chosen = {word: WORDS[word] for word in _WORDS}
    return Table("Words of this report", columns("word", "meaning"), tuple({**chosen, **own}.items()))


def _change(name: str, first: Run, run: Run, setting: Setting) -> Change | None:
    before, after = first.result(setting), run.result(setting)
    return change(FIGURES[name], before, after) if before and after else None
