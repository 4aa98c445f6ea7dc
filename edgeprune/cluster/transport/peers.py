"""What a node knows of another one, and the thread that sends to it: a peer that stalls holds up nobody else."""

from __future__ import annotations

import logging
import queue
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from edgeprune.cluster.transport.frames import Frame, encode
from edgeprune.cluster.transport.links import LOST_AFTER_S, Incoming, Outgoing
from edgeprune.cluster.transport.messages import Beat, Message
from edgeprune.io.arrays import Array

logger = logging.getLogger("edgeprune.cluster")
ROOT = "edgeprune"
ALIVE = "edgeprune-alive"
"""Under which each node shows that its process runs and is connected."""
WORKER_ID = "worker"
"""The second part of a worker's address; a client's is a number of its own, so that several can run."""
DIRECT_BYTES = 2**17
_ADDRESS = re.compile(r"[A-Za-z0-9._-]{1,64}/[a-z0-9]{1,32}")


def worker_address(device: str) -> str:
    return f"{device}/{WORKER_ID}"


def device_of(address: str) -> str:
    return address.partition("/")[0]


def key_to(receiver: str, sender: str) -> str:
    """The key of what one node sends to another. Access rules hold a peer to its own name as the sender."""
    return f"{ROOT}/{receiver}/{sender}"


def sender_in(key: str, receiver: str) -> str:
    """The sender's address in a key; empty if there is none in it."""
    sender = key.removeprefix(f"{ROOT}/{receiver}/")
    return sender if _ADDRESS.fullmatch(sender) else ""


class Came(NamedTuple):
    """A frame that came in order."""

    peer: str
    frame: Frame
    after_gap: bool = False
    """Whether frames before it are missing."""


@dataclass(frozen=True)
class Malformed:
    peer: str
    reason: str


@dataclass(frozen=True)
class Heard:
    """A peer is there: for the first time, or again."""

    peer: str


@dataclass(frozen=True)
class Lost:
    """A peer is silent, was restarted, or does not acknowledge."""

    peer: str
    reason: str


@dataclass(frozen=True)
class Intruder:
    """Someone with a certificate that is valid, but of no device that is admitted, has connected, and gets nothing."""

    peer: str
    """The certificate's name."""
    reason: str


Event = Came | Malformed | Heard | Lost | Intruder


_Outbound = tuple[int, int, Message, Array | bytes]
"""Epoch, number, message, payload."""


@dataclass
class Peer:
    """One other node. Everything but the queue is guarded by the node's lock."""

    address: str
    is_watched: bool
    """Whether the node itself asked for it, rather than having been spoken to."""
    sender: Sender
    outgoing: Outgoing = field(default_factory=lambda: Outgoing(secrets.randbits(40) << 16))
    incoming: Incoming = field(default_factory=Incoming)
    heard_at: float = field(default_factory=time.monotonic)
    is_alive: bool = False
    instance: int = 0
    """A number that its process drew when it started."""
    beat: Beat = field(default_factory=Beat)

    def note_beat(self, instance: int, beat: Beat, now: float) -> list[Event]:
        events: list[Event] = []
        if self.instance not in (0, instance) and self.is_alive:
            events += self.lose("was restarted")
        events += [] if self.is_alive else [Heard(self.address)]
        self.is_alive, self.instance, self.heard_at, self.beat = True, instance, now, beat
        self.outgoing.acknowledge(beat.ack_epoch, beat.ack, now)
        return events

    def check(self, now: float) -> list[Event]:
        if self.is_alive and now - self.heard_at > LOST_AFTER_S:
            return self.lose(f"was not heard for {LOST_AFTER_S} s")
        return self.lose("does not acknowledge what it is sent") if self.outgoing.is_overdue(now) else []

    def lose(self, reason: str) -> list[Event]:
        self.outgoing.reset()
        was_alive, self.is_alive = self.is_alive, False
        return [Lost(self.address, reason)] if was_alive else []


class Sender:
    """Puts a peer's frames on the network, one after another: small ones at once, in the thread of who sends them, if
    nothing is before them, which saves them a change of threads; others in a thread of its own."""

    def __init__(self, publisher: Callable[[], Any], is_current: Callable[[int], bool], name: str) -> None:
        """`publisher` is called once, with no lock held, for what puts bytes on the network; `is_current` tells whether
        an epoch is still the peer's: what was queued before a loss is not sent."""
        self._publisher, self._is_current, self._name = publisher, is_current, name
        self._put: Callable[[bytes], Any] | None = None
        self._queue: queue.SimpleQueue[_Outbound | None] = queue.SimpleQueue()
        self._queued = 0
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None

    def send(self, item: _Outbound, size: int) -> bool:
        """Take the next frame, with the node's lock held; whether its sender is to put it on the network, by
        `put_and_release` without that lock. Else the sender's thread does it."""
        if size <= DIRECT_BYTES and not self._queued and self._turn.acquire(blocking=False):
            return True
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"edgeprune-to-{self._name}", daemon=True)
            self._thread.start()
        self._queued += 1
        self._queue.put(item)
        return False

    def close(self) -> None:
        self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            self._turn.acquire()
            self._queued -= 1  # those that come now find the turn taken
            self.put_and_release(item)

    def put_and_release(self, item: _Outbound) -> None:
        """Put a frame on the network, and give the turn to the next one."""
        try:
            if self._put is None:
                self._put = self._publisher().put
            if self._is_current(item[0]):
                self._put(encode(*item))
        except Exception as error:  # whatever zenoh raises: the frame is missing then, and is noticed
            logger.warning("nothing could be sent to %s: %s", self._name, error)
        finally:
            self._turn.release()
