"""The gate against a stored baseline: what counts as a regression, and what two runs have in common at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from edgeprune.bundles.manifest import Accuracy
from edgeprune.errors import InputError
from edgeprune.io import formatting as f
from edgeprune.report.comparison.changes import FIGURES, Change, change_words, changes, drift
from edgeprune.report.comparison.runs import Run, all_settings
from edgeprune.report.words.results import Setting, failure_words


@dataclass(frozen=True)
class Gate:
    """What is still accepted of a run against a baseline."""

    limit: float | None
    """Share by which a figure may get worse; beyond it, and beyond noise, it is a regression. None: not looked at."""
    figures: tuple[str, ...] = ("realistic", "p50")
    """Keys of FIGURES."""
    max_drop: float | None = None
    """Points of top-1 (or of the metric that the data brought) that may be lost; None: not looked at."""


def regressions(old: Run, new: Run, gate: Gate) -> tuple[str, ...]:
    """A sentence for everything in which `new` is worse than `old` by more than the gate accepts, or has failed.

    InputError where there is nothing to hold against each other: a gate that looks at nothing must not pass.
    """
    slower = () if gate.limit is None else (*_failed(old, new), *_slower(old, new, gate.limit, gate.figures))
    return (*slower, *_lost_accuracy(old, new, gate.max_drop))


def passed(old: Run, new: Run, gate: Gate) -> str:
    """What a gate without regressions looked at, in a sentence."""
    looked = []
    if gate.limit is not None:
        settings = {one.setting for one in changes(old, new, tuple(FIGURES[name] for name in gate.figures))}
        looked.append(f"{f.plural(len(settings), 'setting')} compared")
        if alone := unchecked(old, new):
            looked.append(f"{len(alone)} measured in one run only")
    if gate.max_drop is not None:
        looked.append(_score_words(_accuracy(old), _accuracy(new)))
    return f"no regression: {', '.join(looked)}"


def unchecked(old: Run, new: Run) -> tuple[Setting, ...]:
    """Settings that one of the two runs alone measured."""
    return tuple(s for s in all_settings((old, new)) if (old.result(s) is None) != (new.result(s) is None))


def nothing_shared(runs: Sequence[Run]) -> str:
    """A sentence where the last run has no setting in common with the first, with what each run measured and which
    of them could be compared; else nothing, as where no run was measured at all.
    """
    first, last = runs[0], runs[-1]
    if _shared(first, last) or not any(run.is_measured for run in runs):
        return ""
    held = " ".join(f"{f.clean(run.name)} has {_listed(all_settings((run,)))}." for run in runs)
    pairs = [(one, other, _shared(one, other)) for one, other in combinations(runs, 2)]
    common = [f"{f.clean(a.name)} and {f.clean(b.name)} share {_listed(found)}." for a, b, found in pairs if found]
    what = "no target, precision, batch size and threads in common"
    if not common:
        return f"There is nothing to compare: the runs have {what}. {held}"
    return f"The last run, {f.clean(last.name)}, and the first, {f.clean(first.name)}, have {what}. " + " ".join(
        (held, *common)
    )


def _shared(old: Run, new: Run) -> tuple[Setting, ...]:
    return tuple(s for s in all_settings((old,)) if new.result(s) is not None)


def _listed(settings: Sequence[Setting]) -> str:
    return f.some(list(map(str, settings)), between="; ")


def _failed(old: Run, new: Run) -> Iterator[str]:
    """What the baseline measured and the new run could not."""
    gone = [s for s in all_settings((old,)) if new.result(s) is None]
    for failure in new.profile.failures:
        if any(failure.holds_for(s.target, s.threads, s.batch_size) for s in gone):
            yield failure_words(failure)


def _slower(old: Run, new: Run, limit: float, figures: Sequence[str]) -> Iterator[str]:
    found = changes(old, new, tuple(FIGURES[name] for name in figures))
    if not found and not any(_failed(old, new)):
        raise InputError(
            f"has no {' or '.join(FIGURES[name].label for name in figures)} to hold against {old.name}: nothing was "
            "measured on the same target, with the same precision, batch size and number of threads",
            where=new.name,
            expected=f"one of {'; '.join(map(str, all_settings((old,))))}",
            remedy="profile both in the same way",
        )
    if other := [one for one in found if one.other_network]:
        raise InputError(
            f"is of another dense network than {old.name}: a {other[0].figure.label} of the one cannot be better or "
            "worse than that of the other",
            where=new.name,
            expected="as many dense MACs in both",
            remedy="hold runs of the same network against each other, or pass --regression-in realistic",
        )
    drifts = {one.setting: one for one in drift(old, new)}
    for one in found:
        if one.loss > limit and one.exceeds_noise:
            yield f"{one.setting}: {change_words(one)}{_drift_words(one, drifts.get(one.setting))}"


def _drift_words(one: Change, dense: Change | None) -> str:
    """The dense network is the same in both runs: if it took another time, so did the machine."""
    if dense is None or one.figure is not FIGURES["p50"]:
        return ""
    return f", the dense network {f.signed_percent(dense.relative)}"


def _lost_accuracy(old: Run, new: Run, max_drop: float | None) -> Iterator[str]:
    if max_drop is None:
        return
    first, second = _accuracy(old), _accuracy(new)
    if first.metric != second.metric:
        raise InputError(
            f"is measured as {f.clean(second.label)}, and {old.name} as {f.clean(first.label)}", where=new.name,
            expected="the same metric in both", remedy="leave out --max-drop, or export both with the same --data",
        )  # fmt: skip
    change = second.pruned - first.pruned
    if not (-change if first.higher_is_better else change) <= max_drop:
        accepted = f"{f.score_change(change, first.metric)}, {max_drop:g} accepted"
        yield f"{_score_words(first, second)} ({accepted})"


def _score_words(old: Accuracy, new: Accuracy) -> str:
    """top-1 91.20 % to 90.80 %."""
    name = f.clean(old.metric) or "top-1"
    return f"{name} {f.score(old.pruned, old.metric)} to {f.score(new.pruned, new.metric)}"


def _accuracy(run: Run) -> Accuracy:
    if run.manifest is None or run.manifest.accuracy is None:
        remedy = "leave out --max-drop, or give bundles that were exported with --data"
        raise InputError("does not tell its accuracy", where=run.name, expected="a bundle with top-1", remedy=remedy)
    return run.manifest.accuracy
