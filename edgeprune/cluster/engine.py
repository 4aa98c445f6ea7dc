"""One device's requests: takes tensors as they come, runs what can run, and hands out what others need.

Not thread-safe: its owner calls it from one thread. Tensors of different attempts never meet, as each has its own
`Progress`; the older of two attempts of a request is forgotten.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeprune.cluster.flow import Progress, Sending, refusal
from edgeprune.cluster.serving import Served
from edgeprune.cluster.transport.messages import MOST_TTL_MS, Attempt, Tensor
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

    def needs(self, device: str) -> bool:
        """Whether it exchanges tensors with a device."""
        return device in self.progress.flow.peers


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
        job = self.jobs.get((message.attempt.client, message.attempt.request))
        if job is None or job.attempt.number < message.attempt.number:
            if len(self.jobs) >= MOST_JOBS:
                raise RefusedError(f"{served.device} has {MOST_JOBS} requests at work already")
            expires = time.monotonic() + message.ttl_ms / 1e3
            job = Job(message.attempt, served, message.plan, host, Progress(flow), expires)
            self._replace(job)
        elif (job.attempt, job.plan, job.served.digest) != (message.attempt, message.plan, served.digest):
            self.late += 1
            return
        self._hold(job, {message.name: array})

    def step(self) -> bool:
        """Run the next subgraph of the oldest request that can go on; False if none can."""
        job = next((job for job in self.jobs.values() if job.progress.ready), None)
        if job is None or (step := job.progress.ready) is None:
            return False
        start = time.perf_counter()
        try:
            outputs = job.served.runners[step.file].run(job.progress.take(step))
        except EdgepruneError as error:
            self.fail(job, str(error))
            return True
        except Exception as error:  # a runtime's own: one request must not end the worker
            logger.exception("%s failed", step.file)
            self.fail(job, f"{step.file}: {type(error).__name__}: {error}")
            return True
        job.progress.compute_us += round((time.perf_counter() - start) * 1e6)
        self._hold(job, {name: np.asarray(array, order="C") for name, array in outputs.items()})
        return True

    @property
    def has_work(self) -> bool:
        return any(job.progress.ready for job in self.jobs.values())

    def fail(self, job: Job, reason: str) -> None:
        """Give up an attempt."""
        self.forget(job)
        self._failed(job, reason)

    def forget(self, job: Job) -> None:
        """Drop an attempt without a word."""
        key = (job.attempt.client, job.attempt.request)
        if self.jobs.get(key) is job:
            del self.jobs[key]

    def expire(self, now: float) -> None:
        """Give up attempts whose time is over."""
        for job in [job for job in self.jobs.values() if job.expires <= now]:
            self.fail(job, "its time is over")

    def _replace(self, job: Job) -> None:
        key = (job.attempt.client, job.attempt.request)
        self.jobs.pop(key, None)  # the new attempt queues behind others
        self.jobs[key] = job

    def _hold(self, job: Job, arrays: Feeds) -> None:
        for sending, name, array in job.progress.hold(arrays.items()):
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
            job.served.digest, job.attempt, job.plan, sending.stage, name, array.dtype.name, array.shape, left
        )
