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
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.cluster.transport.frames import array_of
from edgeprune.cluster.transport.messages import Attempt, Tensor
from edgeprune.cluster.transport.network import Network, import_zenoh, open_session
from edgeprune.cluster.transport.node import Node
from edgeprune.cluster.transport.peers import Came
from edgeprune.io.arrays import Array

SIZES = {"64 KB": 2**16, "1 MB": 2**20}
ROUNDS = 10
BUNDLE = "0" * 64


def tensor(array: Array, number: int) -> Tensor:
    return Tensor(BUNDLE, Attempt("ab", number, 1), "split", 0, "x", array.dtype.name, array.shape, 10_000)


def serve(engine: str, bare: str) -> None:
    """The other process: sends back what comes, until its input ends."""
    zenoh = import_zenoh()
    session: Any = open_session(Network((bare,)))
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    block = {"congestion_control": zenoh.CongestionControl.BLOCK, "express": True}
    answer, inside = (session.declare_publisher(f"back/{way}", **block) for way in ("there", "inside"))
    session.declare_subscriber("bare/there", lambda sample: inbox.put(sample.payload.to_bytes()))
    session.declare_subscriber("bare/inside", lambda sample: inside.put(sample.payload.to_bytes()))
    node = Node("there/worker", Network((engine,)))

    def echo() -> None:
        while True:
            answer.put(inbox.get())

    def echo_tensors() -> None:
        while True:
            event = node.get(1.0)
            if isinstance(event, Came) and isinstance(event.frame.message, Tensor):
                array = array_of(event.frame)
                node.send(event.peer, tensor(array, event.frame.message.attempt.request), array)

    for run in (echo, echo_tensors):
        threading.Thread(target=run, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()
    node.close()
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


def engine_exchange(address: str) -> tuple[Callable[[Array], Array], Callable[[], None]]:
    """An exchange of a tensor by the engine's nodes."""
    node = Node("here/ab", Network((), (address,)), peers=["there/worker"])
    numbers = iter(range(1, 10**9))

    def exchange(array: Array) -> Array:
        node.send("there/worker", tensor(array, next(numbers)), array)
        while True:
            event = node.get(20.0)
            if isinstance(event, Came):
                return array_of(event.frame)

    until = time.monotonic() + 20
    while not node.is_alive("there/worker") and time.monotonic() < until:
        time.sleep(0.01)
    return exchange, node.close


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
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        engine, bare = (f"tcp/127.0.0.1:{s.getsockname()[1]}" for s in (one, other))
    command = [sys.executable, __file__, "--serve", engine, bare]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server,
        contextlib.ExitStack() as stack,
    ):
        assert server.stdout is not None
        server.stdout.readline()
        stack.callback(server.kill)
        ways = {
            "engine": engine_exchange(engine),
            "bare": bare_exchange(bare, "there"),
            "inside": bare_exchange(bare, "inside"),
        }
        for _, close in ways.values():
            stack.callback(close)
        found = {}
        for name, size in SIZES.items():
            array = np.random.default_rng(0).standard_normal(size // 4).astype(np.float32)
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(ROUNDS):
                for way, (exchange, _) in ways.items():
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
    parser.add_argument("--serve", nargs=2)
    given = parser.parse_args()
    if given.serve:
        serve(*given.serve)
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
