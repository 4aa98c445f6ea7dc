"""Runs beside each other: what became better or worse against the first, whether that exceeds noise, and what else
differs. Pure functions; `compared` and `page` word them for the report.

Noise is that within a run: two medians can be told apart if their 95 % intervals do not overlap. From one run to the
next a machine also drifts, which no interval tells; the dense network, measured in both, shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from edgeprune.io import formatting as f
from edgeprune.profiling.result import LayerResult, Result, Settings
from edgeprune.report.comparison.runs import Run, all_settings
from edgeprune.report.words.results import Setting, machine_words

Interval = tuple[float, float]


@dataclass(frozen=True)
class Figure:
    """A figure of a result that runs are compared by."""

    label: str
    value: Callable[[Result], float | None]
    interval: Callable[[Result], Interval | None]
    """Of 95 %; None where it is not known."""
    written: Callable[[float], str]
    more_is_better: bool


def _efficiency_interval(result: Result) -> Interval | None:
    if not result.paired_interval or not result.theoretical_speedup:
        return None
    low, high = result.paired_interval
    return low / result.theoretical_speedup, high / result.theoretical_speedup


FIGURES: Mapping[str, Figure] = {
    "realistic": Figure(
        "realistic speed-up", lambda r: r.realistic_speedup, lambda r: r.paired_interval, f.times, True
    ),
    "p50": Figure("pruned p50", lambda r: r.pruned.p50_ms, lambda r: r.pruned.p50_interval_ms, f.milliseconds, False),
    "efficiency": Figure("efficiency", lambda r: r.efficiency, _efficiency_interval, f.percent, True),
}
"""What regressions are looked for in, by the name that the command line has for it."""
_DENSE = Figure(
    "dense p50",
    lambda r: r.dense.p50_ms if r.dense else None,
    lambda r: r.dense.p50_interval_ms if r.dense else None,
    f.milliseconds,
    False,
)


@dataclass(frozen=True)
class Change:
    """A figure in two runs."""

    figure: Figure
    setting: Setting
    before: float
    after: float
    exceeds_noise: bool
    """Whether the intervals of the two runs lie apart. Without an interval, a value stands for its own."""
    other_network: bool = False
    """Whether it is a latency of networks that were not pruned from the same: neither is the better for it."""

    @property
    def relative(self) -> float:
        """after / before - 1."""
        return self.after / self.before - 1

    @property
    def loss(self) -> float:
        """By what share it got worse; less than 0 if it got better."""
        return -self.relative if self.figure.more_is_better else self.relative

    @property
    def verdict(self) -> str:
        """better, worse, within noise, or another network."""
        if self.other_network:
            return "another network"
        if not self.exceeds_noise:
            return "within noise"
        return "better" if self.loss < 0 else "worse"


class ChangeRecord(msgspec.Struct, frozen=True):
    """A change, as files hold it."""

    target: str
    precision: str
    batch_size: int
    threads: int
    figure: str
    before: float
    after: float
    relative: float
    """after / before - 1."""
    exceeds_noise: bool
    worse: bool
    verdict: str
    """better, worse, within noise, or another network."""

    @staticmethod
    def of(one: Change) -> ChangeRecord:
        where = (one.setting.target, one.setting.precision, one.setting.batch_size, one.setting.threads)
        worse = one.loss > 0 and not one.other_network
        figures = (one.before, one.after, one.relative)
        return ChangeRecord(*where, one.figure.label, *figures, one.exceeds_noise, worse, one.verdict)


def change(figure: Figure, before: Result, after: Result) -> Change | None:
    """None where one of the two results lacks the figure."""
    first, second = figure.value(before), figure.value(after)
    if not first or second is None:
        return None
    old, new = figure.interval(before) or (first, first), figure.interval(after) or (second, second)
    apart = max(old) < min(new) or max(new) < min(old)
    other = figure is FIGURES["p50"] and len({macs for macs in (before.dense_macs, after.dense_macs) if macs}) > 1
    return Change(figure, Setting.of(after), first, second, apart, other)


def changes(old: Run, new: Run, figures: Sequence[Figure] = tuple(FIGURES.values())) -> tuple[Change, ...]:
    """Every figure in every setting that both runs measured."""
    pairs = [(old.result(setting), new.result(setting)) for setting in all_settings((old, new))]
    both = [(before, after) for before, after in pairs if before and after]
    found = (change(figure, before, after) for before, after in both for figure in figures)
    return tuple(one for one in found if one is not None)


def drift(old: Run, new: Run) -> tuple[Change, ...]:
    """Settings in which a dense network of as many MACs takes another time in the two runs, beyond noise."""
    archs = [run.manifest.arch for run in (old, new) if run.manifest]
    if len(set(archs)) > 1:
        return ()
    pairs = {setting: (old.result(setting), new.result(setting)) for setting in all_settings((old, new))}
    same = [s for s, (before, after) in pairs.items() if before and after and before.dense_macs == after.dense_macs]
    return tuple(one for one in changes(old, new, (_DENSE,)) if one.exceeds_noise and one.setting in same)


@dataclass(frozen=True)
class LayerChange:
    """The time of one pruned layer in two runs, in ms."""

    name: str
    before: LayerResult
    after: LayerResult
    before_ms: float
    after_ms: float
    exceeds_noise: bool
    """Whether the layer's time changed by a larger share than it varied by in either run."""


def layer_changes(before: Result, after: Result) -> tuple[LayerChange, ...]:
    """Layers that were timed in both, the largest change of time first."""
    timed = {layer.name: layer for layer in before.layers if layer.pruned_ms}
    found = []
    for layer in after.layers:
        old = timed.get(layer.name)
        if old is None or not old.pruned_ms or not layer.pruned_ms:
            continue
        spread = max(old.noise or 0.0, layer.noise or 0.0)
        apart = abs(layer.pruned_ms / old.pruned_ms - 1) > spread
        found.append(LayerChange(layer.name, old, layer, old.pruned_ms, layer.pruned_ms, apart))
    return tuple(sorted(found, key=lambda one: -abs(one.after_ms - one.before_ms)))


@dataclass(frozen=True)
class Fact:
    """Something that ought to be the same in all runs for their figures to be comparable."""

    name: str
    values: tuple[str, ...]
    """One a run; empty where a run does not tell."""
    is_telling: bool = True
    """Whether a difference changes what the figures mean, rather than being the run's own (a date, its load)."""

    @property
    def differs(self) -> bool:
        return len({value for value in self.values if value}) > 1


def facts(runs: Sequence[Run]) -> tuple[Fact, ...]:
    """Machine, versions, settings and network of every run; what none of them tells is left out."""
    rows = [
        *_machine(runs),
        *_versions(runs),
        *_measuring(runs),
        *_network(runs),
    ]
    return tuple(fact for fact in rows if any(fact.values))


_OF_THE_RUN = ("date (UTC)", "load average before")
"""What is told of a machine and changes with every run."""


def _machine(runs: Sequence[Run]) -> Iterator[Fact]:
    machines = [_told_of_machine(run) for run in runs]
    if any(machine["GPU"] for machine in machines):
        machines = [machine | {"GPU": machine["GPU"] or "none"} for machine in machines]
    for name in machines[0]:
        yield Fact(name, tuple(machine[name] for machine in machines), name not in _OF_THE_RUN)


def _told_of_machine(run: Run) -> dict[str, str]:
    told = machine_words(run.profile.environment)
    return told if run.is_measured else dict.fromkeys(told, "")


def _versions(runs: Sequence[Run]) -> Iterator[Fact]:
    held = [(run.profile.environment.runtime_versions, "not there" if run.is_measured else "") for run in runs]
    for package in dict.fromkeys(name for versions, _ in held for name in versions):
        yield Fact(package, tuple(versions.get(package, otherwise) for versions, otherwise in held))


_SETTINGS = {
    "warmup": "runs of warm-up",
    "iterations": "measured runs",
    "seed": "seed of the inputs",
    "pin": "pinned to cores",
    "spinning": "idle threads spin",
    "time_limit_s": "time limit (s)",
    "interval": "interval at which measuring ended",
}
"""Names of the profile's settings for readers; of those that are not here, the record's own."""


def _told(value: object) -> str:
    """A setting in words; nothing for one that is not known."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case tuple() | list():
            return ", ".join(map(str, value)) or "none"
        case float():
            return f"{value:g}"
    return str(value)


def _measuring(runs: Sequence[Run]) -> Iterator[Fact]:
    for name in Settings.__struct_fields__:
        values = [getattr(run.profile.settings, name) if run.is_measured else None for run in runs]
        yield Fact(_SETTINGS.get(name, name.replace("_", " ")), tuple(map(_told, values)))
    for setting in all_settings(runs):
        found = [run.result(setting) for run in runs]
        yield Fact(f"provider ({setting})", tuple(r.provider if r else "" for r in found))


def _network(runs: Sequence[Run]) -> Iterator[Fact]:
    made = [run.manifest for run in runs]
    yield Fact("architecture", tuple(m.arch if m else "" for m in made))
    yield Fact("input of one sample", tuple(" x ".join(map(str, m.input_shape)) if m else "" for m in made))
    yield dense_macs(runs)
    yield Fact("dense network (SHA-256)", tuple(run.dense_hash[:16] for run in runs))
    tested = [m.accuracy if m else None for m in made]
    yield Fact("top-1 of", tuple(f"{a.n} images of {a.data}" if a and a.n else "" for a in tested))
    yield Fact("metric in place of top-1", tuple(a.metric if a else "" for a in tested))


def dense_macs(runs: Sequence[Run]) -> Fact:
    """Where it differs, the runs are of different networks."""
    return Fact("dense MACs of one sample", tuple(_dense_macs(run) for run in runs))


def _dense_macs(run: Run) -> str:
    counted = next((r.dense_macs // r.batch_size for r in run.profile.results if r.dense_macs), None)
    if counted is None and not run.is_measured and run.manifest and run.manifest.macs:
        counted = run.manifest.macs.dense
    return "" if counted is None else f"{counted:,}"


def change_words(one: Change) -> str:
    """realistic speed-up 1.80x to 1.55x (-13.9 %)."""
    before, after = one.figure.written(one.before), one.figure.written(one.after)
    return f"{one.figure.label} {before} to {after} ({f.signed_percent(one.relative)})"
