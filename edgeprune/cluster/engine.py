"""One device's requests: takes tensors as they come, runs what can run, and hands out what others need.

Not thread-safe: its owner has a lock (see `crew`), and only what `next_work` returns runs without it. Tensors of
different attempts never meet, as each has its own `Progress`; the older of two attempts of a request is forgotten.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeprune.cluster.flow import Progress, Sending, Step, refusal
from edgeprune.cluster.serving import Served
from edgeprune.cluster.transport.messages import MOST_TTL_MS, Attempt, Mark, Tensor
from edgeprune.cluster.transport.peers import worker_address
from edgeprune.errors import EdgepruneError
from edgeprune.io.arrays import Array, Feeds

logger = logging.getLogger("edgeprune.cluster")
MOST_JOBS = 256
"""Requests that a device keeps at a time."""


@dataclass
class Job:
    """One attempt of a request on this device."""

    attempt: Attempt
    served: Served
    plan: str
    host: str
    """The client's address."""
    progress: Progress
    expires: float
    marks: list[Mark] | None = None
    """What was done when; None if nobody asks."""

    def mark(self, kind: Literal["sent", "came"], stage: int, tensor: str, peer: str) -> None:
        """Note what happens now."""
        if self.marks is not None:
            now = clock_us()
            self.marks.append(Mark(kind, stage, now, now, tensor, peer))

    def needs(self, device: str) -> bool:
        """Whether it exchanges tensors with a device."""
        return device in self.progress.flow.peers


def clock_us() -> int:
    """This device's own clock."""
    return time.monotonic_ns() // 1000


@dataclass(frozen=True)
class Computed:
    """What became of a piece of work."""

    work: Work
    outputs: Feeds
    error: str
    """Empty if it went well."""
    start_us: int
    end_us: int


@dataclass(frozen=True)
class Work:
    """A subgraph that can run, with its inputs."""

    job: Job
    step: Step
    feeds: Feeds

    def run(self) -> Computed:
        """Run it; may take long, and raises nothing."""
        start, outputs, error = clock_us(), dict[str, Array](), ""
        try:
            made = self.job.served.runners[self.step.file].run(self.feeds)
            outputs = {name: np.asarray(array, order="C") for name, array in made.items()}
        except EdgepruneError as refused:
            error = str(refused)
        except Exception as broken:  # a runtime's own: one request must not end the device's service
            logger.exception("%s failed", self.step.file)
            error = f"{self.step.file}: {type(broken).__name__}: {broken}"
        return Computed(self, outputs, error, start, clock_us())


class RefusedError(Exception):
    """A tensor has no place here; the text says why."""


class Engine:
    """Runs one device's parts of any number of requests."""

    def __init__(
        self,
        send: Callable[[str, Tensor, Array], None],
        finished: Callable[[Job], None],
        failed: Callable[[Job, str], None],
    ) -> None:
        """`send` (to an address) is called as soon as a tensor is there; the others when a job ends, either way."""
        self._send, self._finished, self._failed = send, finished, failed
        self.jobs: dict[tuple[str, int], Job] = {}
        self.late = 0
        """Tensors that came for attempts that are given up, or for no request."""
        self.computing: Served | None = None
        """What is at work."""

    def start(self, job: Job, feeds: Feeds) -> None:
        """Begin an attempt with the network's inputs, on the device that has them."""
        self._replace(job)
        self._hold(job, {name: np.asarray(array, order="C") for name, array in feeds.items()})

    def accept(self, served: Served, sender: str, host: str, message: Tensor, array: Array) -> None:
        """Take a tensor; RefusedError if nothing here waits for it."""
        flow = served.flows.get(message.plan)
        if flow is None:
            raise RefusedError(f"{served.device} has no part in the plan {message.plan[:100]!r}")
        if reason := refusal(flow, sender, message.stage, message.name, array):
            raise RefusedError(reason)
        job = self.jobs.get(_key(message.attempt))
        if job is None or job.attempt.number < message.attempt.number:
            if len(self.jobs) >= MOST_JOBS:
                raise RefusedError(f"{served.device} has {MOST_JOBS} requests at work already")
            expires = time.monotonic() + message.ttl_ms / 1e3
            marks: list[Mark] | None = [] if message.traced else None
            job = Job(message.attempt, served, message.plan, host, Progress(flow), expires, marks)
            self._replace(job)
        elif (job.attempt, job.plan, job.served.digest) != (message.attempt, message.plan, served.digest):
            self.late += 1
            return
        job.mark("came", message.stage, message.name, sender)
        self._hold(job, {message.name: array})

    def job_of(self, attempt: Attempt) -> Job | None:
        """The job of this very attempt, if it is under way here."""
        job = self.jobs.get(_key(attempt))
        return job if job is not None and job.attempt == attempt else None

    def next_work(self) -> Work | None:
        """The next subgraph of the oldest request that can go on; None if none can, or while one is at work. What it
        returns is to be run, and then given to `take`."""
        job = next((job for job in self.jobs.values() if job.progress.ready), None)
        if self.computing is not None or job is None or (step := job.progress.ready) is None:
            return None
        self.computing = job.served
        return Work(job, step, job.progress.take(step))

    def take(self, computed: Computed) -> None:
        """Go on with what was computed, unless its attempt was given up meanwhile."""
        self.computing = None
        job = computed.work.job
        if self.jobs.get(_key(job.attempt)) is not job:
            return
        if computed.error:
            self.fail(job, computed.error)
            return
        job.progress.compute_us += computed.end_us - computed.start_us
        if job.marks is not None:
            step = computed.work.step
            job.marks.append(Mark("computed", step.stage, computed.start_us, computed.end_us))
        self._hold(job, computed.outputs)

    def fail(self, job: Job, reason: str) -> None:
        """Give up an attempt."""
        self.forget(job)
        self._failed(job, reason)

    def forget(self, job: Job) -> None:
        """Drop an attempt without a word."""
        if self.jobs.get(_key(job.attempt)) is job:
            del self.jobs[_key(job.attempt)]

    def expire(self, now: float) -> None:
        """Give up attempts whose time is over."""
        for job in [job for job in self.jobs.values() if job.expires <= now]:
            self.fail(job, "its time is over")

    def _replace(self, job: Job) -> None:
        self.jobs.pop(_key(job.attempt), None)  # the new attempt queues behind others
        self.jobs[_key(job.attempt)] = job

    def _hold(self, job: Job, arrays: Feeds) -> None:
        for sending, name, array in job.progress.hold(arrays.items()):
            job.mark("sent", sending.stage, name, sending.to)
            self._send(self._address(job, sending), self._tensor(job, sending, name, array), array)
            job.progress.sent_bytes += array.nbytes
        if job.progress.is_finished:
            self.forget(job)
            self._finished(job)

    @staticmethod
    def _address(job: Job, sending: Sending) -> str:
        return job.host if sending.to in (job.served.host, "") else worker_address(sending.to)

    @staticmethod
    def _tensor(job: Job, sending: Sending, name: str, array: Array) -> Tensor:
        left = min(max(1, round((job.expires - time.monotonic()) * 1e3)), MOST_TTL_MS)
        return Tensor(
            job.served.digest,
            job.attempt,
            job.plan,
            sending.stage,
            name,
            array.dtype.name,
            array.shape,
            left,
            job.marks is not None,
        )


def _key(attempt: Attempt) -> tuple[str, int]:
    return attempt.client, attempt.request
