"""Runs that were split over devices: how accurate each is, against what its devices exchange."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgeprune.bundles.manifest import Accuracy
from edgeprune.io import formatting as f
from edgeprune.plans.method_record import RecordCurve
from edgeprune.report.comparison.runs import Run
from edgeprune.report.contents import SplitPlan
from edgeprune.report.document import Block, Picture, Table, columns

TITLE = "Accuracy against exchange"


@dataclass(frozen=True)
class Exchanged:
    """One run that was split."""

    name: str
    split: SplitPlan
    size: int
    """Bytes that the devices exchange for one inference."""
    accuracy: Accuracy | None


def exchanged(runs: Sequence[Run]) -> tuple[Exchanged, ...]:
    """Those that are split and tell what they exchange, the least exchange first."""
    found = [
        Exchanged(run.name, run.split, run.split.predicted.bytes_per_inference, _accuracy(run))
        for run in runs
        if run.split is not None and run.split.predicted.bytes_per_inference is not None
    ]
    return tuple(sorted(found, key=lambda one: one.size))


def exchange_blocks(runs: Sequence[Run]) -> Iterator[Block]:
    """A curve and a table where two runs or more are split; nothing otherwise."""
    found = exchanged(runs)
    if len(found) < 2:
        return
    scored = [(one, one.accuracy) for one in found if one.accuracy is not None]
    label = next((f.clean(accuracy.label) for _, accuracy in scored), "")
    if len(scored) > 1 and len({accuracy.metric for _, accuracy in scored}) == 1:
        x, y = tuple(one.size / 1e3 for one, _ in scored), tuple(accuracy.pruned for _, accuracy in scored)
        names = tuple(f.clean(one.name) for one, _ in scored)
        curve = RecordCurve(TITLE, "kB exchanged for one inference", label, x, y, names)
        yield Picture("exchange", TITLE, curve, exchange_words(found))
    yield _table(found)


def exchange_words(found: Sequence[Exchanged]) -> str:
    """The run that exchanges least against the one that exchanges most; empty for fewer than two."""
    if len(found) < 2:
        return ""
    least, most = found[0], found[-1]
    share = f", {f.percent(least.size / most.size)} of what {f.clean(most.name)} does" if most.size else ""
    told = f"{f.clean(least.name)} exchanges {f.size(least.size)} for one inference{share}"
    one, other = least.accuracy, most.accuracy
    if one is None or other is None or one.metric != other.metric:
        return f"{told}."
    change = f.score_change(one.pruned - other.pruned, one.metric)
    return f"{told}; its {f.clean(one.label)} is {f.score(one.pruned, one.metric)} ({change})."


def _table(found: Sequence[Exchanged]) -> Table:
    names = ("run", "devices", "exchanged", "of the most", "transfers", "score", "of the dense network", "latency ms")
    most = max(one.size for one in found)
    rows = tuple(
        (
            f.clean(one.name),
            str(len(one.split.devices)),
            f.size(one.size),
            f.percent(one.size / most) if most else f.NONE,
            str(len(one.split.transfers)),
            f.score(one.accuracy.pruned, one.accuracy.metric) if one.accuracy else f.NONE,
            f.score(one.accuracy.dense, one.accuracy.metric) if one.accuracy else f.NONE,
            f.bare_ms(one.split.predicted.latency_ms) if one.split.predicted.latency_ms is not None else f.NONE,
        )
        for one in found
    )
    caption = "What devices exchange for one inference, and how accurate the network is; latencies are predicted"
    return Table(caption, columns(*names, numeric=names[1:]), rows)


def _accuracy(run: Run) -> Accuracy | None:
    return run.manifest.accuracy if run.manifest else None
