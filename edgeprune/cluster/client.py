"""The client: feeds a split network, or copies of a whole one, on several machines, and gets the results.

The client's process is the host itself, the first device of the partition: it runs the host's subgraphs, so that inputs
and outputs go over no network that they need not. It holds the whole model, too, where the bundle has it: that is
what a request falls back to when a device is lost.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.names import MODEL, PARTITION
from edgeprune.cluster.conductor import Conductor, Team
from edgeprune.cluster.requests import SLOTS, ClusterStats, LateError, Outputs, Pending
from edgeprune.cluster.serving import opener, read_partition, serve_as_host
from edgeprune.cluster.timeline import Trace
from edgeprune.cluster.transport.messages import MOST_TTL_MS
from edgeprune.cluster.transport.network import Network, check_endpoint
from edgeprune.cluster.transport.node import Node
from edgeprune.cluster.transport.peers import worker_address
from edgeprune.cluster.transport.probe import probed
from edgeprune.errors import InputError
from edgeprune.io.arrays import Feeds
from edgeprune.onnx_files.graph import TensorSpec
from edgeprune.onnx_files.inputs import input_specs
from edgeprune.onnx_files.model import load_model
from edgeprune.runners.feeds import check_feeds

GRACE_S = 0.1
"""By how much later than its deadline a caller is told at the latest, however busy the host computes."""
POLL_S = 0.01


@dataclass(frozen=True)
class ClusterOptions:
    """How a client works."""

    threads: int = 1
    target: str = "cpu"
    """What the host's own part runs on."""
    timeout_s: float = 10.0
    """Of a request that is given none."""
    start_timeout_s: float = 10.0
    """How long to wait for the workers."""
    queue: int = 64
    """Requests at a time; more have to wait, or are dropped (`offer`)."""
    host: str = ""
    """The client's name among the devices, for a bundle that is not split; default: the first of the addresses."""
    host_works: bool = True
    """Whether the host runs whole models: beside the others with `whole`, and else when a device is lost."""
    require_all: bool = True
    """Whether it is an error at the start that a worker is not there."""
    trace: bool = False
    """Whether the devices note what they do when (`Cluster.traces`)."""
    access: Mapping[str, Any] = field(default_factory=dict)
    """Settings of certificates and rights; see `access.py`."""
    discover: bool = False
    """Whether workers without an address are looked for by multicast."""


class Cluster:
    """Several devices as one network. Use as a context manager, or call `close`; all methods may be called from any
    thread."""

    def __init__(
        self,
        folder: str | Path,
        addresses: Mapping[str, str],
        *,
        whole: bool = False,
        options: ClusterOptions = ClusterOptions(),
    ) -> None:
        """Connect to the workers of a bundle and wait until they are ready.

        `addresses`: device -> where its worker listens, such as tcp/192.168.0.11:7447; the host needs none, and with
        `ClusterOptions.discover` an empty one means that the worker is to be found. `whole`:
        every device runs the whole model, each on other inputs, instead of its part. InputError if the bundle or an
        address is at fault, or a worker is not there in time, with what each of them said.
        """
        self.options = options
        bundle = open_bundle(Path(folder))
        host, workers, needed = _devices(bundle, addresses, options.host, whole=whole)
        known = [name for name in workers if addresses[name] or not options.discover]
        self._endpoints = {name: check_endpoint(addresses[name], where=name) for name in known}
        split = bundle.has(PARTITION) and not whole
        open_model = opener(options.target, options.threads)
        holds_whole = options.host_works or whole
        served = serve_as_host(bundle, host, open_model, workers, split=split, whole=holds_whole)
        self._specs = _inputs(bundle)
        self._numbers, self._lock = 0, threading.Lock()
        self._room = threading.BoundedSemaphore(options.queue)
        self._served = served
        address = f"{host}/{secrets.token_hex(8)}"
        peers = frozenset(map(worker_address, workers))
        network = Network((), tuple(self._endpoints.values()), options.access, options.discover)
        self._node = Node(address, network, peers=peers, admits=lambda peer: peer in peers)
        self._conductor = Conductor(self._node, Team(served, workers, needed, whole, options.host_works, options.trace))
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the workers alone and free the models; requests that are not answered fail."""
        self._conductor.close()
        self._node.close()
        self._served.close()

    @property
    def host(self) -> str:
        """This device."""
        return self._served.host

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self._specs)

    @property
    def stats(self) -> ClusterStats:
        """What all requests cost so far."""
        return self._conductor.stats()

    def settled_stats(self, wait_s: float = 0.5) -> ClusterStats:
        """`stats`, once the workers have told what they computed of the answered requests, or `wait_s` have passed."""
        until = time.monotonic() + wait_s
        while not self._conductor.is_settled and time.monotonic() < until:
            time.sleep(POLL_S)
        return self.stats

    @property
    def traces(self) -> list[Trace]:
        """Which device did what when, in the latest requests that the split network answered, in order."""
        return self._conductor.traces()

    @property
    def capacity(self) -> int:
        """Requests at a time that keep all devices busy: what they work on, and as many again that wait here, so that
        none need wait until its answer was read and the next input submitted."""
        return 2 * SLOTS * max(1, self._conductor.working)

    @property
    def faults(self) -> list[str]:
        """A sentence for every worker that is not ready now; empty when all is well."""
        return self._conductor.faults()

    def run(self, feeds: Feeds, *, timeout_s: float | None = None) -> Outputs:
        """Outputs of one inference by name, within `timeout_s`.

        InputError if an input is missing, unknown, or of a wrong shape or type; ClusterError (LateError when the time
        is over) if no device could answer. A lost device is no error as long as another way is left. Outputs may be
        read-only.
        """
        return self.submit(feeds, timeout_s=timeout_s).result()

    def stream(
        self, inputs: Iterable[Feeds], *, in_flight: int = 2, timeout_s: float | None = None
    ) -> Iterator[Outputs]:
        """Outputs of many inferences in order, up to `in_flight` at a time: while one device works on an input, others
        work on the next. Errors as `run`, for the first input that has one."""
        if in_flight < 1:
            raise InputError(f"in_flight is {in_flight}", expected="1 or more inputs at a time")
        waiting: deque[Answer] = deque()
        for feeds in inputs:
            if len(waiting) >= in_flight:
                yield waiting.popleft().result()
            waiting.append(self.submit(feeds, timeout_s=timeout_s))
        while waiting:
            yield waiting.popleft().result()

    def submit(self, feeds: Feeds, *, timeout_s: float | None = None) -> Answer:
        """Begin an inference; waits while the queue is full, but no longer than `timeout_s`. The inputs are not copied:
        they must not change until the answer is there. Errors as `run`, where the answer is asked for."""
        allowed = self._allowed(timeout_s)
        check_feeds(feeds, self._specs)
        start = time.monotonic()
        if not self._room.acquire(timeout=allowed):
            self._conductor.count_dropped()
            raise LateError(f"not answered within {allowed:g} s: the queue was full")
        return self._submit(feeds, start, allowed)

    def offer(self, feeds: Feeds, *, timeout_s: float | None = None) -> Answer | None:
        """As `submit`, for inputs that are worth nothing later, such as a camera's: None, and counted as dropped, if
        the queue is full."""
        allowed = self._allowed(timeout_s)
        check_feeds(feeds, self._specs)
        if not self._room.acquire(blocking=False):
            self._conductor.count_dropped()
            return None
        return self._submit(feeds, time.monotonic(), allowed)

    def _allowed(self, timeout_s: float | None) -> float:
        allowed, most = self.options.timeout_s if timeout_s is None else timeout_s, MOST_TTL_MS / 1e3
        if not allowed <= most:  # nor is it no number
            raise InputError(f"timeout_s is {allowed:g}", expected=f"seconds, at most {most:g}")
        return max(0.0, allowed)

    def _submit(self, feeds: Feeds, start: float, allowed: float) -> Answer:
        with self._lock:
            self._numbers += 1
            pending = Pending(self._numbers, feeds, start, start + allowed)
        pending.future.set_running_or_notify_cancel()  # no device can be told that nobody wants the answer any more
        pending.future.add_done_callback(lambda _: self._room.release())
        self._conductor.submit(pending)
        return Answer(pending.future, pending.deadline, allowed)

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + self.options.start_timeout_s
        while (faults := self.faults) and time.monotonic() < until and not self._conductor.is_refused:
            time.sleep(POLL_S)
        if not faults or not self.options.require_all:
            return
        if self._conductor.is_refused:  # its reason says what to do
            raise InputError(f"not all devices are ready: {'; '.join(faults)}")
        faults += [
            f"{name}'s address {endpoint}: {probed(endpoint)}"
            for name, endpoint in self._endpoints.items()
            if not self._node.is_alive(worker_address(name))
        ]
        raise InputError(
            f"not all devices are ready: {'; '.join(faults)}",
            expected=f"a worker for each within {self.options.start_timeout_s:g} s",
            remedy="start `edgeprune worker --name NAME --listen ADDRESS` on each, with this bundle or after "
            "`edgeprune deploy`" + " and with --discover" * self.options.discover,
        )


@dataclass(frozen=True)
class Answer:
    """The outputs of an inference, when they are there."""

    future: Future[Outputs]
    deadline: float
    allowed_s: float

    def result(self) -> Outputs:
        """Wait for the outputs; errors as `Cluster.run`."""
        try:
            return self.future.result(timeout=max(0.0, self.deadline - time.monotonic()) + GRACE_S)
        except FutureTimeoutError:
            raise LateError(f"not answered within {self.allowed_s:g} s: the host is busy") from None


def _devices(
    bundle: Bundle, addresses: Mapping[str, str], host: str, *, whole: bool
) -> tuple[str, tuple[str, ...], frozenset[str]]:
    """The host, the workers, and those of them that are needed. InputError if one of these has no address."""
    if not bundle.has(PARTITION):
        if not whole:
            raise InputError(
                "is not split", where=bundle.folder, expected="a split bundle",
                remedy="split it (`edgeprune split`), or run whole models on every device (`--for throughput`)",
            )  # fmt: skip
        host = host or next(iter(addresses), "host")
        workers = tuple(name for name in addresses if name != host)
        return host, workers, frozenset(workers)
    entries = read_partition(bundle).devices
    host = entries[0].name
    if whole:
        workers = tuple(name for name in addresses if name != host)
        return host, workers, frozenset(workers)
    needed = tuple(entry.name for entry in entries[1:] if entry.subgraphs)
    if missing := [name for name in needed if name not in addresses]:
        raise InputError(
            f"the bundle is split over {len(entries)} devices, and {', '.join(missing)} has no address",
            where=bundle.folder,
            expected=f"addresses of {', '.join(needed)}",
            remedy="give each an `address` in the devices file, have it found (--discover), or split the network for "
            "the devices that there are",
        )
    return host, needed, frozenset(needed)


def _inputs(bundle: Bundle) -> tuple[TensorSpec, ...]:
    if bundle.has(PARTITION):
        return tuple(TensorSpec(info.name, info.shape, info.dtype) for info in read_partition(bundle).inputs)
    return input_specs(load_model(bundle.path(MODEL), require_conv=False))
