"""Numbers and acknowledgements of the frames between two nodes. zenoh drops frames without a word once a receiver has
stalled, so every frame is numbered, a jump in the numbers is a gap, and what is not acknowledged in time is lost."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

BEAT_S = 0.5
LOST_AFTER_S = 1.5
"""Silence after which a peer counts as lost."""
SLOWEST_BYTES_PER_S = 250_000
"""A link of 2 Mbit/s: frames that are on their way get so much more time to be acknowledged."""


@dataclass
class Outgoing:
    """What was sent to a peer. `reset` begins a new epoch."""

    epoch: int
    number: int = 0
    waiting: deque[tuple[int, int, float]] = field(default_factory=deque)
    """(number, bytes, when) of frames that are not acknowledged."""

    def next(self, size: int, now: float) -> tuple[int, int]:
        """Epoch and number of the next frame."""
        self.number += 1
        self.waiting.append((self.number, size, now))
        return self.epoch, self.number

    def acknowledge(self, epoch: int, number: int, now: float) -> None:
        """Forget what arrived; the clock of the rest starts again, as the link moves."""
        if epoch != self.epoch or number > self.number:
            return
        progressed = False
        while self.waiting and self.waiting[0][0] <= number:
            self.waiting.popleft()
            progressed = True
        if progressed and self.waiting:
            first, size, _ = self.waiting[0]
            self.waiting[0] = (first, size, now)

    def is_overdue(self, now: float) -> bool:
        """Whether the oldest frame should have been acknowledged by now."""
        if not self.waiting:
            return False
        _, size, since = self.waiting[0]
        return now - since > LOST_AFTER_S + BEAT_S + size / SLOWEST_BYTES_PER_S

    def reset(self) -> None:
        self.epoch, self.number = self.epoch + 1, 0
        self.waiting.clear()


@dataclass
class Incoming:
    """What came from a peer."""

    epoch: int = 0
    number: int = 0

    def accept(self, epoch: int, number: int) -> Literal["next", "gap", "old"]:
        """Note a frame: the next one, one behind others that are missing, or one that came before."""
        if epoch != self.epoch:
            self.epoch, self.number = epoch, 0
        if number <= self.number:
            return "old"
        follows = number == self.number + 1
        self.number = number
        return "next" if follows else "gap"
