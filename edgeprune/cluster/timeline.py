"""When which device did what in a request: notes by each device's own clock, made into one timeline."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from edgeprune.cluster.transport.messages import Attempt, Mark
from edgeprune.partitioning.prediction import TimelineSpan

MOST_KEPT = 256
"""Requests whose notes a client keeps: the latest ones."""


@dataclass(frozen=True)
class Trace:
    """One request that was answered."""

    latency_ms: float
    marks: Mapping[str, Sequence[Mark]]
    """Device -> its notes, the host's first."""


class MeasuredTimeline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A real run, as `predicted.timeline` of `partition.json` tells the predicted one."""

    latency_ms: float
    spans: tuple[TimelineSpan, ...]
    """By their start; a transfer lasts from when it is sent until its receiver takes it up."""
    clocks_within_ms: float | None = None
    """How far the devices' clocks may still be apart after they were set by the messages; None where a device only
    receives, or only sends, so that nothing tells."""


@dataclass
class Traces:
    """What devices have told of requests, until all have."""

    expected: frozenset[str]
    """The devices that have a part."""
    _open: OrderedDict[tuple[int, int], dict[str, Sequence[Mark]]] = field(default_factory=OrderedDict)
    _latency_ms: dict[tuple[int, int], float] = field(default_factory=dict)
    complete: OrderedDict[tuple[int, int], Trace] = field(default_factory=OrderedDict)

    def note(self, attempt: Attempt, device: str, marks: Sequence[Mark], latency_ms: float | None = None) -> None:
        """`latency_ms`: from the host, once the request is answered."""
        key = attempt.request, attempt.number
        if device not in self.expected:
            return
        told = self._open.setdefault(key, {})
        told[device] = marks
        if latency_ms is not None:
            self._latency_ms[key] = latency_ms
        if told.keys() == self.expected and key in self._latency_ms:
            del self._open[key]
            self.complete[key] = Trace(self._latency_ms.pop(key), told)
        if len(self._open) > MOST_KEPT:  # of attempts that were given up
            self._latency_ms.pop(self._open.popitem(last=False)[0], None)
        if len(self.complete) > MOST_KEPT:
            self.complete.popitem(last=False)


def median_trace(traces: Sequence[Trace]) -> Trace | None:
    """The one in the middle, by latency; None of none."""
    return sorted(traces, key=lambda trace: trace.latency_ms)[len(traces) // 2] if traces else None


def measured_timeline(trace: Trace, host: str) -> MeasuredTimeline:
    """One timeline, in the host's time, from 0 when its first note was made.

    A message never arrives before it was sent: each bounds how far two clocks are apart, from one side. Messages in
    both directions bound it from both, and the middle is taken (as in NTP, RFC 5905).
    """
    sent = {
        (device, mark.peer, mark.tensor): mark
        for device, marks in trace.marks.items()
        for mark in marks
        if mark.kind == "sent"
    }
    moves = [
        (sent[mark.peer, device, mark.tensor], mark, mark.peer, device)
        for device, marks in trace.marks.items()
        for mark in marks
        if mark.kind == "came" and (mark.peer, device, mark.tensor) in sent
    ]
    ahead, within = _clocks(host, list(trace.marks), moves)
    start = min((mark.start_us for mark in trace.marks.get(host, ())), default=0)

    def at(device: str, clock_us: int) -> float:
        return round((clock_us - ahead[device] - start) / 1e3, 4)

    spans = [
        TimelineSpan("compute", device, device, mark.stage, at(device, mark.start_us), at(device, mark.end_us))
        for device, marks in trace.marks.items()
        for mark in marks
        if mark.kind == "computed"
    ]
    spans += [
        TimelineSpan(
            "transfer", sender, receiver, came.stage, at(sender, left.start_us), at(receiver, came.end_us), came.tensor
        )
        for left, came, sender, receiver in moves
    ]
    spans.sort(key=lambda span: (span.start_ms, span.end_ms, span.device, span.tensor))
    return MeasuredTimeline(round(trace.latency_ms, 4), tuple(spans), within)


def _clocks(
    host: str, devices: Sequence[str], moves: Sequence[tuple[Mark, Mark, str, str]]
) -> tuple[dict[str, float], float | None]:
    """Device -> by how many microseconds its clock is ahead of the host's, and by how many ms that may be wrong."""
    most: dict[tuple[str, str], float] = {}
    """(One, other) -> by how much the other's clock is ahead of the one's, at most."""
    for left, came, sender, receiver in moves:
        bound = float(came.end_us - left.start_us)
        most[sender, receiver] = min(bound, most.get((sender, receiver), math.inf))
    for middle in devices:  # Floyd and Warshall: bounds add up along a path
        for one in devices:
            for other in devices:
                way = most.get((one, middle), math.inf) + most.get((middle, other), math.inf)
                most[one, other] = min(way, most.get((one, other), math.inf))
    ahead, within = {}, 0.0
    for device in devices:
        above, below = (0.0, 0.0) if device == host else (most[host, device], -most[device, host])
        if math.isfinite(above) and math.isfinite(below):
            ahead[device] = (above + below) / 2
        else:
            ahead[device] = above if math.isfinite(above) else below if math.isfinite(below) else 0.0
        within = max(within, (above - below) / 2e3)
    return ahead, round(within, 4) if math.isfinite(within) else None
