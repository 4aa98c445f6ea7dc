"""Who may talk to whom, with real certificates: the devices of the file, each in its own name, and nobody else."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.cluster.client import Cluster, ClusterOptions
from edgeprune.cluster.roster import Roster, load_roster, warning_of
from edgeprune.cluster.starting import WorkerStart, deploy_bundle, worker_options
from edgeprune.cluster.transport.access import rights
from edgeprune.cluster.transport.messages import Refusal
from edgeprune.cluster.transport.network import Network
from edgeprune.cluster.transport.node import Node
from edgeprune.cluster.worker import Worker
from edgeprune.errors import InputError

TLS = '[tls]\nca = "ca.pem"\ncertificate = "{name}.pem"\nkey = "{name}-key.pem"\n'


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def devices_text(**addresses: str) -> str:
    tables = [f'[[device]]\nname = "{name}"\n' + f'address = "{end}"\n' * bool(end) for name, end in addresses.items()]
    return "".join(tables)


@dataclass
class Shelf:
    """Two workers with certificates."""

    file: Path
    roster: Roster
    workers: dict[str, Worker]


@pytest.fixture(scope="module")
def shelf(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    one, two = free_ports(2)
    file = certificates / "shelf.toml"
    file.write_text(TLS + devices_text(host="", one=f"tls/127.0.0.1:{one}", two=f"tls/127.0.0.1:{two}"))
    roster = load_roster(file)
    store = tmp_path_factory.mktemp("store")
    workers = {
        name: Worker(worker_options(WorkerStart(name, roster.addresses[name], devices=file, store=store / name)))
        for name in ("one", "two")
    }
    threads = [threading.Thread(target=worker.run) for worker in workers.values()]
    for thread in threads:
        thread.start()
    yield Shelf(file, roster, workers)
    for worker in workers.values():
        worker.stop()
    for thread in threads:
        thread.join()


def test_devices_with_certificates_are_deployed_to_and_run(shelf: Shelf, chain_bundle: Path, of_chain: Any) -> None:
    deployed = deploy_bundle(chain_bundle, shelf.file, whole=False)
    assert [(one.device, one.files) for one in deployed] == [
        ("one", ("one/stage_01.onnx", "partition.json")),
        ("two", ("partition.json", "two/stage_02.onnx")),
    ]
    options = ClusterOptions(start_timeout_s=30.0, access=shelf.roster.access_of("host"))
    with Cluster(chain_bundle, shelf.roster.addresses, options=options) as cluster:
        for number in range(20):
            of_chain.check(number, cluster.run(of_chain.feeds(number), timeout_s=20.0))
        assert cluster.stats.repeated == 0


def test_a_peer_without_rights_gets_nothing_and_is_logged(
    shelf: Shelf, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its certificate is good, but its name is not in the file; it pretends to be the host, and listens to all."""
    stranger = replace(shelf.roster, names=("mallory",)).access_of("mallory")
    open_door = {key: value for key, value in stranger.items() if key != "access_control"}
    ends = (shelf.roster.addresses["one"],)
    overheard: list[str] = []
    with (
        caplog.at_level(logging.WARNING, "edgeprune.cluster"),
        Node("host/abc", Network((), ends, open_door), peers=["one/worker"]) as mallory,
        Node("host/def", Network((), ends, shelf.roster.access_of("host")), peers=["one/worker"]) as host,
    ):
        mallory._session.declare_subscriber("edgeprune/**", lambda sample: overheard.append(str(sample.key_expr)))
        until = time.monotonic() + 30
        while time.monotonic() < until and not ("mallory connected" in caplog.text and host.is_alive("one/worker")):
            mallory.send("one/worker", Refusal("an attempt"))
            time.sleep(0.05)
        assert host.is_alive("one/worker")
        assert "mallory connected from tls/127.0.0.1" in caplog.text
        assert "is not admitted" in caplog.text
        time.sleep(0.7)  # more than a heartbeat
        assert not mallory.is_alive("one/worker")
        assert not [key for key in overheard if not key.endswith("/host/abc")]  # but for what it said itself
    assert "an attempt" not in caplog.text


def test_a_certificate_of_another_authority_does_not_connect_and_is_logged(certificates: Path, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    file, evil = certificates / "alone.toml", certificates / "evil.toml"
    text = TLS + devices_text(host="", one=f"tls/127.0.0.1:{port}")
    file.write_text(text)
    evil.write_text(text.replace("{name}", "evil"))
    roster = load_roster(evil)
    command = [sys.executable, "-m", "edgeprune", "worker", "--name", "one", "--devices", str(file), "--listen"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    with subprocess.Popen(
        [*command, roster.addresses["one"]],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as worker:
        try:
            ends = tuple(roster.addresses.values())
            with Node("host/abc", Network((), ends, roster.access_of("host")), peers=["one/worker"]) as node:
                assert worker.stdout is not None
                assert "invalid peer certificate" in worker.stdout.readline()
                assert not node.is_alive("one/worker")
        finally:
            worker.terminate()
    assert worker.returncode == 0


def test_nothing_is_allowed_that_is_not_listed() -> None:
    access = rights("one", ["host", "two"])["access_control"]
    assert (access["enabled"], access["default_permission"]) == (True, "deny")
    assert {rule["permission"] for rule in access["rules"]} == {"allow"}
    taken = {
        key
        for rule in access["rules"]
        if rule["flows"] == ["ingress"] and "put" in rule["messages"]
        for key in rule["key_exprs"]
    }
    assert taken == {f"edgeprune/one/*/{name}/*" for name in ("host", "one", "two")}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (devices_text(host="", one="tls/127.0.0.1:7447"), "addresses with TLS, but no certificates"),
        (TLS + devices_text(host="", one="tcp/127.0.0.1:7447"), "has .tls., but addresses without it"),
        (devices_text(host="", one="127.0.0.1"), "'127.0.0.1' is no address"),
        (devices_text(host="", one="tcp/a:7447", two="tcp/a:7447"), "two devices have the same address"),
        (devices_text(host="") * 2, "two devices are named 'host'"),
        ('[tls]\nca = "ca.pem"\n' + devices_text(host=""), "is not a list of devices"),
    ],
)
def test_what_is_wrong_in_a_devices_file_is_said(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "devices.toml").write_text(text)
    with pytest.raises(InputError, match=reason):
        load_roster(tmp_path / "devices.toml")


def test_missing_certificates_and_unknown_names_are_said(tmp_path: Path) -> None:
    (tmp_path / "devices.toml").write_text(TLS + devices_text(host="", one="tls/127.0.0.1:7447"))
    with pytest.raises(InputError, match=r"one\.pem: no such file|ca\.pem: no such file"):
        worker_options(WorkerStart("one", "tls/127.0.0.1:7447", devices=tmp_path / "devices.toml"))
    with pytest.raises(InputError, match="unknown device 'three'"):
        worker_options(WorkerStart("three", "tls/127.0.0.1:7447", devices=tmp_path / "devices.toml"))
    with pytest.raises(InputError, match="'nowhere' is no address"):
        worker_options(WorkerStart("one", "nowhere"))


def test_who_listens_to_everyone_is_told() -> None:
    assert warning_of(Network(("tcp/127.0.0.1:7447",))) == warning_of(Network(("tcp/[::1]:7447",))) == ""
    assert "open to everyone" in warning_of(Network(("tcp/0.0.0.0:7447",)))
    assert warning_of(Network(("tls/0.0.0.0:7447",), (), {"access_control": {}})) == ""
