"""A node of the cluster: sends numbered frames to peers, hears their heartbeats, and tells its owner what happens.

Threads: zenoh's calls back, checks what came and enqueues it; one keeps time; one a peer sends what is large. The owner
gets everything as events in one queue, so that nothing of it needs a lock, and may take its time.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from edgeprune.cluster.transport.frames import MOST_PAYLOAD, FrameError, decode, encode
from edgeprune.cluster.transport.limited_log import LimitedLog
from edgeprune.cluster.transport.links import BEAT_S
from edgeprune.cluster.transport.messages import Beat, Message
from edgeprune.cluster.transport.network import Network, import_zenoh, open_session
from edgeprune.cluster.transport.peers import (
    ALIVE,
    ROOT,
    Came,
    Event,
    Intruder,
    Malformed,
    Peer,
    Sender,
    key_to,
    sender_in,
)
from edgeprune.io.arrays import Array

logger = logging.getLogger("edgeprune.cluster")
TICK_S = 0.1
MOST_WAITING, MOST_WAITING_BYTES = 4096, 2 * MOST_PAYLOAD
"""Events that wait for the owner; frames beyond are dropped, which their senders notice by the missing
acknowledgement."""
MOST_STRANGERS = 64
"""Peers that spoke to this node first."""
STRANGER_S = 10.0
"""Silence after which they are forgotten."""


def _let_others_run() -> None:
    """Where the network's threads have no core of their own, what is to be sent would wait until the scheduler takes
    the core from whatever is computed next, some milliseconds."""
    if hasattr(os, "sched_yield"):  # not on Windows
        os.sched_yield()


class Node:
    """Use as a context manager, or call `close`."""

    def __init__(
        self,
        address: str,
        network: Network,
        *,
        peers: Iterable[str] = (),
        unheard: Callable[[], tuple[str, ...]] = tuple,
        admits: Callable[[str], bool] = lambda address: True,
    ) -> None:
        """`address`: NAME/ID, under which frames come. `peers`: addresses to keep in touch with. `admits`: which other
        senders are listened to. `unheard`: what to tell of other devices with every heartbeat.
        InputError as `open_session`."""
        self.address = address
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._waiting_bytes = 0
        self.dropped = 0
        """Frames that came faster than they were read."""
        self.log = LimitedLog()
        """For what concerns a peer."""
        self._unheard, self._admits = unheard, admits
        self._instance = secrets.randbits(60) | 1
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._peers: dict[str, Peer] = {}
        zenoh = import_zenoh()
        self._block = {"congestion_control": zenoh.CongestionControl.BLOCK, "express": True}
        self._drop = {
            "congestion_control": zenoh.CongestionControl.DROP,
            "priority": zenoh.Priority.INTERACTIVE_HIGH,
            "express": True,
        }
        self._session: Any = open_session(network)
        self._subscriber = self._session.declare_subscriber(f"{ROOT}/{address}/**", self._take)
        self._links = self._session.info.declare_link_events_listener(self._look_at_link, history=True)
        self._token = self._session.liveliness().declare_token(f"{ALIVE}/{address}")
        self._timer = threading.Thread(target=self._keep_time, name="edgeprune-time", daemon=True)
        for peer in peers:
            self.watch(peer)
        self._timer.start()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop sending and listening; a second call does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        with self._lock:
            for peer in self._peers.values():
                peer.sender.close()
        try:
            self._session.close()
        except Exception as error:  # zenoh's own: a peer that hangs
            logger.warning("the network was left without a farewell: %s", error)
        self._timer.join(timeout=2)
        self.log.sum_up(now=True)

    def watch(self, address: str) -> None:
        """Keep in touch with a peer from now on."""
        with self._lock:
            self._peer(address, is_watched=True).is_watched = True
        self._session.liveliness().declare_subscriber(f"{ALIVE}/{address}", self._see_life)

    def put(self, event: object) -> None:
        """Have `get` give the owner something of its own, in turn with what happens."""
        self._events.put(event)

    def get(self, timeout: float = 0.0) -> Any:
        """The next `Event` or object that was `put`; None if there is none within `timeout` seconds."""
        try:
            event = self._events.get(timeout=timeout) if timeout > 0 else self._events.get_nowait()
        except queue.Empty:
            return None
        if isinstance(event, Came):
            with self._lock:
                self._waiting_bytes -= len(event.frame.payload)
        return event

    def send(self, to: str, message: Message, payload: Array | bytes = b"") -> None:
        """Queue a frame for a peer; an array must be contiguous and is not to be changed afterwards."""
        size = len(payload) if isinstance(payload, bytes) else payload.nbytes
        with self._lock:
            peer = self._peer(to, is_watched=False)
            epoch, number = peer.outgoing.next(size, time.monotonic())
            item = epoch, number, message, payload
            is_direct = peer.sender.send(item, size)
        if is_direct:
            peer.sender.put_and_release(item)
        _let_others_run()

    def is_alive(self, address: str) -> bool:
        """Whether a peer was heard lately."""
        with self._lock:
            return address in self._peers and self._peers[address].is_alive

    def beat_of(self, address: str) -> tuple[Beat, float]:
        """The last heartbeat of a peer, and when it came (time.monotonic)."""
        with self._lock:
            peer = self._peers.get(address)
            return (peer.beat, peer.heard_at) if peer is not None else (Beat(), 0.0)

    def _peer(self, address: str, *, is_watched: bool) -> Peer:
        known = self._peers.get(address)
        if known is not None:
            return known
        publisher = partial(self._session.declare_publisher, key_to(address, self.address), **self._block)
        sender = Sender(publisher, lambda epoch: peer.outgoing.epoch == epoch, address)
        self._peers[address] = peer = Peer(address, is_watched, sender)
        return peer

    def _take(self, sample: Any) -> None:
        """Decode and hand over what came. This is the network's own thread: nothing in here takes long or waits."""
        payload = sample.payload
        if self._events.qsize() >= MOST_WAITING or self._waiting_bytes >= MOST_WAITING_BYTES:
            self.dropped += 1
            return
        key, data = str(sample.key_expr), payload.to_bytes()
        sender = sender_in(key, self.address)
        events = self._events_of(sender, data) if sender else None
        if events is None:
            text = "a frame of %d bytes on %.200r was refused: its sender is not admitted"
            self.log.warning("senders that are not admitted", text, len(data), key)
            return
        for event in events:
            self._events.put(event)

    def _look_at_link(self, event: Any) -> None:
        name = event.link.auth_identifier
        if name is not None and str(event.kind).endswith("PUT") and not self._admits(f"{name}/"):
            self._events.put(Intruder(str(name), f"connected from {event.link.dst} and is not admitted"))

    def _see_life(self, sample: Any) -> None:
        """A connection that is gone tells within milliseconds that a process died; of one that hangs, or is cut off,
        only its silence tells."""
        if str(sample.kind).endswith("DELETE"):
            with self._lock:
                peer = self._peers.get(str(sample.key_expr).removeprefix(f"{ALIVE}/"))
                for event in peer.lose("is gone") if peer is not None else ():
                    self._events.put(event)

    def _events_of(self, sender: str, data: bytes) -> list[Event] | None:
        """What a frame means to the owner; None if its sender is not listened to."""
        try:
            frame = decode(data)
        except FrameError as error:
            with self._lock:
                return [Malformed(sender, str(error))] if self._is_welcome(sender) else None
        with self._lock:
            if not self._is_welcome(sender):
                return None
            peer = self._peer(sender, is_watched=False)
            if isinstance(frame.message, Beat):
                return peer.note_beat(frame.epoch, frame.message, time.monotonic())
            order = peer.incoming.accept(frame.epoch, frame.number)
            if order == "old":
                return [Malformed(sender, f"frame {frame.number} came a second time")]
            self._waiting_bytes += len(frame.payload)
        return [Came(sender, frame, after_gap=order == "gap")]

    def _is_welcome(self, sender: str) -> bool:
        if sender in self._peers:
            return True
        strangers = sum(not peer.is_watched for peer in self._peers.values())
        return strangers < MOST_STRANGERS and self._admits(sender)

    def _keep_time(self) -> None:
        last, ticks = time.monotonic(), 0
        while not self._stop.wait(TICK_S):
            now = time.monotonic()
            asleep, last = now - last - TICK_S, now
            with self._lock:
                peers = list(self._peers.values())
                for peer in peers:
                    if asleep > TICK_S:  # this process did not run: that is not the peers' silence
                        peer.heard_at += asleep
                    for event in peer.check(now):
                        self._events.put(event)
                for peer in peers:
                    if not peer.is_watched and now - peer.heard_at > STRANGER_S:
                        peer.sender.close()
                        del self._peers[peer.address]
            self.log.sum_up()
            unheard = self._unheard()
            is_due = ticks % round(BEAT_S / TICK_S) == 0
            for peer in peers:  # to those that are to be there more often, so that they meet soon
                if (peer.is_alive and is_due) or (peer.is_watched and not peer.is_alive):
                    self._send_beat(peer, unheard)
            ticks += 1

    def _send_beat(self, peer: Peer, unheard: tuple[str, ...]) -> None:
        with self._lock:
            incoming = peer.incoming
            beat = Beat(incoming.epoch, incoming.number, unheard)
        try:
            self._session.put(key_to(peer.address, self.address), encode(self._instance, 0, beat), **self._drop)
        except Exception as error:  # a session that is being closed
            if not self._stop.is_set():
                logger.warning("no heartbeat could be sent to %s: %s", peer.address, error)
