"""Several runs, in the order in which they are compared, and what else than their figures differs between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeprune.io import formatting as f
from edgeprune.report.comparison.changes import Fact, change_words, dense_macs, drift, facts
from edgeprune.report.comparison.runs import Run, all_settings
from edgeprune.report.words.results import Setting, failure_words


@dataclass(frozen=True)
class Compared:
    """Runs in the order in which they were given. The first is what the others are held against."""

    runs: tuple[Run, ...]
    version: str = ""
    """Of edgeprune, that writes the report."""

    @property
    def baseline(self) -> Run:
        return self.runs[0]

    @property
    def last(self) -> Run:
        return self.runs[-1]


def differences(runs: Sequence[Run]) -> tuple[str, ...]:
    """A sentence for everything that makes the runs' figures hard to compare, but other networks."""
    telling = (fact for fact in facts(runs) if fact.is_telling and fact.differs)
    found = [difference(fact, runs) for fact in telling if fact.name != dense_macs(runs).name]
    for run in runs[1:]:
        shifts = drift(runs[0], run)
        if shifts:
            told = "; ".join(f"{one.setting}: {change_words(one)}" for one in shifts)
            found.append(
                f"the dense network, with as many MACs in both, takes another time in {f.clean(run.name)} than in "
                f"{f.clean(runs[0].name)}, beyond noise ({told}): the machine drifted, or what runs the network "
                "changed. Speed-ups, measured in turn, tell more than milliseconds here"
            )
    return tuple(found)


def other_networks(runs: Sequence[Run]) -> str:
    """A warning where the runs are not of the same dense network, as far as MACs tell it; else nothing."""
    macs = dense_macs(runs)
    if not macs.differs:
        return ""
    told = difference(macs, runs).partition(": ")[2]
    return f"the dense networks differ: {told} MACs of one sample. Latencies of different networks are not judged"


def failures(runs: Sequence[Run]) -> tuple[str, ...]:
    """A sentence for everything that could not be measured in one of the runs."""
    return tuple(f"{f.clean(run.name)}: {failure_words(one)}" for run in runs for one in run.profile.failures)


def shared_settings(compared: Compared) -> tuple[Setting, ...]:
    """Settings that both the first and the last run measured."""
    first, last = compared.baseline, compared.last
    return tuple(s for s in all_settings(compared.runs) if first.result(s) is not None and last.result(s) is not None)


def difference(fact: Fact, runs: Sequence[Run]) -> str:
    held: dict[str, list[str]] = {}
    for run, value in zip(runs, fact.values, strict=True):
        if value:
            held.setdefault(f.clean(value), []).append(f.clean(run.name))
    told = "; ".join(f"{value} ({', '.join(names)})" for value, names in held.items())
    return f"{f.clean(fact.name)}: {told}"
