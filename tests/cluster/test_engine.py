"""One device's requests, without a network: attempts are never mixed, and nothing that fails ends the device."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from edgeprune.cluster.engine import MOST_JOBS, Engine, Job, RefusedError
from edgeprune.cluster.flow import Arrival, Flow, Progress, Sending, Step
from edgeprune.cluster.serving import Served
from edgeprune.cluster.transport.messages import Attempt, Tensor
from edgeprune.errors import InputError
from edgeprune.io.arrays import Array, Feeds
from edgeprune.onnx_files.graph import TensorSpec

DIGEST = "0" * 64
A, B = TensorSpec("a", (1,), "float32"), TensorSpec("b", (1,), "float32")
FLOW = Flow(
    "pi",
    (Step(0, "sum.onnx", (A, B), ("c",)),),
    {"a": Arrival("host", 0, A), "b": Arrival("host", 0, B)},
    {"c": (Sending("host", 1),)},
)


class Sum:
    """Adds a and b; refuses numbers below 0, and breaks at 99."""

    def run(self, feeds: Feeds) -> dict[str, Array]:
        a, b = feeds["a"], feeds["b"]
        if a[0] < 0:
            raise InputError("a is negative")
        if a[0] == 99:
            raise RuntimeError("a kernel broke")
        return {"c": a + b}

    def close(self) -> None:
        pass


@dataclass
class Log:
    """What an engine tells its owner."""

    sent: list[tuple[str, int, float]] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def engine(self) -> Engine:
        return Engine(
            lambda to, message, array: self.sent.append((to, message.attempt.number, float(array[0]))),
            lambda job: self.finished.append(job.attempt.number),
            lambda job, reason: self.failed.append(reason),
        )


@pytest.fixture
def log() -> Log:
    return Log()


SERVED = Served(DIGEST, "pi", "host", {"split": FLOW}, {"sum.onnx": Sum()})  # type: ignore[dict-item]


def give(engine: Engine, name: str, value: float, *, request: int = 1, number: int = 1, ttl_ms: int = 10_000) -> None:
    attempt = Attempt("ab", request, number)
    message = Tensor(DIGEST, attempt, "split", 0, name, "float32", (1,), ttl_ms)
    engine.accept(SERVED, "host", "host/ab", message, np.asarray([value], np.float32))


def run(engine: Engine) -> None:
    while work := engine.next_work():
        engine.take(work.run())


def test_a_step_runs_when_all_that_it_reads_is_there(log: Log) -> None:
    engine = log.engine()
    give(engine, "b", 2)
    run(engine)
    assert log.sent == []
    give(engine, "a", 1)
    run(engine)
    assert (log.sent, log.finished, engine.jobs) == ([("host/ab", 1, 3.0)], [1], {})


def test_tensors_of_two_attempts_never_meet(log: Log) -> None:
    engine = log.engine()
    give(engine, "a", 1, number=1)
    give(engine, "b", 20, number=2)
    run(engine)
    assert log.sent == []
    give(engine, "b", 2, number=1)  # of the attempt that was given up
    assert engine.late == 1
    give(engine, "a", 10, number=2)
    run(engine)
    assert log.sent == [("host/ab", 2, 30.0)]


def test_requests_are_kept_apart_and_the_older_one_goes_first(log: Log) -> None:
    engine = log.engine()
    for request in (1, 2):
        give(engine, "a", request, request=request)
    for request in (2, 1):
        give(engine, "b", 10 * request, request=request)
    run(engine)
    assert [value for _, _, value in log.sent] == [11.0, 22.0]


def test_a_tensor_that_comes_twice_changes_nothing(log: Log) -> None:
    engine = log.engine()
    give(engine, "a", 1)
    give(engine, "a", 7)
    give(engine, "b", 2)
    run(engine)
    assert log.sent == [("host/ab", 1, 3.0)]


def test_what_is_at_work_is_known_until_its_result_is_taken(log: Log) -> None:
    engine = log.engine()
    give(engine, "a", 1)
    give(engine, "b", 2)
    assert engine.computing is None
    work = engine.next_work()
    assert work is not None
    assert engine.computing is SERVED
    assert engine.next_work() is None
    assert engine.job_of(Attempt("ab", 1, 1)) is work.job
    assert engine.job_of(Attempt("ab", 1, 2)) is None
    engine.take(work.run())
    assert engine.computing is None


@pytest.mark.parametrize(("value", "reason"), [(-1, "a is negative"), (99, "RuntimeError: a kernel broke")])
def test_a_model_that_fails_fails_its_request_alone(log: Log, value: float, reason: str) -> None:
    engine = log.engine()
    for request, a in ((1, value), (2, 5)):
        give(engine, "a", a, request=request)
        give(engine, "b", 2, request=request)
    run(engine)
    assert [value for _, _, value in log.sent] == [7.0]
    assert len(log.failed) == 1
    assert reason in log.failed[0]


def test_what_has_no_place_is_refused(log: Log) -> None:
    engine = log.engine()
    message = Tensor(DIGEST, Attempt("ab", 1, 1), "whole", 0, "a", "float32", (1,), 1000)
    with pytest.raises(RefusedError, match="pi has no part in the plan 'whole'"):
        engine.accept(SERVED, "host", "host/ab", message, np.zeros(1, np.float32))
    with pytest.raises(RefusedError, match="waits for the tensor 'z'"):
        give(engine, "z", 1)


def test_requests_whose_time_is_over_are_given_up(log: Log) -> None:
    engine = log.engine()
    give(engine, "a", 1, ttl_ms=1000)
    engine.expire(time.monotonic() + 0.5)
    assert log.failed == []
    engine.expire(time.monotonic() + 1.5)
    assert (log.failed, engine.jobs) == (["its time is over"], {})


def test_a_device_keeps_so_many_requests_and_no_more(log: Log) -> None:
    engine = log.engine()
    for request in range(MOST_JOBS):
        give(engine, "a", 1, request=request)
    with pytest.raises(RefusedError, match=f"{MOST_JOBS} requests at work"):
        give(engine, "a", 1, request=MOST_JOBS)


def test_the_host_begins_with_the_inputs_and_ends_with_the_outputs() -> None:
    flow = Flow("host", (), {"c": Arrival("pi", 1, None)}, {"a": (Sending("pi", 0),)}, ("c",))
    served = Served(DIGEST, "host", "host", {"split": flow}, {})
    results: list[Any] = []
    sent: list[tuple[str, str]] = []
    engine = Engine(
        lambda to, message, array: sent.append((to, message.name)),
        lambda job: results.append(job.progress.results),
        lambda job, reason: results.append(reason),
    )
    job = Job(Attempt("ab", 1, 1), served, "split", "host/ab", Progress(flow), time.monotonic() + 10)
    engine.start(job, {"a": np.zeros(1, np.float32)})
    assert sent == [("pi/worker", "a")]
    message = Tensor(DIGEST, Attempt("ab", 1, 1), "split", 1, "c", "float32", (1,), 1000)
    engine.accept(served, "pi", "host/ab", message, np.ones(1, np.float32))
    assert [sorted(one) for one in results] == [["c"]]
