"""Copy each worker's part of a bundle to it: only what it lacks, in pieces with a SHA-256 each, and each answered."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.names import MANIFEST, PARTITION
from edgeprune.cluster.serving import digest_of, read_partition
from edgeprune.cluster.store import chunks_of
from edgeprune.cluster.transport.messages import Chunk, Lacks, Message, Offer, Open, Opened, Refusal, Stored
from edgeprune.cluster.transport.network import Network, check_endpoint
from edgeprune.cluster.transport.node import Node
from edgeprune.cluster.transport.peers import Came, Heard, Lost, Malformed, device_of, worker_address
from edgeprune.cluster.transport.probe import probed
from edgeprune.errors import InputError, unknown_name
from edgeprune.io import progress

CHUNK_BYTES = 2**20
ANSWER_S = 30.0
"""How long a worker may take for an answer; to load the models, too."""

M = TypeVar("M", Lacks, Stored, Opened)


class Deployed(msgspec.Struct, frozen=True):
    """What one worker was sent."""

    device: str
    files: tuple[str, ...]
    """That it lacked."""
    sent_bytes: int


@dataclass(frozen=True)
class DeployOptions:
    """How to deploy."""

    whole: bool = False
    """The whole model, too."""
    host: str = ""
    """The name under which workers are spoken to; default: the partition's host."""
    start_timeout_s: float = 10.0
    access: Mapping[str, Any] = field(default_factory=dict)
    discover: bool = False
    """Whether workers without an address are looked for by multicast."""


def deploy(folder: Path, addresses: Mapping[str, str], options: DeployOptions = DeployOptions()) -> list[Deployed]:
    """Copy a bundle's parts to the workers at `addresses` (device -> address; with `discover` an empty one is to be
    found), and have them load it.

    InputError if the bundle is damaged, or a worker is not there, refuses, or stops answering; what it got by then it
    keeps, so that the next try sends the rest.
    """
    bundle = open_bundle(folder)
    bundle.require_sound()
    host, names = _devices(bundle, options.host, addresses)
    workers = {name: address for name, address in addresses.items() if name in names}
    if not workers:
        raise InputError("no device to deploy to", where=folder, expected=f"an address of {', '.join(names) or 'one'}")
    known = [name for name, address in workers.items() if address or not options.discover]
    endpoints = {name: check_endpoint(workers[name], where=name) for name in known}
    network = Network((), tuple(endpoints.values()), options.access, options.discover)
    with Node(f"{host}/{secrets.token_hex(8)}", network, peers=map(worker_address, workers)) as node:
        talk = _Talk(node, options.start_timeout_s, endpoints)
        return [_deploy_to(talk, bundle, name, whole=options.whole) for name in workers]


def _devices(bundle: Bundle, host: str, addresses: Mapping[str, str]) -> tuple[str, list[str]]:
    if not bundle.has(PARTITION):
        host = host or next(iter(addresses), "host")
        return host, [name for name in addresses if name != host]
    entries = read_partition(bundle).devices
    return entries[0].name, [entry.name for entry in entries[1:]]


def _deploy_to(talk: _Talk, bundle: Bundle, device: str, *, whole: bool) -> Deployed:
    digest, peer = digest_of(bundle.folder), worker_address(device)
    talk.wait_for(peer)
    lacking = talk.ask(peer, Offer(digest, whole), Lacks, (bundle.folder / MANIFEST).read_bytes()).files
    sent = 0
    for file in progress.track(sorted(lacking), f"deploying to {device}"):
        if file not in bundle.manifest.files:
            raise unknown_name("file", file[:200], bundle.manifest.files)
        sent += _send_file(talk, bundle, peer, file, lacking[file])
    talk.ask(peer, Open(digest, whole), Opened)
    return Deployed(device, tuple(sorted(lacking)), sent)


def _send_file(talk: _Talk, bundle: Bundle, peer: str, file: str, offset: int) -> int:
    """Send a file from `offset` on; how many bytes were sent."""
    path, digest = bundle.path(file), digest_of(bundle.folder)
    total, sent = path.stat().st_size, 0
    for start, data, sha256 in chunks_of(path, offset, CHUNK_BYTES):
        stored = talk.ask(peer, Chunk(digest, file, start, total, sha256), Stored, data).size
        if stored != start + len(data):
            raise InputError(
                f"{peer} has {stored:,} bytes of {file}", expected=f"{start + len(data):,}", remedy="again"
            )
        sent += len(data)
    return sent


class _Talk:
    """Questions to workers, one at a time, with an answer each."""

    def __init__(self, node: Node, start_timeout_s: float, endpoints: Mapping[str, str]) -> None:
        self._node, self._start_timeout_s, self._endpoints = node, start_timeout_s, endpoints

    def wait_for(self, peer: str) -> None:
        """Until a worker was heard; InputError if it is not in time, or speaks otherwise."""
        until = time.monotonic() + self._start_timeout_s
        while not self._node.is_alive(peer):
            event = self._node.get(0.02)
            if isinstance(event, Malformed) and event.peer == peer:
                raise InputError(f"sent what {event.reason}", where=peer)
            if time.monotonic() > until:
                endpoint = self._endpoints.get(device_of(peer), "")
                raise InputError(
                    f"was never heard ({endpoint}: {probed(endpoint)})" if endpoint else "was not found",
                    where=peer,
                    expected=f"a worker within {self._start_timeout_s:g} s",
                    remedy="start `edgeprune worker` there" + ("" if endpoint else " with --discover"),
                )

    def ask(self, peer: str, question: Message, kind: type[M], payload: bytes = b"") -> M:
        """Send a message and wait for the answer of this kind; InputError if there is none, or a refusal."""
        self._node.send(peer, question, payload)
        until = time.monotonic() + ANSWER_S
        while (left := until - time.monotonic()) > 0:
            event = self._node.get(left)
            if event is None or event.peer != peer or isinstance(event, Heard):
                continue
            if isinstance(event, Lost | Malformed):
                raise InputError(f"the deployment stopped: {event.reason}", where=peer, remedy="try again")
            message = event.frame.message if isinstance(event, Came) else None
            if isinstance(message, Refusal):
                raise InputError(f"refuses: {message.reason}", where=peer)
            if isinstance(message, kind):
                return message
        raise InputError(f"gave no answer for {ANSWER_S:g} s", where=peer, remedy="look at the worker's log")
