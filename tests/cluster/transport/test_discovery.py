"""Workers that are found instead of being told: off unless asked for, only where one listens, and with the same rights."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeprune.cluster.client import Cluster, ClusterOptions
from edgeprune.cluster.deploy import DeployOptions, deploy
from edgeprune.cluster.local import free_addresses
from edgeprune.cluster.roster import load_roster, warning_of
from edgeprune.cluster.starting import Execution, WorkerStart, worker_options
from edgeprune.cluster.transport.messages import Refusal
from edgeprune.cluster.transport.network import Network, scouted_on, settings
from edgeprune.cluster.transport.node import Node
from edgeprune.cluster.worker import Worker
from edgeprune.errors import InputError

NAMES = "".join(f'[[device]]\nname = "{name}"\n' for name in ("host", "one", "two"))
TLS = '[tls]\nca = "ca.pem"\ncertificate = "{name}.pem"\nkey = "{name}-key.pem"\n'


@pytest.fixture
def own_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that no other test asks on, and loopback alone."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        group = f"224.0.0.224:{free.getsockname()[1]}"
    monkeypatch.setattr("edgeprune.cluster.transport.network.SCOUT_GROUP", group)
    monkeypatch.setattr("edgeprune.cluster.transport.network._own_addresses", lambda: ["127.0.0.1"])


def multicast_works() -> bool:
    """Whether a datagram to a group comes back on loopback."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("", 0))
        receiver.settimeout(1.0)
        local = socket.inet_aton("127.0.0.1")
        try:
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.224") + local)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, local)
            sender.sendto(b"?", ("224.0.0.224", receiver.getsockname()[1]))
            return receiver.recv(8) == b"?"
        except OSError:
            return False


@pytest.fixture(params=["tcp", "tls"])
def devices(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A devices file without an address, with and without certificates."""
    if not multicast_works():
        pytest.skip("multicast does not work on loopback here")
    if request.param == "tcp":
        (tmp_path / "devices.toml").write_text(NAMES)
        return tmp_path / "devices.toml"
    folder: Path = request.getfixturevalue("certificates")
    (folder / "nowhere.toml").write_text(TLS + NAMES)
    return folder / "nowhere.toml"


@pytest.fixture
def workers(own_group: None, devices: Path, tmp_path: Path) -> Iterator[None]:
    """one and two, which nobody knows the addresses of."""
    kind = "tcp" if devices.parent == tmp_path else "tls"
    started = [
        Worker(
            worker_options(
                WorkerStart(name, end.replace("tcp", kind), devices=devices, store=tmp_path / name, discover=True)
            )
        )
        for name, end in zip(("one", "two"), free_addresses(2), strict=True)
    ]
    threads = [threading.Thread(target=worker.run) for worker in started]
    for thread in threads:
        thread.start()
    yield
    for worker, thread in zip(started, threads, strict=True):
        worker.stop()
        thread.join()


def test_workers_are_found_deployed_to_and_run(
    workers: None, devices: Path, chain_bundle: Path, of_chain: Any, caplog: pytest.LogCaptureFixture
) -> None:
    roster = load_roster(devices)
    assert roster.workers() == {}
    found, access = roster.workers(discover=True), roster.access_of("host")
    assert found == {"one": "", "two": ""}
    options = DeployOptions(host="host", start_timeout_s=30.0, access=access, discover=True)
    assert [one.device for one in deploy(chain_bundle, found, options)] == ["one", "two"]
    asked = ClusterOptions(start_timeout_s=30.0, timeout_s=20.0, access=access, discover=True)
    with Cluster(chain_bundle, found, options=asked) as cluster:
        for number in range(10):
            of_chain.check(number, cluster.run(of_chain.feeds(number)))
        assert (cluster.stats.repeated, cluster.faults) == (0, [])
    with (
        caplog.at_level(logging.WARNING, "edgeprune.cluster"),
        Node("mallory/abc", Network((), (), {}, discover=True), peers=["one/worker"]) as mallory,
    ):
        until = time.monotonic() + (20 if not access else 2)
        while "mallory" not in caplog.text and time.monotonic() < until:
            mallory.send("one/worker", Refusal("an attempt"))
            time.sleep(0.05)
        assert not mallory.is_alive("one/worker")
    assert ("its sender is not admitted" in caplog.text) == (not access)  # without a certificate it does not get so far
    assert "an attempt" not in caplog.text


def test_who_does_not_ask_finds_nobody_and_is_told_to(workers: None, devices: Path, chain_bundle: Path) -> None:
    roster = load_roster(devices)
    with pytest.raises(InputError, match=r"one, two has no address.*--discover"):
        Cluster(chain_bundle, roster.workers())
    with Node("host/abc", Network((), (), roster.access_of("host")), peers=["one/worker"]) as node:
        time.sleep(1.0)
        assert not node.is_alive("one/worker")


def test_nothing_is_opened_that_was_not_asked_for() -> None:
    off = settings(Network(("tcp/0.0.0.0:7447",)))
    assert {key: value for key, value in off.items() if key.startswith("scouting") and key != "scouting/delay"} == {
        "scouting/multicast/enabled": False,
        "scouting/gossip/enabled": False,
    }
    client = settings(Network((), (), discover=True))
    assert client["scouting/multicast/enabled"] is True
    assert client["scouting/multicast/listen"] is False  # it answers nobody
    assert client["listen/endpoints"] == []
    assert settings(Network(("tcp/127.0.0.1:7447",), (), discover=True))["scouting/multicast/listen"] is True


@pytest.mark.parametrize(
    ("listen", "where"),
    [
        ((), ["127.0.0.1", "192.0.2.7"]),
        (("tcp/127.0.0.1:7447",), ["127.0.0.1"]),
        (("tcp/[::1]:7447",), ["127.0.0.1"]),
        (("tls/localhost:7447",), ["127.0.0.1"]),
        (("tcp/192.0.2.7:7447",), ["192.0.2.7"]),
        (("tcp/0.0.0.0:7447",), ["127.0.0.1", "192.0.2.7"]),
        (("tcp/pi2.local:7447",), ["127.0.0.1", "192.0.2.7"]),
    ],
)
def test_a_worker_is_found_where_it_listens(
    listen: tuple[str, ...], where: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeprune.cluster.transport.network._own_addresses", lambda: ["127.0.0.1", "192.0.2.7"])
    assert scouted_on(listen) == where


def test_what_discovery_opens_is_said_and_where_it_makes_no_sense() -> None:
    assert "found by everyone in its network" in warning_of(Network(("tcp/0.0.0.0:7447",), (), discover=True))
    assert warning_of(Network(("tcp/127.0.0.1:7447",), (), discover=True)) == ""
    with pytest.raises(InputError, match="--discover is for --executor cluster"):
        Execution(discover=True).check()
