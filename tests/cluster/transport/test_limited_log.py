"""Whoever speaks to a node cannot fill its log: the first lines of a peer, then their number now and then."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprune.cluster.local import free_addresses
from edgeprune.cluster.serving import opener
from edgeprune.cluster.transport.limited_log import FIRST_LINES, MOST_PEERS, OTHERS, PERIOD_S, LimitedLog
from edgeprune.cluster.transport.network import Network, import_zenoh, open_session
from edgeprune.cluster.worker import Worker, WorkerOptions


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is written while the test runs."""
    written: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: written.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("edgeprune.cluster")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield written
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_the_first_lines_are_written_and_the_others_counted(lines: list[str]) -> None:
    clock = Clock()
    log = LimitedLog(clock)
    for number in range(FIRST_LINES + 25):
        log.warning("host/a", "refused %s: %d", "host/a", number)
    log.log(logging.INFO, "host/b", "%s is there", "host/b")
    assert len(lines) == FIRST_LINES + 1
    assert lines[-1] == "host/b is there"
    log.sum_up()
    assert len(lines) == FIRST_LINES + 1  # not yet
    clock.now = PERIOD_S
    log.sum_up()
    assert lines[FIRST_LINES + 1 :] == ["host/a: 25 more lines like these"]


def test_while_a_peer_goes_on_there_is_a_line_each_period_and_after_a_silence_its_lines_are_again(
    lines: list[str],
) -> None:
    clock = Clock()
    log = LimitedLog(clock)
    for second in range(60):
        clock.now = float(second)
        for _ in range(100):
            log.warning("host/a", "refused")
        log.sum_up()
    assert len(lines) == FIRST_LINES + 5
    counted = sum(int(line.split()[1]) for line in lines[FIRST_LINES:])
    log.sum_up(now=True)
    assert counted + int(lines[-1].split()[1]) + FIRST_LINES == 6000
    clock.now += PERIOD_S
    log.sum_up()
    log.warning("host/a", "again")
    assert lines[-1] == "again"


def test_many_names_do_not_help(lines: list[str]) -> None:
    log = LimitedLog(Clock())
    for number in range(10_000):
        log.warning(f"host/{number}", "refused")
    assert len(lines) == MOST_PEERS + FIRST_LINES
    log.sum_up(now=True)
    assert lines[-1] == f"{OTHERS}: {10_000 - MOST_PEERS - FIRST_LINES} more lines like these"


@pytest.mark.parametrize("admitted", [True, False])
def test_a_flood_of_refused_frames_leaves_some_lines(admitted: bool, tmp_path: Path, lines: list[str]) -> None:
    """Frames that are none, from someone who is admitted, and from many names that are not."""
    count = 500
    (end,) = free_addresses(1)
    options = WorkerOptions("one", Network((end,)), opener("cpu", 1), tmp_path, admits=lambda address: admitted)
    worker = Worker(options)
    thread = threading.Thread(target=worker.run)
    thread.start()
    session = open_session(Network((), (end,)))
    try:
        until = time.monotonic() + 20
        while not any("refused" in line for line in lines) and time.monotonic() < until:
            session.put("edgeprune/one/worker/host/0", b"nonsense")
            time.sleep(0.05)
        for number in range(count):
            key = f"edgeprune/one/worker/host/{0 if admitted else number}"
            session.put(key, b"nonsense", congestion_control=import_zenoh().CongestionControl.BLOCK)
        while time.monotonic() < until and hidden(worker, lines) < count - FIRST_LINES:
            time.sleep(0.05)
    finally:
        session.close()
        worker.stop()
        thread.join()
    assert sum("refused" in line for line in lines) == FIRST_LINES
    assert hidden(worker, lines) >= count - FIRST_LINES


def hidden(worker: Worker, lines: list[str]) -> int:
    """Refusals that have no line of their own."""
    told = sum(int(line.split(": ")[1].split()[0]) for line in lines if "more lines like these" in line)
    return told + sum(peer.hidden for peer in worker._node.log._peers.values())
