"""What `edgeprune worker` does: serves this device's part of a bundle until it is stopped.

Whatever comes is checked, and what is refused gets an answer and a line in the log. Nothing that a peer sends ends it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeprune.cluster.crew import Crew
from edgeprune.cluster.engine import Engine, Job, RefusedError
from edgeprune.cluster.serving import OpenModel, Served, digest_of, serve
from edgeprune.cluster.store import Store
from edgeprune.cluster.transport.frames import Frame, array_of, encode_marks
from edgeprune.cluster.transport.messages import Chunk, Done, Lacks, Offer, Open, Opened, Refusal, Stored, Tensor
from edgeprune.cluster.transport.network import Network
from edgeprune.cluster.transport.node import Node
from edgeprune.cluster.transport.peers import Came, Event, Heard, Intruder, Lost, Malformed, device_of, worker_address
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.io.arrays import Array

logger = logging.getLogger("edgeprune.cluster")
MOST_BUNDLES = 4
"""Bundles that a worker holds loaded at a time."""
LONGEST_REASON = 1000
POLL_S = 0.1
DONE_LATER_S = 0.05
"""So long after a request it is told what it cost: at once, that would be in the way of the request's own tensors."""


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker is started with."""

    name: str
    """A device's name in the partition."""
    network: Network
    open_model: OpenModel
    store: Path
    """Folder for what is deployed to it."""
    bundle: Path | None = None
    """A bundle that is here already."""
    peers: tuple[str, ...] = ()
    """Names of the other devices that it can reach."""
    admits: Callable[[str], bool] = field(default=lambda address: True)
    """Which addresses are listened to."""


class Worker:
    """One device. `run` serves until `stop` is called, from wherever."""

    def __init__(self, options: WorkerOptions) -> None:
        """InputError if the bundle is not for this device, or the address cannot be listened on."""
        self.options = options
        self._served: dict[str, Served] = {}
        self._store = Store(options.store, options.name)
        self._folders: dict[str, Path] = {}
        if options.bundle is not None:
            self._folders[digest_of(options.bundle)] = options.bundle
            self._load(digest_of(options.bundle), whole=False)
        self._is_stopping = False
        self._done: deque[tuple[float, str, Done, bytes]] = deque()
        self._engine = Engine(self._send_tensor, self._finished, self._failed)
        self._node = Node(
            worker_address(options.name),
            options.network,
            peers=map(worker_address, options.peers),
            unheard=self._unheard,
            admits=options.admits,
        )
        get = self._node.get
        self._crew = Crew("edgeprune-worker", self._engine, get, self._handle, self._tend, poll_s=POLL_S)

    def run(self) -> None:
        """Serve until stopped."""
        listening = ", ".join(self.options.network.listen)
        logger.info("%s listens on %s", self.options.name, listening)
        try:
            self._crew.start()
            while not self._is_stopping:  # not a wait for an event: a signal's handler calls `stop` in this thread
                time.sleep(POLL_S)
        finally:
            self.close()

    def stop(self) -> None:
        self._is_stopping = True

    def close(self) -> None:
        self._is_stopping = True
        self._crew.close()
        self._node.close()
        for served in self._served.values():
            served.close()
        self._served = {}

    def _tend(self) -> None:
        now = time.monotonic()
        self._engine.expire(now)
        while self._done and self._done[0][0] <= now - DONE_LATER_S:
            _, to, done, marks = self._done.popleft()
            self._node.send(to, done, marks)

    def _handle(self, event: Event) -> None:
        try:
            self._act_on(event)
        except EdgepruneError as error:
            self._refuse(event, str(error))
        except Exception as error:  # a bug, or a disk that is full: the next request may be served
            logger.exception("%s failed", type(event).__name__)
            self._refuse(event, f"{type(error).__name__}: {error}")

    def _act_on(self, event: Event) -> None:
        if isinstance(event, Malformed):
            self._refuse(event, event.reason)
        elif isinstance(event, Heard):
            self._node.log.log(logging.INFO, event.peer, "%s is there", event.peer)
        elif isinstance(event, Intruder):
            self._node.log.warning(event.peer, "%s %s", event.peer, event.reason)
        elif isinstance(event, Lost):
            self._node.log.warning(event.peer, "%s %s", event.peer, event.reason)
            self._without(event.peer, f"{self.options.name} lost {device_of(event.peer)}, which {event.reason}")
        else:
            if event.after_gap:
                self._without(event.peer, f"frames from {device_of(event.peer)} to {self.options.name} are missing")
            self._answer(event)

    def _without(self, peer: str, reason: str) -> None:
        """Give up the requests that need a peer: those of a client, or those that exchange tensors with a worker."""
        is_worker = peer == worker_address(device_of(peer))
        for job in list(self._engine.jobs.values()):
            if job.needs(device_of(peer)) if is_worker else job.host == peer:
                self._engine.fail(job, reason)

    def _answer(self, came: Came) -> None:
        frame, message = came.frame, came.frame.message
        if isinstance(message, Tensor):
            self._take_tensor(came, message)
        elif isinstance(message, Open):
            self._load(message.bundle, whole=message.whole)
            self._node.send(came.peer, Opened(message.bundle, self._unheard()))
        elif isinstance(message, Offer):
            lacking = self._store.begin(message.bundle, bytes(frame.payload), whole=message.whole)
            self._node.send(came.peer, Lacks(message.bundle, lacking))
        elif isinstance(message, Chunk):
            size = self._take_chunk(message, frame)
            self._node.send(came.peer, Stored(message.bundle, message.file, size))
        elif isinstance(message, Refusal):
            self._node.log.warning(came.peer, "%s refuses: %s", came.peer, message.reason)
            self._pass_on(message)
        else:
            self._refuse(came, f"a worker is not told {type(message).__name__.lower()}")

    def _take_tensor(self, came: Came, message: Tensor) -> None:
        served = self._served.get(message.bundle)
        if served is None:
            known = ", ".join(digest[:12] for digest in self._served) or "none"
            self._refuse(came, f"the bundle {message.bundle[:12]} is foreign to {self.options.name}, which has {known}")
            return
        device, _, own = came.peer.partition("/")
        is_client = own == message.attempt.client
        host = came.peer if is_client else f"{served.host}/{message.attempt.client}"
        try:
            if came.after_gap:
                raise RefusedError("frames before this tensor are missing")
            sender = served.host if is_client else device
            self._engine.accept(served, sender, host, message, array_of(came.frame))
        except RefusedError as error:
            self._refuse(came, str(error), to=host)

    def _take_chunk(self, message: Chunk, frame: Frame) -> int:
        return self._store.add(
            message.bundle, message.file, message.offset, message.total, message.sha256, frame.payload
        )

    def _pass_on(self, message: Refusal) -> None:
        """What another worker refused is over for the client, which may not have heard of it."""
        attempt, served = message.attempt, self._served.get(message.bundle)
        if attempt is None or served is None:
            return
        if (job := self._engine.job_of(attempt)) is not None:
            self._engine.fail(job, message.reason)
        else:
            self._node.send(f"{served.host}/{attempt.client}", message)

    def _load(self, digest: str, *, whole: bool) -> None:
        """Have a bundle ready; InputError if it is not here, or not for this device."""
        served = self._served.get(digest)
        if served is not None and (not whole or any(plan.startswith("whole") for plan in served.flows)):
            return
        folder = self._folders.get(digest) or self._store.folder_of(digest)
        if not folder.is_dir():
            own = ", ".join(known[:12] for known in self._folders)
            raise InputError(
                f"{self.options.name} has no bundle {digest[:12]}{f', but {own}' if own else ''}",
                remedy="deploy it (`edgeprune deploy`), or start the worker with it (--bundle)",
            )
        fresh = serve(folder, self.options.name, self.options.open_model, whole=whole)
        if fresh.digest != digest:
            fresh.close()
            self._folders.pop(digest, None)
            raise InputError(f"the bundle on {self.options.name} was replaced by another one")
        all_served = {**self._served, digest: fresh}
        idle = (name for name, one in all_served.items() if one is not self._engine.computing)
        oldest = all_served.pop(next(idle)) if len(all_served) > MOST_BUNDLES else None
        self._served = all_served  # never changed in place: the node's own thread reads it (`_unheard`)
        if oldest is not None:
            oldest.close()
        logger.info("%s serves the bundle %s%s", self.options.name, digest[:12], " as a whole" if whole else "")

    def _unheard(self) -> tuple[str, ...]:
        served: Mapping[str, Served] = self._served
        needed = {peer for one in served.values() for peer in one.peers - {one.host, self.options.name, ""}}
        return tuple(sorted(name for name in needed if not self._node.is_alive(worker_address(name))))

    def _refuse(self, event: Event, reason: str, *, to: str = "") -> None:
        """Say no: in the log, and to whom it concerns (by default the sender)."""
        reason = reason[:LONGEST_REASON]
        self._node.log.warning(event.peer, "refused %s: %s", event.peer, reason)
        attempt = bundle = None
        if isinstance(event, Came):
            attempt = getattr(event.frame.message, "attempt", None)
            bundle = getattr(event.frame.message, "bundle", None)
            if isinstance(event.frame.message, Refusal):
                return  # an answer to an answer has no end
        self._node.send(to or event.peer, Refusal(reason, attempt, bundle or ""))

    def _send_tensor(self, to: str, message: Tensor, array: Array) -> None:
        self._node.send(to, message, array)

    def _finished(self, job: Job) -> None:
        progress = job.progress
        marks = b"" if job.marks is None else encode_marks(job.marks)
        done = Done(job.attempt, progress.compute_us, progress.sent_bytes)
        self._done.append((time.monotonic(), job.host, done, marks))

    def _failed(self, job: Job, reason: str) -> None:
        logger.warning("gave up request %d of %s: %s", job.attempt.request, job.host, reason)
        self._node.send(job.host, Refusal(reason[:LONGEST_REASON], job.attempt, job.served.digest))
