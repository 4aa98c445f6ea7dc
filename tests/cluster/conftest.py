"""Small split networks, workers in processes of their own on loopback, and inputs that no two requests share."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper, parser

from edgeprune.bundles.manifest import SCHEMA_VERSION, Manifest
from edgeprune.bundles.names import MODEL
from edgeprune.bundles.writing import write_manifest
from edgeprune.cluster.client import Cluster, ClusterOptions
from edgeprune.cluster.local import LocalWorkers
from edgeprune.onnx_files.inputs import input_specs, output_specs
from edgeprune.onnx_files.model import load_model
from edgeprune.partitioning.devices import load_devices
from edgeprune.partitioning.manifest import (
    DeviceEntry,
    Partition,
    PartitionManifest,
    Predicted,
    Stage,
    TensorInfo,
    Transfer,
    check_partition,
    write_partition,
)
from edgeprune.partitioning.partition import partition_model
from edgeprune.runners.onnxruntime.runner import OrtRunner

HEAD = '<ir_version: 9, opset_import: ["" : 20]> g '
SHAPE = (1, 8, 6, 6)
GROUPED = """(float[batch,8,6,6] x) => (float[batch,8,6,6] y) {
  a = Conv<group=8, pads=[1,1,1,1]>(x, w) r = Relu(a) b = Conv<group=4, pads=[1,1,1,1]>(r, v) y = Add(b, x) }"""
"""Split today as a star: everything goes through the host."""
WHOLE = """(float[batch,8,6,6] x) => (float[batch,8,6,6] y) {
  a = Conv<group=8, pads=[1,1,1,1]>(x, w) b = Conv<group=4, pads=[1,1,1,1]>(a, v) c = Relu(b) y = Add(c, a) }"""
PARTS = {
    "host/stage_00.onnx": "(float[batch,8,6,6] x) => (float[batch,8,6,6] r) { r = Identity(x) }",
    "one/stage_01.onnx": "(float[batch,8,6,6] r) => (float[batch,8,6,6] a) { a = Conv<group=8, pads=[1,1,1,1]>(r, w) }",
    "two/stage_02.onnx": "(float[batch,8,6,6] a) => (float[batch,8,6,6] c) "
    "{ b = Conv<group=4, pads=[1,1,1,1]>(a, v) c = Relu(b) }",
    "host/stage_03.onnx": "(float[batch,8,6,6] a, float[batch,8,6,6] c) => (float[batch,8,6,6] y) { y = Add(c, a) }",
}
"""The same network as a chain: from the host to one, from there to the host and to two, and back."""
MOVES = (("host", "one", "r", 1), ("one", "two", "a", 2), ("one", "host", "a", 3), ("two", "host", "c", 3))


def model(text: str) -> ModelProto:
    """A model with the constants w (8 groups) and v (4 groups) that it reads."""
    made = parser.parse_model(HEAD + text)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 1, 3, 3)), ("v", (8, 2, 3, 3))):
        values = rng.standard_normal(shape).astype(np.float32)
        if any(name in node.input for node in made.graph.node):
            made.graph.initializer.append(numpy_helper.from_array(values, name))
    return made


def chain_partition() -> Partition:
    """A partition in which two workers exchange a tensor without the host."""
    models = {name: model(text) for name, text in PARTS.items()}
    specs = {"x": input_specs(models["host/stage_00.onnx"])[0], "y": output_specs(models["host/stage_03.onnx"])[0]}
    infos = {name: TensorInfo(name, spec.dtype, spec.shape) for name, spec in specs.items()}
    names = ("host", "one", "two")
    files = {name: tuple(file for file in PARTS if file.startswith(f"{name}/")) for name in names}
    manifest = PartitionManifest(
        devices=tuple(DeviceEntry(name, "x86-avx2", files[name], 0, 0) for name in names),
        stages=tuple(
            Stage(number, "host" if file.startswith("host") else "parallel", {file.partition("/")[0]: file}, ())
            for number, file in enumerate(PARTS)
        ),
        transfers=tuple(Transfer(sender, to, tensor, 1152, stage) for sender, to, tensor, stage in MOVES),
        predicted=Predicted(1.0, 1.0, 4 * 1152, "nothing"),
        inputs=(infos["x"],),
        outputs=(infos["y"],),
    )
    assert not check_partition(manifest, models)
    return Partition(manifest, models)


def write_bundle(folder: Path, partition: Partition | None, whole: str) -> Path:
    folder.mkdir(parents=True)
    (folder / MODEL).write_bytes(model(whole).SerializeToString())
    if partition is not None:
        write_partition(partition, folder)
    write_manifest(folder, Manifest(SCHEMA_VERSION, "0.1.0"))
    return folder


@pytest.fixture(scope="session")
def chain_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three devices in a chain."""
    return write_bundle(tmp_path_factory.mktemp("chain") / "bundle", chain_partition(), WHOLE)


@pytest.fixture(scope="session")
def star_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three devices as today's `split` divides a network."""
    folder = tmp_path_factory.mktemp("star")
    (folder / "model.onnx").write_bytes(model(GROUPED).SerializeToString())
    partition = partition_model(load_model(folder / "model.onnx"), load_devices(3))
    return write_bundle(folder / "bundle", partition, GROUPED)


@dataclass
class Expected:
    """Inputs by number, and what the whole model makes of them."""

    runner: OrtRunner

    def feeds(self, number: int) -> dict[str, Any]:
        return {"x": np.random.default_rng(number).standard_normal(SHAPE).astype(np.float32)}

    def check(self, number: int, outputs: dict[str, Any]) -> None:
        want = self.runner.run(self.feeds(number))["y"]
        assert outputs.keys() == {"y"}
        assert np.abs(outputs["y"] - want).max() <= 1e-5 * np.ptp(want)


@pytest.fixture(scope="session")
def of_chain(chain_bundle: Path) -> Iterator[Expected]:
    with OrtRunner(chain_bundle / MODEL) as runner:
        yield Expected(runner)


@pytest.fixture(scope="session")
def of_star(star_bundle: Path) -> Iterator[Expected]:
    with OrtRunner(star_bundle / MODEL) as runner:
        yield Expected(runner)


PATIENT = ClusterOptions(start_timeout_s=60.0, timeout_s=20.0)
"""For machines that are busy."""


@pytest.fixture
def chain(chain_bundle: Path) -> Iterator[tuple[LocalWorkers, Cluster]]:
    """Two workers and a client, for tests that do something to the workers."""
    with (
        LocalWorkers(chain_bundle, ["one", "two"]) as workers,
        Cluster(chain_bundle, workers.addresses, options=PATIENT) as cluster,
    ):
        yield workers, cluster


@pytest.fixture(scope="module")
def lasting(chain_bundle: Path) -> Iterator[LocalWorkers]:
    """Two workers that all tests of a module use."""
    with LocalWorkers(chain_bundle, ["one", "two"]) as workers:
        yield workers


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority (ca.pem) and NAME.pem, NAME-key.pem of all devices of the chain and of mallory, who is of no
    file; and evil.pem, which another authority signed. Made with openssl."""
    folder, other = tmp_path_factory.mktemp("certificates"), tmp_path_factory.mktemp("other")
    for place in (folder, other):
        make_authority(place)
    for name in ("host", "one", "two", "mallory"):
        make_certificate(folder, name)
    make_certificate(other, "host")
    shutil.copy(other / "host.pem", folder / "evil.pem")
    shutil.copy(other / "host-key.pem", folder / "evil-key.pem")
    return folder


def make_authority(folder: Path) -> None:
    """ca.pem and ca-key.pem; the test is skipped where there is no openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make certificates with")
    folder.mkdir(parents=True, exist_ok=True)
    _openssl(
        folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-keyout", "ca-key.pem", "-out", "ca.pem", "-subj", "/CN=shelf",
        "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign",
    )  # fmt: skip


def make_certificate(folder: Path, name: str) -> None:
    """NAME.pem and NAME-key.pem, signed by the authority in the folder."""
    (folder / f"{name}.ext").write_text(
        "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\n"
    )
    _openssl(
        folder, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", f"{name}-key.pem", "-out", f"{name}.csr", "-subj", f"/CN={name}",
    )  # fmt: skip
    _openssl(
        folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial",
        "-days", "2", "-out", f"{name}.pem", "-extfile", f"{name}.ext",
    )  # fmt: skip


def _openssl(folder: Path, *arguments: str) -> None:
    result = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
