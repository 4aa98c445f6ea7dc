"""What an engine adds to a link: tensors that another process of this machine sends back.

`python -m edgeprune.cluster.transport.echo` is that process. It reads where to listen from its standard input and ends
when that ends.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import IO

import numpy as np

from edgeprune.cluster.transport.frames import array_of
from edgeprune.cluster.transport.messages import Attempt, Tensor
from edgeprune.cluster.transport.network import Network, free_addresses
from edgeprune.cluster.transport.node import Node
from edgeprune.cluster.transport.peers import Came
from edgeprune.devices.figures import ExchangeCosts, Figure
from edgeprune.errors import EdgepruneError
from edgeprune.io.arrays import Array

HERE, THERE = "here/ab", "there/worker"
SMALL, LARGE = 2**12, 2**20
"""Bytes of two tensors whose times tell what a message takes, and what a byte."""
ROUNDS, EXCHANGES = 8, 10
SWEPT_FLOATS = 2**24
"""So many are read on both sides between two exchanges that are measured, as weights are by who computes: what an
engine needs is in no cache then."""
START_S, ANSWER_S = 30.0, 10.0


class Echo:
    """The other process, and the way to it. Use as a context manager."""

    def __init__(self, core: int | None = None, *, swept_floats: int = 0) -> None:
        """`core`: where the other process runs; None: anywhere. `swept_floats`: so many it reads after each answer, so
        that its caches hold nothing of the next. EdgepruneError if it does not answer, InputError if
        zenoh is not installed."""
        [address] = free_addresses(1)
        command = [sys.executable, "-m", "edgeprune.cluster.transport.echo"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)
        if core is not None:
            os.sched_setaffinity(self._process.pid, {core})
        stdin: IO[bytes] | None = self._process.stdin
        assert stdin is not None
        stdin.write(f"{address} {swept_floats}\n".encode())
        stdin.flush()
        self._stdin, self._number = stdin, 0
        self._node = Node(HERE, Network((), (address,)), peers=[THERE])
        until = time.monotonic() + START_S
        while not self._node.is_alive(THERE):
            if time.monotonic() > until or self._process.poll() is not None:
                self.close()
                raise EdgepruneError("a second process on loopback does not answer")
            time.sleep(0.01)

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._node.close()
        self._stdin.close()
        self._process.wait(timeout=ANSWER_S)

    def exchange(self, array: Array) -> Array:
        """Send a contiguous array there, and get it back."""
        self._number += 1
        self._node.send(THERE, _message(array, self._number), array)
        until = time.monotonic() + ANSWER_S
        while time.monotonic() < until:
            event = self._node.get(1.0)
            if isinstance(event, Came):
                return array_of(event.frame)
        raise EdgepruneError("a second process on loopback does not answer any more")


def exchange_costs(source: str) -> ExchangeCosts:
    """Measured here, between two processes on loopback: half of the way there and back, by engines that computed
    before. `source`: with what, and when. Errors as `Echo`."""
    arrays = {size: np.random.default_rng(0).standard_normal(size // 4).astype(np.float32) for size in (SMALL, LARGE)}
    times: dict[int, list[float]] = {size: [] for size in arrays}
    swept = np.ones(SWEPT_FLOATS, np.float32)
    with _a_core_each() as pinned, Echo(pinned, swept_floats=SWEPT_FLOATS) as echo:
        for _ in range(ROUNDS):
            for size, array in arrays.items():
                for _ in range(EXCHANGES):
                    swept.sum()  # the other side has read as much by the end of the first
                    swept.sum()
                    start = time.perf_counter()
                    echo.exchange(array)
                    times[size].append(time.perf_counter() - start)
    small, large = (statistics.median(times[size]) / 2 for size in (SMALL, LARGE))
    told = f"{SMALL // 1024} KiB and {LARGE // 2**20} MiB sent to another process on loopback and back; {source}"
    message = Figure(float(f"{small * 1e3:.4g}"), "measured", told)
    rate = (LARGE - SMALL) / max(large - small, 1e-6) / 1e9
    return ExchangeCosts(message, Figure(float(f"{rate:.4g}"), "measured", told))


@contextlib.contextmanager
def _a_core_each() -> Iterator[int | None]:
    """This thread, and those that it starts, on one core; given is another one for the other process. None, and
    nothing done, where there are not two or the system does not say."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        yield None
        return
    os.sched_setaffinity(0, {cores[0]})
    try:
        yield cores[1]
    finally:
        os.sched_setaffinity(0, cores)


def serve(address: str, swept_floats: int) -> None:
    """Send back what comes, without end; errors as `Node`."""
    swept = np.ones(swept_floats, np.float32)
    with Node(THERE, Network((address,))) as node:
        while True:
            event = node.get(1.0)
            if isinstance(event, Came) and isinstance(event.frame.message, Tensor):
                array = array_of(event.frame)
                node.send(event.peer, _message(array, event.frame.message.attempt.request), array)
                swept.sum()


def _message(array: Array, number: int) -> Tensor:
    return Tensor("0" * 64, Attempt("ab", number, 1), "split", 0, "x", array.dtype.name, array.shape, 10_000)


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    listen, floats = sys.stdin.buffer.readline().decode().split()
    threading.Thread(target=_end_with_input, daemon=True).start()
    serve(listen, int(floats))
