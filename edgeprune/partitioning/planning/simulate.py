"""What a partition is predicted to do, event by event: which device computes, and which link sends, at what time.

A device runs its subgraphs in their order, each as soon as all tensors that it waits for are there. A tensor is sent
as soon as it is made; a device sends one at a time, and receives one at a time, as over a switch. Nothing is measured.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Kind = Literal["compute", "transfer"]


@dataclass(frozen=True)
class Piece:
    """One subgraph."""

    device: int
    stage: int
    seconds: float


@dataclass(frozen=True)
class Message:
    """One tensor on its way."""

    source: int
    to: int
    tensor: str
    bytes: int
    stage: int
    """That of the subgraph that waits for it."""
    made: int | None
    """Stage of the subgraph that makes it; None for an input of the network, which is there at the start."""


class Span(NamedTuple):
    """Something that takes time."""

    kind: Kind
    device: int
    """That computes, or sends."""
    to: int
    """That receives; `device` where it computes."""
    stage: int
    start: float
    """Seconds from the start."""
    end: float
    tensor: str = ""


@dataclass(frozen=True)
class Timeline:
    """A predicted run."""

    spans: tuple[Span, ...]
    """By their start."""
    critical: tuple[Span, ...]
    """Each is what the next one waits for; the last ends the run."""

    @property
    def seconds(self) -> float:
        return max((span.end for span in self.spans), default=0.0)

    def busy(self, device: int) -> float:
        """Seconds that a device computes."""
        return sum(s.end - s.start for s in self.spans if s.kind == "compute" and s.device == device)

    def bottleneck(self) -> float:
        """Seconds that the busiest device, sender or receiver is busy: where runs follow each other closely, a result
        comes so often."""
        busy: dict[tuple[str, int], float] = defaultdict(float)
        for span in self.spans:
            if span.kind == "compute":
                busy["compute", span.device] += span.end - span.start
            else:
                busy["send", span.device] += span.end - span.start
                busy["receive", span.to] += span.end - span.start
        return max(busy.values(), default=0.0)


def simulate(
    pieces: Sequence[Piece], messages: Sequence[Message], link: Callable[[int, int], tuple[float, float]]
) -> Timeline:
    """The run of these subgraphs; `link`: seconds a byte between two devices, and seconds that anything takes besides.

    The subgraphs of one device come in the order of their stages.
    """
    return _Run(pieces, messages, link).timeline()


@dataclass
class _Run:
    pieces: Sequence[Piece]
    messages: Sequence[Message]
    link: Callable[[int, int], tuple[float, float]]
    spans: list[Span] = field(default_factory=list)
    cause: dict[Span, Span | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.queues: dict[int, list[Piece]] = defaultdict(list)
        for piece in self.pieces:
            self.queues[piece.device].append(piece)
        self.missing: dict[tuple[int, int], int] = defaultdict(int)
        self.sends: dict[tuple[int, int | None], list[Message]] = defaultdict(list)
        for message in self.messages:
            self.missing[message.to, message.stage] += 1
            self.sends[message.source, message.made].append(message)
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.count = 0
        """Of the events so far: of those at one time the first comes first."""
        self.last: dict[object, Span] = {}
        """What was done last by a device, a sender or a receiver."""
        self.arrived: dict[tuple[int, int], tuple[Span, float]] = {}
        """(Device, stage) -> what arrived last for this subgraph, and when: later than its link was done with it."""
        self.is_busy: dict[int, bool] = defaultdict(bool)

    def timeline(self) -> Timeline:
        for made in [one for one in self.sends if one[1] is None]:
            self._send(made, 0.0, None)
        for device in sorted(self.queues):
            self._start(device, 0.0)
        while self.events:
            now, _, happen = heapq.heappop(self.events)
            happen(now)
        self.spans.sort(key=lambda span: (span.start, span.end, span.device))
        critical: list[Span] = []
        at = max(self.spans, key=lambda span: span.end, default=None)
        while at is not None:
            critical.append(at)
            at = self.cause[at]
        return Timeline(tuple(self.spans), tuple(reversed(critical)))

    def _later(self, when: float, happen: Callable[[float], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (when, self.count, happen))

    def _start(self, device: int, now: float) -> None:
        """Start the device's next subgraph if it can."""
        queue = self.queues[device]
        if self.is_busy[device] or not queue or self.missing[device, queue[0].stage]:
            return
        piece = queue.pop(0)
        span = Span("compute", device, device, piece.stage, now, now + piece.seconds)
        done, arrived = self.last.get(("done", device)), self.arrived.get((device, piece.stage))
        self._note(span, *([(done, done.end)] if done else []), *([arrived] if arrived else []))
        self.is_busy[device] = True

        def end(when: float) -> None:
            self.is_busy[device] = False
            self.last["done", device] = span
            self._send((device, piece.stage), when, span)
            self._start(device, when)

        self._later(span.end, end)

    def _send(self, made: tuple[int, int | None], now: float, by: Span | None) -> None:
        """Send what a subgraph has made, each as soon as both ends are free."""
        for message in self.sends[made]:
            per_byte, way = self.link(message.source, message.to)
            ends = ("sent", message.source), ("received", message.to)
            earlier = [self.last[one] for one in ends if one in self.last]
            start = max([now, *(span.end for span in earlier)])
            span = Span(
                "transfer", message.source, message.to, message.stage, start, start + message.bytes * per_byte,
                message.tensor,
            )  # fmt: skip
            self._note(span, *((one, one.end) for one in (by, *earlier) if one is not None))
            self.last.update(dict.fromkeys(ends, span))
            self._later(span.end + way, self._arrival(message, span))

    def _arrival(self, message: Message, span: Span) -> Callable[[float], None]:
        def arrive(when: float) -> None:
            self.missing[message.to, message.stage] -= 1
            self.arrived[message.to, message.stage] = span, when
            self._start(message.to, when)

        return arrive

    def _note(self, span: Span, *before: tuple[Span, float]) -> None:
        """Keep a span, and which of those before it it could begin after at last."""
        self.spans.append(span)
        self.cause[span] = max(before, key=lambda one: one[1])[0] if before else None
