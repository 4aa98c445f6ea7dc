"""From times that were taken together to rows that can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import msgspec

from edgeprune.profiling.measurement import Measurement, median_interval, paired_ratios
from edgeprune.profiling.result import Latency
from edgeprune.profiling.runtimes.joint import Candidate, Together
from edgeprune.profiling.runtimes.record import Place, RuntimeRow
from edgeprune.profiling.setup import Which
from edgeprune.runners.registry import target_named

_PRUNED_FIRST: tuple[Which, ...] = ("pruned", "dense")
Times = Mapping[Which, Measurement]
"""Network -> its runs."""


def rows_of(
    candidates: Sequence[Candidate], together: Together, refused: Sequence[RuntimeRow], unusable: Iterable[str]
) -> tuple[tuple[RuntimeRow, ...], dict[str, Place]]:
    """A row for each candidate, and the fastest dense network of each precision; behind them what was refused before
    anything was run. `unusable` are precisions whose networks nobody should use."""
    taken = {
        key: {which: Measurement(which, seconds) for which, seconds in found.items()}
        for key, found in together.seconds.items()
    }
    fastest = _fastest_dense(candidates, taken)
    rows = []
    for candidate in candidates:
        row = RuntimeRow(
            candidate.target,
            target_named(candidate.target).state().reason,
            candidate.precision,
            candidate.forms,
            may_win=candidate.precision not in unusable,
        )
        if broken := together.broken.get(candidate.key):
            rows.append(msgspec.structs.replace(row, error=broken.error, kind=broken.kind))
            continue
        base = fastest.get(candidate.precision)
        beside = None if base is None else taken[base.key]
        rows.append(_measured(row, taken[candidate.key], beside, settled=together.settled))
    places = {
        precision: Place(one.target, precision, "dense", rounded(taken[one.key]["dense"].p50_ms))
        for precision, one in fastest.items()
    }
    return (*rows, *refused), places


def best_of(rows: Iterable[RuntimeRow]) -> tuple[Place | None, tuple[Place, ...]]:
    """The fastest network, dense or pruned, of those that may be used, of equally fast ones the first; and those that
    cannot be told apart from it. Round by round, as the speed-ups are: on a busy machine medians alone would name
    another one than these do."""
    places = {
        Place(row.target, row.precision, which, latency.p50_ms): latency
        for row in rows
        if row.may_win
        for which in _PRUNED_FIRST
        if (latency := row.latency(which)) is not None
    }
    if not places:
        return None, ()
    first = next(iter(places.values()))
    best = min(places, key=lambda place: _relative(places[place].samples_ms, first.samples_ms))
    return best, tuple(place for place in places if place != best and _is_tied(places[best], places[place]))


def rounded(milliseconds: float) -> float:
    """To nanoseconds."""
    return round(milliseconds, 6)


def _fastest_dense(candidates: Sequence[Candidate], taken: Mapping[str, Times]) -> dict[str, Candidate]:
    found: dict[str, Candidate] = {}
    for candidate in candidates:
        if "dense" not in taken.get(candidate.key, {}):
            continue
        best = found.get(candidate.precision)
        own = taken[candidate.key]["dense"].seconds
        if best is None or _relative(own, taken[best.key]["dense"].seconds) < 1:
            found[candidate.precision] = candidate
    return found


def _relative(times: Sequence[float], others: Sequence[float]) -> float:
    """The median of the ratios of runs of the same rounds."""
    return median(time / other if other else 1.0 for time, other in zip(times, others, strict=True))


def _measured(row: RuntimeRow, own: Times, base: Times | None, *, settled: bool) -> RuntimeRow:
    def latency(which: Which) -> Latency | None:
        return Latency.of(own[which], settled=settled) if which in own else None

    row = msgspec.structs.replace(row, dense=latency("dense"), pruned=latency("pruned"))
    if "dense" in own:
        speedup, interval = _speedup(own["dense"], own["pruned"])
        row = msgspec.structs.replace(row, realistic_speedup=speedup, paired_interval=interval)
    if base is not None:
        speedup, interval = _speedup(base["dense"], own["pruned"])
        row = msgspec.structs.replace(row, speedup_over_fastest_dense=speedup, fastest_dense_interval=interval)
    return row


def _is_tied(best: Latency, other: Latency) -> bool:
    """Whether the runs of the same rounds leave open which of the two is faster."""
    ratios = [b / a for a, b in zip(best.samples_ms, other.samples_ms, strict=True) if a]
    return bool(ratios) and median_interval(ratios)[0] <= 1


def _speedup(first: Measurement, second: Measurement) -> tuple[float, tuple[float, float]]:
    """Median of the ratios round by round, and its 95% interval."""
    ratios = paired_ratios(first, second)
    low, high = median_interval(ratios)
    return round(median(ratios), 6), (round(low, 6), round(high, 6))
