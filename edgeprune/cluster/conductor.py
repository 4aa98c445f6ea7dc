"""The client's side: gives every request a way through the devices, and another one when a device is lost."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from edgeprune.cluster.contacts import Contacts
from edgeprune.cluster.crew import Crew
from edgeprune.cluster.engine import Engine, Job, RefusedError
from edgeprune.cluster.flow import SPLIT, Progress, whole_plan
from edgeprune.cluster.requests import (
    MOST_ATTEMPTS,
    ClusterError,
    ClusterStats,
    LateError,
    Pending,
    Tally,
    Ways,
    choose_fallback,
    choose_least_loaded,
)
from edgeprune.cluster.serving import Served
from edgeprune.cluster.timeline import Trace, Traces
from edgeprune.cluster.transport.frames import FrameError, array_of, marks_of
from edgeprune.cluster.transport.messages import Attempt, Done, Mark, Opened, Refusal, Tensor
from edgeprune.cluster.transport.node import Node
from edgeprune.cluster.transport.peers import Came, Heard, Lost, Malformed, device_of

logger = logging.getLogger("edgeprune.cluster")
POLL_S = 0.02


@dataclass(frozen=True)
class Submitted:
    """A caller has a request."""

    pending: Pending


@dataclass(frozen=True)
class Team:
    """Who works for a client, and how."""

    served: Served
    """The host's own part."""
    workers: tuple[str, ...]
    needed: frozenset[str]
    """The workers without which the split model cannot run."""
    whole: bool
    """Whether every device runs whole models."""
    host_works: bool
    """Whether the host does, too; in a split network, whether it takes over when a device is lost."""
    traced: bool = False
    """Whether it is noted when which device does what in a split network."""


class Conductor:
    """Owns the node, the host's engine and all requests."""

    def __init__(self, node: Node, team: Team) -> None:
        self._node, self._team = node, team
        self._client = node.address.partition("/")[2]
        self._contacts = Contacts.of(node, team.served.digest, team.workers, whole=team.whole)
        self._engine = Engine(node.send, self._finished, self._failed)
        self._pending: dict[int, Pending] = {}
        self._tally = Tally()
        self._closed = threading.Event()
        self._traces = Traces(team.needed | {team.served.host})
        self._crew = Crew("edgeprune-client", self._engine, node.get, self._handle, self._tend, poll_s=POLL_S)
        self._crew.start()

    def submit(self, pending: Pending) -> None:
        """Have a request answered: its future gets the outputs, or a `ClusterError`."""
        self._node.put(Submitted(pending))
        if self._closed.is_set():
            self._end_all()

    def faults(self) -> list[str]:
        """A sentence for each worker that is not ready; empty when all is well."""
        with self._crew.lock:
            return self._contacts.faults(self._team.needed)

    @property
    def is_refused(self) -> bool:
        """Whether a worker said that it will not serve the bundle."""
        return self._contacts.is_refused

    def stats(self) -> ClusterStats:
        with self._crew.lock:
            return self._tally.stats(self._engine.late)

    def traces(self) -> list[Trace]:
        """Of the latest requests that were answered by the split network, in order."""
        with self._crew.lock:
            return list(self._traces.complete.values())

    @property
    def is_settled(self) -> bool:
        """Whether the workers have told what the answered requests cost them."""
        with self._crew.lock:
            return self._tally.told >= self._tally.to_be_told

    @property
    def working(self) -> int:
        """How many devices can work at a time now: on whole models, or each on its part of one of several requests."""
        with self._crew.lock:
            ways = self._ways()
            return 1 + len(self._team.needed) if ways.split else len(ways.whole)

    def count_dropped(self) -> None:
        """Count a request that found the queue full."""
        with self._crew.lock:
            self._tally.dropped += 1

    def close(self) -> None:
        """End the threads; requests that are not answered, or come later, fail."""
        self._crew.close()
        self._closed.set()
        self._end_all()

    def _end_all(self) -> None:
        """Fail all requests once the threads have ended, those that wait to be taken, too."""
        with self._crew.lock:
            while (event := self._node.get()) is not None:
                if isinstance(event, Submitted):
                    self._pending[event.pending.number] = event.pending
            for pending in list(self._pending.values()):
                self._give_up(pending, ClusterError("the cluster was closed"))

    def _handle(self, event: Any) -> None:
        if isinstance(event, Submitted):
            self._pending[event.pending.number] = event.pending
            self._dispatch(event.pending)
        elif isinstance(event, Heard):
            self._contacts.heard(event.peer)
        elif isinstance(event, Lost):
            self._contacts.closed(event.peer, event.reason)
            self._without(event.peer, f"{device_of(event.peer)} {event.reason}")
        elif isinstance(event, Malformed):
            logger.warning("%s sent what %s", event.peer, event.reason)
            self._contacts.refused(event.peer, f"sent what {event.reason}")
        elif isinstance(event, Came):
            if event.after_gap:
                self._without(event.peer, f"frames from {device_of(event.peer)} are missing")
            self._take(event)

    def _take(self, came: Came) -> None:
        message = came.frame.message
        if isinstance(message, Tensor):
            job = self._engine.job_of(message.attempt)
            if job is None or message.bundle != self._team.served.digest:
                self._engine.late += 1
                return
            try:
                array = array_of(came.frame)
                self._engine.accept(job.served, device_of(came.peer), self._node.address, message, array)
            except RefusedError as error:
                self._engine.fail(job, f"{device_of(came.peer)} sent a tensor that has no place: {error}")
        elif isinstance(message, Opened):
            self._contacts.opened(came.peer, message.unheard)
        elif isinstance(message, Done):
            self._tally.told += 1
            self._tally.moved_bytes += message.sent_bytes
            self._tally.compute_ms[device_of(came.peer)] += message.compute_us / 1e3
            self._note(came, message)
        elif isinstance(message, Refusal):
            self._refused(came.peer, message)

    def _note(self, came: Came, done: Done) -> None:
        try:
            if self._team.traced and (marks := marks_of(came.frame)):
                self._traces.note(done.attempt, device_of(came.peer), marks)
        except FrameError as error:
            logger.warning("%s sent what %s", came.peer, error)

    def _refused(self, peer: str, message: Refusal) -> None:
        if message.attempt is None:
            logger.warning("%s refuses: %s", peer, message.reason)
            self._contacts.refused(peer, f"refuses: {message.reason}")
            return
        self._contacts.closed(peer, message.reason)  # it may have dropped the bundle for others: it is asked again
        if (job := self._engine.job_of(message.attempt)) is not None:
            self._engine.fail(job, message.reason)

    def _without(self, peer: str, reason: str) -> None:
        """Try the requests that need a device in another way."""
        device = device_of(peer)
        for job in list(self._engine.jobs.values()):
            if job.needs(device) or (job.plan == SPLIT and device in self._team.needed):
                self._engine.fail(job, reason)

    def _tend(self) -> None:
        now = time.monotonic()
        self._contacts.ask(now)
        for pending in list(self._pending.values()):
            if pending.deadline <= now:
                self._late(pending)
            elif not pending.plan:
                self._dispatch(pending)

    def _ways(self) -> Ways:
        team = self._team
        load = Counter(pending.plan.partition(":")[2] for pending in self._pending.values())
        ready = [name for name in team.workers if team.whole and self._contacts.is_ready(name)]
        can = team.host_works and whole_plan(team.served.host) in team.served.flows
        return Ways(not team.whole and not self.faults(), tuple([team.served.host] * can + ready), load)

    def _dispatch(self, pending: Pending) -> None:
        ways = self._ways()
        choose = choose_least_loaded if self._team.whole else choose_fallback
        plan = choose(ways, pending.failed)
        if plan and pending.attempt < MOST_ATTEMPTS:
            self._start(pending, plan)
        elif plan or not self._team.whole or not set(map(whole_plan, ways.whole)) - pending.failed.keys():
            reasons = list(dict.fromkeys([*pending.failed.values(), *self.faults()]))
            what = "; ".join(reasons) or "no device is ready"
            self._give_up(pending, ClusterError(f"not answered: {what}; and there is no other way to compute it"))

    def _start(self, pending: Pending, plan: str) -> None:
        pending.attempt += 1
        pending.plan = plan
        if pending.attempt > 1:
            self._tally.repeated += 1
        served = self._team.served
        attempt = Attempt(self._client, pending.number, pending.attempt)
        progress = Progress(served.flows[plan])
        marks: list[Mark] | None = [] if self._team.traced and plan == SPLIT else None
        job = Job(attempt, served, plan, self._node.address, progress, pending.deadline, marks)
        self._engine.start(job, pending.feeds)

    def _finished(self, job: Job) -> None:
        pending = self._pending.get(job.attempt.request)
        if pending is None or pending.attempt != job.attempt.number:
            return
        progress, now = job.progress, time.monotonic()
        latency_ms = (now - pending.submitted) * 1e3
        self._tally.note_latency(latency_ms)
        if job.marks is not None:
            self._traces.note(job.attempt, job.served.host, job.marks, latency_ms)
        self._tally.moved_bytes += progress.sent_bytes
        self._tally.to_be_told += len(self._team.needed) if job.plan == SPLIT else not progress.flow.steps
        if progress.flow.steps:
            self._tally.compute_ms[job.served.host] += progress.compute_us / 1e3
        del self._pending[pending.number]
        pending.future.set_result({name: progress.results[name] for name in progress.flow.outputs})

    def _failed(self, job: Job, reason: str) -> None:
        pending = self._pending.get(job.attempt.request)
        if pending is None or pending.attempt != job.attempt.number:
            return
        logger.warning("request %d failed: %s", pending.number, reason)
        pending.failed[pending.plan] = reason
        pending.plan = ""
        if pending.deadline > time.monotonic():
            self._dispatch(pending)

    def _late(self, pending: Pending) -> None:
        if not pending.plan and not pending.failed:
            self._tally.dropped += 1
            what = "no device was free in time"
        else:
            what = "; ".join(dict.fromkeys([*pending.failed.values(), *self.faults()])) or "it took too long"
        job = self._engine.jobs.get((self._client, pending.number))
        if job is not None:
            self._engine.forget(job)
        allowed = pending.deadline - pending.submitted
        self._give_up(pending, LateError(f"not answered within {allowed:g} s: {what}"))

    def _give_up(self, pending: Pending, error: ClusterError) -> None:
        self._tally.failed += 1
        del self._pending[pending.number]
        pending.future.set_exception(error)
