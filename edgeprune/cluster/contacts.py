"""A client's view of the workers: which of them are there and serve its bundle, and why not."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from edgeprune.cluster.transport.messages import Open
from edgeprune.cluster.transport.node import Node
from edgeprune.cluster.transport.peers import device_of, worker_address

ASK_AGAIN_S = 2.0


@dataclass
class Contact:
    """One worker."""

    address: str
    """Its address among the nodes."""
    is_open: bool = False
    """Whether it said that it serves the bundle, since it was heard for the last time."""
    opened_at: float = 0.0
    unheard: tuple[str, ...] = ()
    """The devices that it did not hear then: its heartbeats from before speak of what it served before."""
    asked_at: float = -1e9
    reason: str = "was never heard"
    """Why it is not ready."""
    refuses: bool = False
    """Whether it said that it will not serve the bundle."""


@dataclass
class Contacts:
    """All workers of a client."""

    node: Node
    digest: str
    whole: bool
    by_device: dict[str, Contact] = field(default_factory=dict)

    @classmethod
    def of(cls, node: Node, digest: str, devices: Iterable[str], *, whole: bool) -> Contacts:
        contacts = {device: Contact(worker_address(device)) for device in devices}
        return cls(node, digest, whole, contacts)

    def of_peer(self, peer: str) -> Contact | None:
        contact = self.by_device.get(device_of(peer))
        return contact if contact is not None and contact.address == peer else None

    def is_ready(self, device: str) -> bool:
        contact = self.by_device.get(device)
        return contact is not None and contact.is_open and self.node.is_alive(contact.address)

    def unheard_by(self, device: str) -> tuple[str, ...]:
        """The devices that a worker says it does not hear."""
        contact = self.by_device[device]
        beat, heard_at = self.node.beat_of(contact.address)
        return beat.unheard if heard_at > contact.opened_at else contact.unheard

    def ask(self, now: float) -> None:
        """Ask the workers that are there to serve the bundle, until they say that they do."""
        for contact in self.by_device.values():
            is_due = now - contact.asked_at > ASK_AGAIN_S
            if not contact.is_open and is_due and self.node.is_alive(contact.address):
                contact.asked_at = now
                self.node.send(contact.address, Open(self.digest, self.whole))

    def heard(self, peer: str) -> None:
        if contact := self.of_peer(peer):
            contact.asked_at, contact.refuses = -1e9, False
            contact.reason = "does not say that it serves the bundle"
            self.ask(time.monotonic())

    def opened(self, peer: str, unheard: tuple[str, ...]) -> None:
        if contact := self.of_peer(peer):
            contact.unheard, contact.opened_at = unheard, time.monotonic()
            contact.is_open, contact.reason = True, ""

    def closed(self, peer: str, reason: str) -> None:
        if contact := self.of_peer(peer):
            contact.is_open, contact.reason = False, reason

    def refused(self, peer: str, reason: str) -> None:
        self.closed(peer, reason)
        if contact := self.of_peer(peer):
            contact.refuses = True

    @property
    def is_refused(self) -> bool:
        """Whether waiting is of no use: a worker said no."""
        return any(contact.refuses for contact in self.by_device.values())

    def faults(self, devices: frozenset[str]) -> list[str]:
        """A sentence for each of these devices that is not ready, or does not hear another one."""
        found = []
        for device in sorted(devices):
            if not self.is_ready(device):
                found.append(f"{device} {self.by_device[device].reason or 'is silent'}")
            elif unheard := sorted(set(self.unheard_by(device)) & devices):
                found.append(f"{device} does not hear {', '.join(unheard)}")
        return found
