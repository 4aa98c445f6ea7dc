"""A worker and a client on two sides of a link of a known rate, each in a network namespace of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import example_modules
import pytest
from places import BENCHMARKS

from edgeprune.partitioning.manifest import load_manifest
from edgeprune.pipeline.output import Output
from edgeprune.pipeline.split import SplitOptions, split

namespaces = example_modules.load(BENCHMARKS, "network_namespaces")
CLIENT = Path(__file__).with_name("steady_client.py")
TOLERANCE = 1e-5
"""Of the range of the outputs."""
LOST_S = 3.0
"""By when a peer beyond a link that was cut is lost: 1.5 s of silence, and as much for a busy machine."""
FOUND_S = 12.0
"""By when a worker that was found is found again: 8 s between two questions, and more for a busy machine."""
END = f"tcp/{namespaces.ENDS[1]}:7447"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two devices that send each other 128 KB an inference."""
    folder = tmp_path_factory.mktemp("rows")
    example_modules.load(BENCHMARKS, "cluster_faults").write_network(folder / "rows.onnx", 64, 32)
    split(folder / "rows.onnx", SplitOptions("2", force=True), Output(folder / "split"))
    return folder / "split"


@contextlib.contextmanager
def linked(rate: str) -> Iterator[Any]:
    """The pair of namespaces; the test is skipped, with the reason, where this machine does not allow it."""
    with contextlib.ExitStack() as stack:
        try:
            pair = stack.enter_context(namespaces.namespaces(rate))
        except namespaces.NamespaceError as error:
            pytest.skip(f"no network namespaces here: {error}")
        yield pair


@contextlib.contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended in any case."""
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            yield process
        finally:
            process.kill()


@dataclass
class Client:
    """The client in the first namespace."""

    process: subprocess.Popen[str]

    def next(self) -> dict[str, Any]:
        """What became of the next request."""
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            return dict(json.loads(line))
        assert self.process.stderr is not None
        raise AssertionError(self.process.stderr.read())

    def until(self, field: str, is_true: bool, timeout_s: float = 30.0) -> list[dict[str, Any]]:
        """The requests up to the first one where a field is filled, or is empty."""
        rows, end = [self.next()], time.monotonic() + timeout_s
        while bool(rows[-1][field]) != is_true:
            assert time.monotonic() < end, rows[-1]
            rows.append(self.next())
        return rows


@contextlib.contextmanager
def clients(pair: Any, bundle: Path, *, discover: bool = False, **options: Any) -> Iterator[Client]:
    """A worker on the far side of the link, and a client on this one, which with `discover` has to find it."""
    python = (sys.executable, "-m", "edgeprune")
    worker = (*python, "worker", "--name", "device1", "--listen", END, "--bundle", str(bundle), "--quiet")
    addresses, asked = {"device1": "" if discover else END}, {"start_timeout_s": 60.0, "discover": discover, **options}
    script = (sys.executable, str(CLIENT), str(bundle), json.dumps(addresses), json.dumps(asked))
    with (
        started(*pair.inside(1), *worker, *["--discover"] * discover),
        started(*pair.inside(0), *script) as process,
    ):
        yield Client(process)


@pytest.mark.parametrize(("rate", "bits_per_s"), [("1gbit", 1e9), ("100mbit", 1e8)], ids=["1gbit", "100mbit"])
def test_over_a_link_the_split_network_computes_what_the_whole_one_does(
    bundle: Path, rate: str, bits_per_s: float
) -> None:
    with linked(rate) as pair, clients(pair, bundle, timeout_s=20.0) as client:
        rows = [client.next() for _ in range(30)]
    assert max(row["off_by"] for row in rows) <= TOLERANCE
    assert not any(row["failed"] or row["tried_again"] for row in rows)
    assert rows[-1]["ms_of_worker"] > 0
    # The link is what it is said to be: what passes the other way waits for what came, and neither all at once.
    moved = [transfer.bytes for transfer in load_manifest(bundle).transfers]
    assert moved == [64 * 32 * 32 * 4 // 2] * 2
    least_s = sum(size - namespaces.burst_bytes(rate) for size in moved) * 8 / bits_per_s
    assert min(row["seconds"] for row in rows) > least_s


def test_when_the_link_is_cut_the_host_answers_until_it_is_up_again(bundle: Path) -> None:
    with linked("1gbit") as pair, clients(pair, bundle, timeout_s=20.0) as client:
        before = [client.next() for _ in range(10)]
        assert not any(row["tried_again"] or row["faults"] for row in before)
        pair.set_link("down")
        cut = client.until("faults", True) + [client.next() for _ in range(20)]
        pair.set_link("up")
        mended = client.until("faults", False)
        after = [client.next() for _ in range(10)]
    rows = before + cut + mended + after
    assert not any(row["failed"] for row in rows)
    assert max(row["off_by"] for row in rows) <= TOLERANCE
    assert cut[-1]["tried_again"] == 1  # the request that was under way; later ones go the other way at once
    assert max(row["seconds"] for row in rows) < LOST_S
    assert "device1 was not heard for 1.5 s" in cut[-1]["faults"] or "device1 is gone" in cut[-1]["faults"]
    assert cut[-1]["ms_of_worker"] == cut[-10]["ms_of_worker"]
    assert after[-1]["ms_of_worker"] > after[0]["ms_of_worker"]


def test_without_another_way_requests_over_a_cut_link_fail_in_their_time(bundle: Path) -> None:
    """The first ones at their deadline, those after the worker is lost at once; and the link's return mends all."""
    timeout_s = 0.5
    with linked("100mbit") as pair, clients(pair, bundle, timeout_s=timeout_s, host_works=False) as client:
        assert not client.next()["failed"]
        pair.set_link("down")
        cut = client.until("faults", True) + [client.next() for _ in range(5)]
        pair.set_link("up")
        mended = client.until("failed", False)
        after = [client.next() for _ in range(5)]
    rows = cut + mended + after
    late = [row for row in rows if "not answered within 0.5 s" in row["failed"]]
    assert 1 <= len(late) <= LOST_S / timeout_s
    assert "device1" in cut[-1]["failed"]
    assert max(row["seconds"] for row in rows) < timeout_s + 0.5
    assert max(row["off_by"] for row in rows) <= TOLERANCE
    assert not any(row["failed"] for row in after)


def test_a_worker_is_found_over_the_link_and_again_after_it_was_cut(bundle: Path) -> None:
    """By multicast, without an address. Who is lost is asked for every 8 s at the latest."""
    with linked("1gbit") as pair, clients(pair, bundle, discover=True, timeout_s=20.0) as client:
        before = [client.next() for _ in range(10)]
        assert not any(row["failed"] or row["tried_again"] or row["faults"] for row in before)
        pair.set_link("down")
        cut = client.until("faults", True)
        pair.set_link("up")
        start = time.monotonic()
        mended = client.until("faults", False)
        assert time.monotonic() - start < FOUND_S
        after = [client.next() for _ in range(10)]
    rows = before + cut + mended + after
    assert not any(row["failed"] for row in rows)
    assert max(row["off_by"] for row in rows) <= TOLERANCE
    assert after[-1]["ms_of_worker"] > after[0]["ms_of_worker"]
