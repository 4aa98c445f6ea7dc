"""Workers in processes of their own, over real sockets: what the whole model computes, and what they refuse."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgeprune.bundles.names import MODEL
from edgeprune.cluster.client import Cluster, ClusterOptions
from edgeprune.cluster.local import LocalWorkers
from edgeprune.cluster.requests import MOST_LATENCIES, ClusterError, LateError, Tally
from edgeprune.cluster.serving import digest_of
from edgeprune.cluster.transport.frames import encode
from edgeprune.cluster.transport.messages import Attempt, Message, Open, Opened, Refusal, Tensor
from edgeprune.cluster.transport.network import Network
from edgeprune.cluster.transport.node import Node
from edgeprune.cluster.transport.peers import Came
from edgeprune.errors import InputError

PATIENT = ClusterOptions(start_timeout_s=60.0, timeout_s=20.0)
FRAME = np.zeros((1, 8, 6, 6), np.float32)


@pytest.fixture(scope="module")
def cluster(chain_bundle: Path, lasting: LocalWorkers) -> Iterator[Cluster]:
    with Cluster(chain_bundle, lasting.addresses, options=PATIENT) as one:
        yield one


@pytest.fixture(scope="module")
def stranger(lasting: LocalWorkers) -> Iterator[Node]:
    """Someone on the network who speaks to the first worker."""
    with Node("host/abc", Network((), (lasting.addresses["one"],)), peers=["one/worker"]) as node:
        until = time.monotonic() + 60
        while not node.is_alive("one/worker") and time.monotonic() < until:
            time.sleep(0.02)
        yield node


def answer(node: Node, message: Message, payload: Any = b"") -> Message:
    node.send("one/worker", message, payload)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        event = node.get(20.0)
        if isinstance(event, Came):
            return event.frame.message
    raise AssertionError("no answer")


def tensor(digest: str, **changed: Any) -> Tensor:
    fields = {"attempt": Attempt("abc", 1, 1), "plan": "split", "stage": 1, "name": "r", "dtype": "float32"}
    return Tensor(**{"bundle": digest, **fields, "shape": (1, 8, 6, 6), "ttl_ms": 1000, **changed})


def test_a_split_network_computes_what_the_whole_one_does(cluster: Cluster, of_chain: Any) -> None:
    before = cluster.stats
    for number in range(100):
        of_chain.check(number, cluster.run(of_chain.feeds(number)))
    stats = cluster.settled_stats(10.0)
    assert (stats.answered - before.answered, stats.failed, stats.repeated) == (100, 0, 0)
    assert stats.bytes_per_inference == 4 * FRAME.nbytes  # r and a to one and from it, a to the host, c
    assert set(stats.compute_ms) == {"host", "one", "two"}
    assert stats.percentile(50) <= stats.percentile(99)


def test_many_inputs_are_answered_in_order_while_others_are_on_their_way(cluster: Cluster, of_chain: Any) -> None:
    for number, outputs in enumerate(cluster.stream((of_chain.feeds(n) for n in range(60)), in_flight=4)):
        of_chain.check(number, outputs)


def test_several_threads_get_each_their_own_results(cluster: Cluster, of_chain: Any) -> None:
    with ThreadPoolExecutor(4) as threads:
        results = threads.map(lambda number: cluster.run(of_chain.feeds(number)), range(40))
        for number, outputs in enumerate(results):
            of_chain.check(number, outputs)


def test_a_batch_goes_through(cluster: Cluster, of_chain: Any) -> None:
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 8, 6, 6)).astype(np.float32)}
    assert np.allclose(cluster.run(feeds)["y"], of_chain.runner.run(feeds)["y"], atol=1e-5)


def test_two_clients_share_the_workers(chain_bundle: Path, lasting: LocalWorkers, of_chain: Any) -> None:
    with (
        Cluster(chain_bundle, lasting.addresses, options=PATIENT) as one,
        Cluster(chain_bundle, lasting.addresses, options=PATIENT) as other,
    ):
        for number in range(20):
            of_chain.check(number, one.run(of_chain.feeds(number)))
            of_chain.check(number + 100, other.run(of_chain.feeds(number + 100)))
        assert one.stats.failed == other.stats.failed == one.stats.repeated == other.stats.repeated == 0


def test_wrong_inputs_are_said_before_anything_is_sent(cluster: Cluster) -> None:
    with pytest.raises(InputError, match="has shape"):
        cluster.run({"x": FRAME[0]})
    with pytest.raises(InputError, match="unknown input"):
        cluster.run({"z": FRAME})


def test_times_and_counts_that_make_no_sense_are_refused(cluster: Cluster, of_chain: Any) -> None:
    for timeout_s in (float("nan"), float("inf"), 1e9):
        with pytest.raises(InputError, match=r"timeout_s is .*; expected seconds, at most 3600"):
            cluster.run(of_chain.feeds(1), timeout_s=timeout_s)
    with pytest.raises(InputError, match="in_flight is 0; expected 1 or more"):
        next(cluster.stream([of_chain.feeds(1)], in_flight=0))


def test_an_answer_cannot_be_cancelled(cluster: Cluster, of_chain: Any, caplog: pytest.LogCaptureFixture) -> None:
    given = cluster.submit(of_chain.feeds(1))
    assert not given.future.cancel()
    of_chain.check(1, given.result())
    assert not caplog.records


def test_a_client_that_runs_for_days_keeps_the_latest_latencies() -> None:
    tally = Tally()
    for number in range(MOST_LATENCIES + 10):
        tally.note_latency(float(number))
    stats = tally.stats(0)
    assert (stats.answered, stats.first_ms, stats.latencies_ms[0]) == (MOST_LATENCIES + 10, 0.0, 10.0)


def test_what_comes_too_late_or_after_the_end_fails_at_once(
    chain_bundle: Path, lasting: LocalWorkers, of_chain: Any
) -> None:
    cluster = Cluster(chain_bundle, lasting.addresses, options=PATIENT)
    for timeout_s in (0.0, -1.0):
        with pytest.raises(LateError, match="not answered within 0 s"):
            cluster.run(of_chain.feeds(1), timeout_s=timeout_s)
    cluster.close()
    start = time.monotonic()
    with pytest.raises(ClusterError, match="the cluster was closed"):
        cluster.run(of_chain.feeds(1))
    assert time.monotonic() - start < 1


def test_a_foreign_bundle_is_refused(stranger: Node) -> None:
    reply = answer(stranger, tensor("f" * 64), FRAME)
    assert isinstance(reply, Refusal)
    assert "the bundle ffffffffffff is foreign to one" in reply.reason
    assert reply.attempt == Attempt("abc", 1, 1)
    reply = answer(stranger, Open("f" * 64, False))
    assert isinstance(reply, Refusal)
    assert "one has no bundle ffffffffffff" in reply.reason


@pytest.mark.parametrize(
    ("changed", "array", "reason"),
    [
        ({"stage": 9}, FRAME, "stage 9 is unknown here"),
        ({"name": "q"}, FRAME, "no step of one waits for the tensor 'q'"),
        ({"plan": "other"}, FRAME, "one has no part in the plan 'other'"),
        ({"dtype": "float64", "shape": (1, 8, 6, 3)}, FRAME, "expected float32"),
        ({"shape": (1, 4, 12, 6)}, FRAME, "expected float32"),
        ({"attempt": Attempt("abcd", 1, 1)}, FRAME, "comes from host, not from"),
    ],
)
def test_what_has_no_place_is_refused(
    stranger: Node, lasting: LocalWorkers, chain_bundle: Path, changed: dict[str, Any], array: Any, reason: str
) -> None:
    digest = digest_of(chain_bundle)
    assert answer(stranger, Open(digest, False)) == Opened(digest)
    if "attempt" in changed:  # the answer would go to the client that it speaks of
        stranger.send("one/worker", tensor(digest, **changed), array)
        until = time.monotonic() + 20
        while "refused host/abc" not in lasting.log("one").read_text() and time.monotonic() < until:
            time.sleep(0.02)
        return
    reply = answer(stranger, tensor(digest, **changed), array)
    assert isinstance(reply, Refusal)
    assert reason in reply.reason
    assert reason in lasting.log("one").read_text()


def test_mutated_frames_do_no_harm(stranger: Node, cluster: Cluster, lasting: LocalWorkers, of_chain: Any) -> None:
    """A thousand damaged frames at a worker, while others get their answers from it."""
    rng = np.random.default_rng(0)
    worker = psutil.Process(lasting.processes["one"].pid)
    good = np.frombuffer(encode(1, 1, tensor("f" * 64), FRAME), np.uint8)
    before = worker.memory_info().rss
    for number in range(1000):
        bad = good.copy()
        bad[rng.integers(0, min(len(bad), 400), 4)] = rng.integers(0, 256, 4)
        data = bad[: rng.integers(0, len(bad) + 1)].tobytes() if number % 3 else bad.tobytes()
        stranger._session.put("edgeprune/one/worker/host/bad1", data)
        if number % 50 == 0:
            of_chain.check(number, cluster.run(of_chain.feeds(number)))
    of_chain.check(7, cluster.run(of_chain.feeds(7)))
    assert lasting.processes["one"].poll() is None
    assert worker.memory_info().rss - before < 50 * 2**20
    assert cluster.stats.failed == 0


def test_whole_models_behind_one_queue(chain_bundle: Path, lasting: LocalWorkers, of_chain: Any) -> None:
    with Cluster(chain_bundle, lasting.addresses, whole=True, options=PATIENT) as cluster:
        for number, outputs in enumerate(cluster.stream((of_chain.feeds(n) for n in range(60)), in_flight=6)):
            of_chain.check(number, outputs)
        stats = cluster.settled_stats(10.0)
        assert (stats.answered, stats.failed, stats.dropped) == (60, 0, 0)
        assert {"one", "two"} <= set(stats.compute_ms)
        assert cluster.capacity == 12


def test_what_comes_while_the_queue_is_full_is_dropped_and_counted(
    chain_bundle: Path, lasting: LocalWorkers, of_chain: Any
) -> None:
    options = ClusterOptions(start_timeout_s=60.0, timeout_s=20.0, queue=3)
    with Cluster(chain_bundle, lasting.addresses, whole=True, options=options) as cluster:
        offered = [cluster.offer(of_chain.feeds(number)) for number in range(200)]
        taken = [(number, one) for number, one in enumerate(offered) if one is not None]
        for number, one in taken:
            of_chain.check(number, one.result())
        assert len(taken) + cluster.stats.dropped == 200
        assert cluster.stats.dropped > 0
        assert cluster.stats.failed == 0


def test_a_worker_that_is_not_there_is_an_error_that_names_it(chain_bundle: Path) -> None:
    addresses = {"one": "tcp/127.0.0.1:9", "two": "tcp/127.0.0.1:9"}
    with pytest.raises(InputError, match=r"one was never heard; two was never heard.*edgeprune worker"):
        Cluster(chain_bundle, addresses, options=ClusterOptions(start_timeout_s=0.5))
    with pytest.raises(InputError, match="split over 3 devices, and two has no address"):
        Cluster(chain_bundle, {"one": "tcp/127.0.0.1:9"})
    with pytest.raises(InputError, match="is no address"):
        Cluster(chain_bundle, {"one": "127.0.0.1:9", "two": "tcp/127.0.0.1:9"})


def test_a_worker_with_another_bundle_is_an_error_at_once(star_bundle: Path, lasting: LocalWorkers) -> None:
    addresses = dict(zip(("device1", "device2"), lasting.addresses.values(), strict=True))
    with pytest.raises(InputError, match=r"device1 was never heard"):
        Cluster(star_bundle, addresses, options=ClusterOptions(start_timeout_s=1.0))
    assert (star_bundle / MODEL).is_file()
