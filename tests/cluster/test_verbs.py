"""`run`, `worker` and `deploy` on the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeprune.bundles.manifest import SCHEMA_VERSION, Manifest
from edgeprune.bundles.names import PARTITION
from edgeprune.bundles.writing import write_manifest
from edgeprune.cli import main
from edgeprune.cluster.transport.network import free_addresses
from edgeprune.partitioning.manifest import load_manifest
from edgeprune.partitioning.prediction import Throughput


@pytest.fixture
def given(tmp_path: Path, of_chain: Any) -> list[str]:
    """Flags with an input and an output."""
    np.save(tmp_path / "x.npy", of_chain.feeds(1)["x"])
    return ["--input", str(tmp_path / "x.npy"), "--output", str(tmp_path / "y.npy"), "--quiet"]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 1
        return capsys.readouterr().err

    return run


def test_a_split_bundle_runs_in_processes_unless_told_otherwise(
    chain_bundle: Path, of_chain: Any, given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", str(chain_bundle), *given, "--repeat", "20", "--json", str(tmp_path / "r.json")]
    assert main(command) == 0
    of_chain.check(1, {"y": np.load(tmp_path / "y.npy")})
    result = json.loads((tmp_path / "r.json").read_bytes())
    assert (result["executor"], result["latency"]["n"], result["failures"]) == ("process", 20, 0)
    assert result["transferred_bytes"] == 4 * 1152
    assert set(result["devices"]) == {"host", "one", "two"}
    timeline = result["timeline"]
    assert {(s["device"], s["to"], s["tensor"]) for s in timeline["spans"] if s["kind"] == "transfer"} == {
        (move.from_, move.to, move.tensor) for move in load_manifest(chain_bundle).transfers
    }
    assert sum(span["kind"] == "compute" for span in timeline["spans"]) == 4
    assert max(span["end_ms"] for span in timeline["spans"]) <= timeline["latency_ms"] + timeline["clocks_within_ms"]
    spread = result["latency"]
    assert 0 < spread["p50_ms"] <= spread["p90_ms"] <= spread["p99_ms"]
    shown = capsys.readouterr().out
    assert "p50 / p90 / p99" in shown
    assert "20 / 0 / 0" in shown
    assert main([*command, "--executor", "process", "--for", "throughput"]) == 0
    of_chain.check(1, {"y": np.load(tmp_path / "y.npy")})
    result = json.loads((tmp_path / "r.json").read_bytes())
    assert result["transferred_bytes"] <= 2 * 1152
    assert result["timeline"] is None


def test_what_was_split_for_a_pipeline_runs_as_one(
    chain_bundle: Path, of_chain: Any, given: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(chain_bundle, folder)
    manifest = load_manifest(folder)
    throughput = Throughput("pipeline", 10.0, ("host", "one", "two"))
    predicted = msgspec.structs.replace(manifest.predicted, throughput=throughput)
    (folder / PARTITION).write_bytes(msgspec.structs.replace(manifest, predicted=predicted).to_json())
    write_manifest(folder, Manifest(SCHEMA_VERSION, "0.1.0"))
    options = ["--executor", "process", "--for", "throughput", "--repeat", "30", "--json", str(tmp_path / "r.json")]
    assert main(["run", str(folder), *given, *options]) == 0
    of_chain.check(1, {"y": np.load(tmp_path / "y.npy")})
    result = json.loads((tmp_path / "r.json").read_bytes())
    assert (result["latency"]["n"], result["failures"]) == (30, 0)
    assert result["transferred_bytes"] == 4 * 1152
    assert set(result["devices"]) == {"host", "one", "two"}


def test_in_threads_of_this_process(
    chain_bundle: Path, of_chain: Any, given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    json_file = ["--json", str(tmp_path / "r.json")]
    assert main(["run", str(chain_bundle), *given, "--executor", "local", "--repeat", "5", *json_file]) == 0
    of_chain.check(1, {"y": np.load(tmp_path / "y.npy")})
    result = json.loads((tmp_path / "r.json").read_bytes())
    assert (result["executor"], result["latency"]["n"]) == ("local", 5)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A devices file for the chain, and two workers with nothing to serve."""
    ends = dict(zip(("one", "two"), free_addresses(2), strict=True))
    file = tmp_path / "devices.toml"
    tables = [f'[[device]]\nname = "{name}"\naddress = "{end}"\n' for name, end in ends.items()]
    file.write_text('[[device]]\nname = "host"\n' + "".join(tables))
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "edgeprune", "worker", "--devices", str(file)]
    started = [
        subprocess.Popen(
            [*command, "--name", name, "--listen", end], stderr=subprocess.PIPE, text=True, env=environment
        )
        for name, end in ends.items()
    ]
    for one in started:
        assert one.stderr is not None
        one.stderr.readline()  # it listens
    yield file, started[0]
    for one in started:
        one.terminate()
        one.communicate(timeout=20)


def test_a_bundle_is_deployed_and_run_on_workers(
    worker: tuple[Path, subprocess.Popen[str]],
    chain_bundle: Path,
    star_bundle: Path,
    of_chain: Any,
    given: list[str],
    tmp_path: Path,
    refused: Any,
) -> None:
    file, process = worker
    run = ["run", str(chain_bundle), *given, "--executor", "cluster", "--devices", str(file)]
    assert "has no bundle" in refused(*run)
    assert main(["deploy", str(chain_bundle), "--devices", str(file), "--json", str(tmp_path / "d.json")]) == 0
    assert [one["device"] for one in json.loads((tmp_path / "d.json").read_bytes())] == ["one", "two"]
    assert main([*run, "--repeat", "3", "--timeout", "20"]) == 0
    of_chain.check(1, {"y": np.load(tmp_path / "y.npy")})
    other = ["run", str(star_bundle), *given, "--executor", "cluster", "--devices", str(file)]
    assert "is split over device0, device1, device2, and the devices file has no device0" in refused(*other)
    process.terminate()
    assert process.wait(timeout=20) == 0


def test_what_does_not_fit_together_is_said(
    chain_bundle: Path, given: list[str], tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ("run", chain_bundle, *given)
    assert "--executor cluster needs the devices' addresses" in refused(*run, "--executor", "cluster")
    assert "--repeat 0 is out of range" in refused(*run, "--repeat", "0")
    assert "--timeout 0 is out of range" in refused(*run, "--timeout", "0")
    assert "--devices is for --executor cluster" in refused(*run, "--devices", tmp_path / "x.toml")
    assert "--for throughput needs several devices" in refused(*run, "--for", "throughput")
    assert "is one ONNX file" in refused("run", chain_bundle / "model.onnx", *given, "--executor", "process")
    assert "'here' is no address" in refused("worker", "--name", "one", "--listen", "here")
    missing = refused("worker", "--name", "one", "--listen", "tcp/127.0.0.1:7447", "--bundle", tmp_path / "none")
    assert "no such folder" in missing
    stranger = refused("worker", "--name", "three", "--listen", "tcp/127.0.0.1:7447", "--bundle", chain_bundle)
    assert "unknown device 'three'" in stranger


def test_without_zenoh_the_extra_is_named(
    chain_bundle: Path, given: list[str], tmp_path: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zenoh", None)
    needs = re.compile(r"several devices need the package eclipse-zenoh; pip install 'edgeprune\[cluster\]'")
    assert needs.search(refused("run", chain_bundle, *given, "--executor", "process"))
    assert needs.search(refused("worker", "--name", "one", "--listen", "tcp/127.0.0.1:7447"))
    assert needs.search(refused("deploy", chain_bundle, "--devices", tmp_path / "devices.toml"))
    assert main(["run", str(chain_bundle), *given]) == 0  # in this process, then
