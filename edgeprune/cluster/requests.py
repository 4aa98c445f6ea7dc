"""What a client keeps of a request, which way it goes, and what all of them cost."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from edgeprune.cluster.flow import SPLIT, whole_plan
from edgeprune.errors import GateError
from edgeprune.io.arrays import Array, Feeds

MOST_ATTEMPTS = 4
MOST_LATENCIES = 2**17
"""That a client keeps: of the latest requests."""
SLOTS = 2
"""Requests at a time on a device that runs whole models: one that is computed, and one on its way."""
Outputs = dict[str, Array]


class ClusterError(GateError):
    """A request was not answered, though its input was fine: devices are lost, or its time was over."""


class LateError(ClusterError):
    """A request's time was over."""


@dataclass
class Pending:
    """A request that is not answered."""

    number: int
    feeds: Feeds
    submitted: float
    deadline: float
    future: Future[Outputs] = field(default_factory=Future)
    attempt: int = 0
    plan: str = ""
    """The way that it goes now; empty while it waits in the queue."""
    failed: dict[str, str] = field(default_factory=dict)
    """Ways that were tried -> why they failed."""


@dataclass(frozen=True)
class Ways:
    """What the devices can do now."""

    split: bool
    """Whether every device that the split model needs is ready, and hears those that it needs."""
    whole: tuple[str, ...]
    """The devices that are ready to run the whole model, the host first."""
    load: Mapping[str, int]
    """Device -> whole models that it has been given and has not answered."""


def choose_fallback(ways: Ways, failed: Mapping[str, str]) -> str:
    """The split model where it can run; else the whole model on the host, or else on another device that holds it.
    Empty if there is no way left."""
    plans = [SPLIT] * ways.split + [whole_plan(device) for device in ways.whole]
    return next((plan for plan in plans if plan not in failed), "")


def choose_least_loaded(ways: Ways, failed: Mapping[str, str]) -> str:
    """The whole model on the device with the fewest requests; empty if all have as many as they take."""
    free = [device for device in ways.whole if ways.load.get(device, 0) < SLOTS and whole_plan(device) not in failed]
    return whole_plan(min(free, key=lambda device: ways.load.get(device, 0))) if free else ""


@dataclass(frozen=True)
class ClusterStats:
    """What a client's requests cost so far."""

    answered: int = 0
    failed: int = 0
    """Requests that ended with an error, late ones included."""
    dropped: int = 0
    """Requests whose time was over before a device was free, or that found the queue full."""
    repeated: int = 0
    """Requests that were tried again in another way."""
    late_frames: int = 0
    """Tensors that came for attempts that had been given up."""
    latencies_ms: tuple[float, ...] = ()
    """Of the answered requests, in order; of the latest `MOST_LATENCIES`, where there are more."""
    first_ms: float = 0.0
    """Latency of the first one."""
    moved_bytes: int = 0
    """Bytes of all tensors that were sent between devices."""
    compute_ms: Mapping[str, float] = field(default_factory=dict)
    """Device -> time in its subgraphs, all requests together."""

    def percentile(self, percent: float) -> float:
        """Of the latencies, in ms; 0 where there are none."""
        return float(np.percentile(self.latencies_ms, percent)) if self.latencies_ms else 0.0

    @property
    def bytes_per_inference(self) -> int:
        return round(self.moved_bytes / self.answered) if self.answered else 0


@dataclass
class Tally:
    """`ClusterStats` while they are counted."""

    answered: int = 0
    failed: int = 0
    dropped: int = 0
    repeated: int = 0
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_LATENCIES))
    first_ms: float = 0.0
    moved_bytes: int = 0
    compute_ms: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    told: int = 0
    """Messages of workers on what a request cost them."""
    to_be_told: int = 0
    """Those that answered requests will have."""

    def note_latency(self, latency_ms: float) -> None:
        """Count a request that was answered."""
        self.first_ms = self.first_ms if self.answered else latency_ms
        self.answered += 1
        self.latencies_ms.append(latency_ms)

    def stats(self, late_frames: int) -> ClusterStats:
        return ClusterStats(
            self.answered,
            self.failed,
            self.dropped,
            self.repeated,
            late_frames,
            tuple(self.latencies_ms),
            self.first_ms,
            self.moved_bytes,
            dict(self.compute_ms),
        )
