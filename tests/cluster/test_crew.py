"""A device's two threads: what comes is heard while the device computes, and nothing runs twice or at once."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from edgeprune.cluster.crew import Crew
from edgeprune.cluster.engine import Engine, Job
from edgeprune.cluster.flow import Progress, whole_flow
from edgeprune.cluster.serving import Served
from edgeprune.cluster.transport.messages import Attempt
from edgeprune.io.arrays import Array, Feeds
from edgeprune.onnx_files.graph import TensorSpec

WAIT_S = 20.0
FLOW = whole_flow("pi", "pi", "pi", (TensorSpec("x", (1,), "float32"),), ("y",), "m.onnx")


class Slow:
    """Doubles its input once it is let, and notes how many run at a time."""

    def __init__(self) -> None:
        self.started, self.may_end = threading.Semaphore(0), threading.Semaphore(0)
        self.running, self.most = 0, 0

    def run(self, feeds: Feeds) -> dict[str, Array]:
        self.running += 1
        self.most = max(self.most, self.running)
        self.started.release()
        assert self.may_end.acquire(timeout=WAIT_S)
        self.running -= 1
        return {"y": 2 * feeds["x"]}

    def close(self) -> None:
        pass


class Device:
    """A crew whose events are functions to call."""

    def __init__(self) -> None:
        self.model = Slow()
        self.served = Served("0" * 64, "pi", "pi", {"whole:pi": FLOW}, {"m.onnx": self.model})  # type: ignore[dict-item]
        self.results: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self.engine = Engine(
            lambda to, message, array: None,
            lambda job: self.results.put((job.attempt.request, float(job.progress.results["y"][0]))),
            lambda job, reason: self.results.put((job.attempt.request, reason)),
        )
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.tended = threading.Event()
        self.crew = Crew("test", self.engine, self.get, lambda event: event(), self.tended.set, poll_s=0.01)

    def get(self, timeout: float) -> Any:
        try:
            return self.events.get(timeout=timeout) if timeout else self.events.get_nowait()
        except queue.Empty:
            return None

    def ask(self, request: int, number: int = 1) -> None:
        job = Job(
            Attempt("ab", request, number), self.served, "whole:pi", "pi/ab", Progress(FLOW), time.monotonic() + 60
        )
        self.events.put(lambda: self.engine.start(job, {"x": np.asarray([request], np.float32)}))

    def heard(self) -> threading.Event:
        """Set once an event of now was handled."""
        done = threading.Event()
        self.events.put(done.set)
        return done


@contextmanager
def started() -> Iterator[Device]:
    device = Device()
    device.crew.start()
    try:
        yield device
    finally:
        for _ in range(10):
            device.model.may_end.release()
        device.crew.close()


def test_what_comes_is_handled_while_the_device_computes() -> None:
    with started() as device:
        device.ask(1)
        assert device.model.started.acquire(timeout=WAIT_S)
        assert device.heard().wait(WAIT_S)
        device.tended.clear()
        assert device.tended.wait(WAIT_S)
        assert device.results.empty()
        device.model.may_end.release()
        assert device.results.get(timeout=WAIT_S) == (1, 2.0)


def test_one_computation_at_a_time_in_the_order_of_requests() -> None:
    with started() as device:
        for request in range(1, 6):
            device.ask(request)
        for request in range(1, 6):
            assert device.model.started.acquire(timeout=WAIT_S)
            assert device.heard().wait(WAIT_S)  # nothing else starts meanwhile
            device.model.may_end.release()
            assert device.results.get(timeout=WAIT_S) == (request, 2.0 * request)
        assert device.model.most == 1


def test_what_was_computed_for_an_attempt_that_was_given_up_is_dropped() -> None:
    with started() as device:
        device.ask(1)
        assert device.model.started.acquire(timeout=WAIT_S)
        device.ask(1, number=2)
        assert device.heard().wait(WAIT_S)
        device.model.may_end.release(2)
        assert device.results.get(timeout=WAIT_S) == (1, 2.0)
        with pytest.raises(queue.Empty):
            device.results.get(timeout=0.2)
        assert device.engine.jobs == {}


def test_an_event_that_cannot_be_handled_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with started() as device:
        device.events.put(lambda: 1 / 0)
        device.ask(3)
        device.model.may_end.release()
        assert device.results.get(timeout=WAIT_S) == (3, 6.0)
    assert "ZeroDivisionError" in caplog.text


def test_who_is_called_back_cannot_wait_for_the_end(caplog: pytest.LogCaptureFixture) -> None:
    with started() as device:
        device.events.put(device.crew.close)
        assert device.heard().wait(WAIT_S)
    assert "close it in another thread" in caplog.text


def test_closing_waits_for_what_is_computed() -> None:
    with started() as device:
        device.ask(1)
        assert device.model.started.acquire(timeout=WAIT_S)
        threading.Timer(0.2, device.model.may_end.release).start()
        device.crew.close()
        assert device.model.running == 0
