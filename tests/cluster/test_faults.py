"""Workers that die, hang and come back: never a wrong result, and every request is answered or fails in time."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgeprune.cluster.client import Cluster, ClusterOptions
from edgeprune.cluster.local import LocalWorkers
from edgeprune.cluster.requests import ClusterError, LateError
from edgeprune.cluster.serving import opener
from edgeprune.cluster.transport.network import Network, free_addresses
from edgeprune.cluster.worker import Worker, WorkerOptions
from edgeprune.errors import InputError

RESUMES_S = 2.0
"""What is promised: so long after a worker died, requests are answered again."""
SLACK_S = 1.0
"""For a machine whose cores are taken."""


def freeze(pid: int) -> None:
    """Stop a process; its threads go on until the one that is given the signal gets a core, which may take a while."""
    os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + 60
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED and time.monotonic() < until:
        time.sleep(0.001)


def ready_again(cluster: Cluster) -> None:
    until = time.monotonic() + 60
    while cluster.faults and time.monotonic() < until:
        time.sleep(0.02)
    assert not cluster.faults


def run_through(cluster: Cluster, expected: Any, numbers: range, timeout_s: float) -> list[float]:
    """Run and check; the seconds that each took. A request that fails has to do so in time."""
    seconds = []
    for number in numbers:
        start = time.monotonic()
        outputs = cluster.run(expected.feeds(number), timeout_s=timeout_s)
        seconds.append(time.monotonic() - start)
        expected.check(number, outputs)
    return seconds


def test_a_killed_worker_costs_one_repetition_and_is_used_again(
    chain: tuple[LocalWorkers, Cluster], of_chain: Any
) -> None:
    workers, cluster = chain
    run_through(cluster, of_chain, range(100), 10.0)
    assert cluster.stats.repeated == 0
    workers.processes["one"].kill()
    seconds = run_through(cluster, of_chain, range(100, 200), 10.0)
    assert max(seconds) < RESUMES_S + SLACK_S
    assert cluster.stats.answered == 200
    assert cluster.stats.failed == 0
    assert any("one" in fault for fault in cluster.faults)
    workers.start("one")
    ready_again(cluster)
    before = cluster.settled_stats().compute_ms["one"]
    run_through(cluster, of_chain, range(200, 220), 10.0)
    assert cluster.settled_stats(5.0).compute_ms["one"] > before


def test_a_frozen_worker_costs_one_repetition_and_is_used_again(
    chain: tuple[LocalWorkers, Cluster], of_chain: Any
) -> None:
    workers, cluster = chain
    run_through(cluster, of_chain, range(20), 10.0)
    frozen = workers.processes["two"].pid
    freeze(frozen)
    try:
        seconds = run_through(cluster, of_chain, range(20, 120), 10.0)
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert max(seconds) < RESUMES_S + SLACK_S
    assert (cluster.stats.answered, cluster.stats.failed) == (120, 0)
    ready_again(cluster)
    run_through(cluster, of_chain, range(120, 140), 10.0)
    assert cluster.stats.answered == 140


def test_requests_that_were_on_their_way_are_answered_too(chain: tuple[LocalWorkers, Cluster], of_chain: Any) -> None:
    workers, cluster = chain
    answers = [cluster.submit(of_chain.feeds(number)) for number in range(20)]
    workers.processes["one"].kill()
    answers += [cluster.submit(of_chain.feeds(number)) for number in range(20, 40)]
    for number, one in enumerate(answers):
        of_chain.check(number, one.result())


def test_without_another_way_a_request_fails_in_its_time_and_says_why(chain_bundle: Path, of_chain: Any) -> None:
    options = ClusterOptions(start_timeout_s=60.0, host_works=False)
    with (
        LocalWorkers(chain_bundle, ["one", "two"]) as workers,
        Cluster(chain_bundle, workers.addresses, options=options) as cluster,
    ):
        of_chain.check(0, cluster.run(of_chain.feeds(0)))
        freeze(workers.processes["one"].pid)
        start = time.monotonic()
        with pytest.raises(LateError, match=r"not answered within 0\.3 s"):
            cluster.run(of_chain.feeds(1), timeout_s=0.3)
        assert time.monotonic() - start < 0.3 + SLACK_S
        with pytest.raises(ClusterError, match="one (was not heard|is gone)"):
            cluster.run(of_chain.feeds(1), timeout_s=10.0)
        assert time.monotonic() - start < 0.3 + RESUMES_S + SLACK_S
        os.kill(workers.processes["one"].pid, signal.SIGCONT)
        ready_again(cluster)
        of_chain.check(2, cluster.run(of_chain.feeds(2), timeout_s=10.0))
        assert cluster.stats.failed == 2


def test_whole_models_of_a_killed_worker_go_to_the_others(chain_bundle: Path, of_chain: Any) -> None:
    options = ClusterOptions(start_timeout_s=60.0, timeout_s=20.0)
    with (
        LocalWorkers(chain_bundle, ["one", "two"]) as workers,
        Cluster(chain_bundle, workers.addresses, whole=True, options=options) as cluster,
    ):
        for number, outputs in enumerate(cluster.stream((of_chain.feeds(n) for n in range(60)), in_flight=6)):
            of_chain.check(number, outputs)
            if number == 20:
                workers.processes["two"].kill()
        assert (cluster.stats.answered, cluster.stats.failed) == (60, 0)


def test_workers_that_do_not_reach_each_other_are_told_apart_from_lost_ones(
    chain_bundle: Path, of_chain: Any, tmp_path: Path
) -> None:
    """Both reach the client: the split network cannot run, and the whole one does."""
    ends = dict(zip(("one", "two"), free_addresses(2), strict=True))
    workers = [
        Worker(WorkerOptions(name, Network((end,)), opener("cpu", 1), tmp_path / name, chain_bundle))
        for name, end in ends.items()
    ]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        with pytest.raises(InputError, match=r"one does not hear two; two does not hear one"):
            Cluster(chain_bundle, ends, options=ClusterOptions(start_timeout_s=2.5))
        with Cluster(chain_bundle, ends, options=ClusterOptions(start_timeout_s=0.2, require_all=False)) as cluster:
            of_chain.check(1, cluster.run(of_chain.feeds(1), timeout_s=20.0))
            assert cluster.stats.repeated == 0
    finally:
        for worker, thread in zip(workers, threads, strict=True):
            worker.stop()
            thread.join()


def test_workers_end_with_their_parent_and_say_why_they_did_not_start(tmp_path: Path, chain_bundle: Path) -> None:
    with LocalWorkers(chain_bundle, ["nobody"]) as workers:
        assert workers.processes["nobody"].wait(timeout=60) == 1
        assert "unknown device 'nobody'" in workers.reasons()
    with LocalWorkers(chain_bundle, ["one"]) as workers:
        process = workers.processes["one"]
    assert process.poll() is not None
