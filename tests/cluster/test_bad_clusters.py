"""What a stranger gets wrong with several devices: one line that says what, where, what was expected, and what to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprune.cli import main
from edgeprune.cluster.client import Cluster, ClusterOptions
from edgeprune.cluster.deploy import DeployOptions, deploy
from edgeprune.cluster.local import LocalWorkers, free_addresses
from edgeprune.cluster.roster import load_roster
from edgeprune.cluster.starting import WorkerStart, worker_options
from edgeprune.cluster.transport.probe import probed
from edgeprune.errors import InputError

OTHER_VERSION = """
import sys
import edgeprune.cluster.transport.frames as frames
frames.VERSION += 1
from edgeprune.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Any:
    """The error's line that a command leaves on standard error."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main([*map(str, arguments), "--quiet"]) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edgeprune: ")]
        return line

    return run


@pytest.fixture
def flags(tmp_path: Path, of_chain: Any) -> list[str]:
    np.save(tmp_path / "x.npy", of_chain.feeds(1)["x"])
    return ["--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npy"), "--executor", "cluster"]


def devices(folder: Path, **addresses: str) -> Path:
    tables = [f'[[device]]\nname = "{name}"\naddress = "{end}"\n' for name, end in addresses.items()]
    path = folder / "shelf.toml"
    path.write_text('[[device]]\nname = "host"\n' + "".join(tables))
    return path


def test_who_starts_a_worker_for_the_host_is_told_that_nobody_asks_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = devices(tmp_path, one="tcp/127.0.0.1:7447")
    worker_options(WorkerStart("one", "tcp/127.0.0.1:7447", devices=file))
    assert not caplog.records
    worker_options(WorkerStart("host", "tcp/127.0.0.1:7447", devices=file))
    assert "host is the file's first device, the host: `edgeprune run` computes its part" in caplog.text


@contextmanager
def worker_of_another_version(name: str, end: str, bundle: Path) -> Iterator[None]:
    words = [sys.executable, "-c", OTHER_VERSION, "worker", "--name", name, "--listen", end, "--bundle", str(bundle)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            while "listens on" not in process.stderr.readline():
                assert process.poll() is None
            yield
        finally:
            process.terminate()
            process.communicate()


def test_an_address_at_which_nobody_is_is_named_with_the_reason(chain_bundle: Path) -> None:
    one, two = free_addresses(2)
    ends = {"one": one, "two": two.replace("127.0.0.1", "nowhere.invalid")}
    with pytest.raises(InputError) as error:
        Cluster(chain_bundle, ends, options=ClusterOptions(start_timeout_s=0.3))
    said = str(error.value)
    assert "one was never heard; two was never heard" in said
    assert f"one's address {one}: connection refused" in said
    assert f"two's address {ends['two']}: " in said
    assert "start `edgeprune worker" in said
    with pytest.raises(InputError) as error:
        deploy(chain_bundle, ends, DeployOptions(start_timeout_s=0.3))
    assert f"one/worker: was never heard ({one}: connection refused); expected a worker within" in str(error.value)
    found = DeployOptions(start_timeout_s=0.3, discover=True)
    with pytest.raises(InputError, match="one/worker: was not found; .* with --discover"):
        deploy(chain_bundle, {"one": "", "two": ""}, found)


def test_what_a_connection_says(chain_bundle: Path) -> None:
    (end,) = free_addresses(1)
    assert probed(end) == "connection refused"
    with LocalWorkers(chain_bundle, ["one"]) as workers:
        while "connection refused" in (said := probed(workers.addresses["one"])):
            assert workers.processes["one"].poll() is None
        assert said == "something listens there, but no worker of this name and version answers"


def test_a_worker_of_another_edgeprune_is_told_from_one_that_is_not_there(
    chain_bundle: Path, flags: list[str], tmp_path: Path, refused: Any
) -> None:
    one, two = free_addresses(2)
    file = devices(tmp_path, one=one, two=two)
    with worker_of_another_version("one", one, chain_bundle):
        for command in (["run", chain_bundle, *flags], ["deploy", chain_bundle]):
            said = refused(*command, "--devices", file)
            assert "install the same edgeprune on all devices" in said
            assert "has format" in said


def test_a_worker_with_another_bundle_or_less_of_it_is_told_so(
    chain_bundle: Path, star_bundle: Path, flags: list[str], tmp_path: Path, refused: Any
) -> None:
    with LocalWorkers(None, ["one", "two"]) as workers:
        file = devices(tmp_path, **workers.addresses)
        said = refused("run", chain_bundle, *flags, "--devices", file)
        assert "one refuses: one has no bundle" in said or "two refuses: two has no bundle" in said
        assert "deploy it (`edgeprune deploy`), or start the worker with it (--bundle)" in said
        assert main(["deploy", str(chain_bundle), "--devices", str(file), "--quiet"]) == 0
        said = refused("run", chain_bundle, *flags, "--devices", file, "--for", "throughput")
        assert "has its part, and not the whole model; `edgeprune deploy --whole`" in said
    said = refused("run", star_bundle, *flags, "--devices", file)
    assert "is split over device0, device1, device2, and the devices file has no device0, device1, device2" in said


def test_a_bundle_for_three_devices_does_not_run_on_two(
    chain_bundle: Path, flags: list[str], tmp_path: Path, refused: Any
) -> None:
    file = devices(tmp_path, one="tcp/127.0.0.1:9")
    for command in (["run", chain_bundle, *flags], ["deploy", chain_bundle]):
        said = refused(*command, "--devices", file)
        assert "is split over host, one, two, and the devices file has no two; expected devices of the file" in said
        assert "use the file that the bundle was split with, or split it again" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[device]]\nname = "one"\nadress = "tcp/127.0.0.1:7447"\n', "unknown field `adress`"),
        ('[[device]]\nname = "host"\n', "two devices are named 'host'"),
        ('[[link]]\nbetween = ["host", "two"]\n', "a link names the unknown device 'two'; expected one of host"),
        ("[link]\n", "the link of all devices says nothing"),
    ],
)
def test_a_devices_file_is_read_as_strictly_to_run_as_to_split(
    text: str, said: str, chain_bundle: Path, flags: list[str], tmp_path: Path, refused: Any
) -> None:
    file = devices(tmp_path)
    file.write_text(file.read_text() + text)
    for command in (
        ["run", chain_bundle, *flags],
        ["deploy", chain_bundle],
        ["worker", "--name", "host", "--listen", "tcp/127.0.0.1:9"],
        ["split", chain_bundle / "model.onnx", "-o", tmp_path / "out", "--force"],
    ):
        line = refused(*command, "--devices", file)
        assert f"{file}: " in line
        assert said in line


def test_where_a_worker_cannot_listen_is_said_without_the_network_library_s_own_source(
    chain_bundle: Path, refused: Any
) -> None:
    with LocalWorkers(chain_bundle, ["one"]) as workers:
        end = workers.addresses["one"]
        while "refused" in probed(end):
            assert workers.processes["one"].poll() is None
        said = refused("worker", "--name", "two", "--listen", end)
    assert f"{end}: cannot be opened: " in said
    assert "Address already in use" in said
    assert said.endswith("expected a free address of this machine")
    assert ".rs" not in said


def test_who_listens_elsewhere_than_the_file_says_is_told(tmp_path: Path) -> None:
    roster = load_roster(devices(tmp_path, one="tcp/192.0.2.7:7447"))
    assert roster.elsewhere("one", "tcp/0.0.0.0:7447") == roster.elsewhere("host", "tcp/0.0.0.0:1") == ""
    said = "one listens on tcp/0.0.0.0:7448, and the devices file sends the others to tcp/192.0.2.7:7447"
    assert roster.elsewhere("one", "tcp/0.0.0.0:7448") == said


def test_a_network_without_groups_is_told_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from onnx import numpy_helper, parser

    head = '<ir_version: 9, opset_import: ["" : 20]> g '
    made = parser.parse_model(
        head + "(float[1,8,6,6] x) => (float[1,8,6,6] y) { a = Conv<pads=[1,1,1,1]>(x, w) y = Relu(a) }"
    )
    made.graph.initializer.append(numpy_helper.from_array(np.ones((8, 8, 3, 3), np.float32), "w"))
    (tmp_path / "dense.onnx").write_bytes(made.SerializeToString())
    assert main(["split", str(tmp_path / "dense.onnx"), "--devices", "2", "-o", str(tmp_path / "out")]) == 3
    said = capsys.readouterr().err
    assert "groups, of which it has none (`edgeprune export --groups` makes them)" in said
    assert not (tmp_path / "out").exists()
