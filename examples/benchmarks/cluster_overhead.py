"""What the engine adds to zenoh: a tensor sent to another process and back, beside the same bytes by zenoh alone.

    python examples/benchmarks/cluster_overhead.py [--exchanges 300] [--json FILE]

All with the same settings (TCP on loopback, no shared memory, blocking), in turn, in rounds, so that what else the
machine does meets all. The engine's frames are numbered, acknowledged and checked. zenoh alone answers as a program has
to that computes between: its call back enqueues, and a thread answers; beside it stands answering in the call back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.cluster.transport.echo import Echo
from edgeprune.cluster.transport.network import Network, free_addresses, import_zenoh, open_session
from edgeprune.io.arrays import Array

SIZES = {"64 KB": 2**16, "1 MB": 2**20}
ROUNDS = 10


def serve(bare: str) -> None:
    """The other process: sends back what comes, until its input ends."""
    zenoh = import_zenoh()
    session: Any = open_session(Network((bare,)))
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    block = {"congestion_control": zenoh.CongestionControl.BLOCK, "express": True}
    answer, inside = (session.declare_publisher(f"back/{way}", **block) for way in ("there", "inside"))
    session.declare_subscriber("bare/there", lambda sample: inbox.put(sample.payload.to_bytes()))
    session.declare_subscriber("bare/inside", lambda sample: inside.put(sample.payload.to_bytes()))

    def echo() -> None:
        while True:
            answer.put(inbox.get())

    threading.Thread(target=echo, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()
    session.close()


def bare_exchange(address: str, way: str) -> tuple[Callable[[Array], Array], Callable[[], None]]:
    """An exchange by zenoh alone: an array's bytes there and back, as an array."""
    zenoh = import_zenoh()
    session: Any = open_session(Network((), (address,)))
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    session.declare_subscriber(f"back/{way}", lambda sample: inbox.put(sample.payload.to_bytes()))
    there = session.declare_publisher(f"bare/{way}", congestion_control=zenoh.CongestionControl.BLOCK, express=True)

    def exchange(array: Array) -> Array:
        there.put(array.tobytes())
        return np.frombuffer(inbox.get(timeout=20), array.dtype)

    until = time.monotonic() + 20
    while time.monotonic() < until:  # until both know of each other
        there.put(b"0" * 8)
        try:
            inbox.get(timeout=0.1)
            break
        except queue.Empty:
            continue
    return exchange, session.close


def measure(exchange: Callable[[Array], Array], array: Array, count: int) -> list[float]:
    """Milliseconds of each exchange."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        back = exchange(array)
        times.append((time.perf_counter() - start) * 1e3)
        assert back.size == array.size
    return times


def run(exchanges: int) -> dict[str, dict[str, float]]:
    """Size -> p50 of both in ms, and their ratio."""
    [bare] = free_addresses(1)
    command = [sys.executable, __file__, "--serve", bare]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server,
        contextlib.ExitStack() as stack,
    ):
        assert server.stdout is not None
        server.stdout.readline()
        stack.callback(server.kill)
        ways: dict[str, Callable[[Array], Array]] = {"engine": stack.enter_context(Echo()).exchange}
        for way, key in (("bare", "there"), ("inside", "inside")):
            ways[way], close = bare_exchange(bare, key)
            stack.callback(close)
        found = {}
        for name, size in SIZES.items():
            array = np.random.default_rng(0).standard_normal(size // 4).astype(np.float32)
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(ROUNDS):
                for way, exchange in ways.items():
                    measure(exchange, array, 3)
                    times[way] += measure(exchange, array, max(1, exchanges // ROUNDS))
            p50 = {way: statistics.median(values) for way, values in times.items()}
            found[name] = {f"{way}_ms": value for way, value in p50.items()}
            found[name]["ratio"] = p50["engine"] / p50["bare"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exchanges", type=int, default=300)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve")
    given = parser.parse_args()
    if given.serve:
        serve(given.serve)
        return
    found = run(given.exchanges)
    for name, row in found.items():
        print(
            f"{name}: engine {row['engine_ms']:.3f} ms, zenoh alone {row['bare_ms']:.3f} ms, {row['ratio']:.2f}x "
            f"(answering in zenoh's own thread: {row['inside_ms']:.3f} ms)"
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
