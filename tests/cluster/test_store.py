"""Deployed bundles: whole or not there, under their own names, and never anywhere else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from edgeprune.cluster.client import Cluster, ClusterOptions
from edgeprune.cluster.deploy import DeployOptions, deploy
from edgeprune.cluster.local import LocalWorkers
from edgeprune.cluster.serving import digest_of, opener, serve
from edgeprune.cluster.store import Store, chunks_of
from edgeprune.errors import InputError


def send(store: Store, bundle: Path, name: str, *, size: int = 100, most: int = 10**9) -> int:
    """Send a file in pieces of `size` bytes, until `most` bytes are there."""
    path, here = bundle / name, 0
    for offset, data, sha256 in chunks_of(path, 0, size):
        if here >= most:
            break
        here = store.add(digest_of(bundle), name, offset, path.stat().st_size, sha256, data)
    return here


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", "one")


def test_a_part_arrives_in_pieces_and_goes_on_where_it_stopped(store: Store, chain_bundle: Path) -> None:
    digest, manifest = digest_of(chain_bundle), (chain_bundle / "manifest.json").read_bytes()
    assert store.begin(digest, manifest, whole=False) == {"partition.json": 0, "one/stage_01.onnx": 0}
    there = send(store, chain_bundle, "one/stage_01.onnx", most=100)
    assert there == 100
    again = Store(store.folder, "one")  # the worker was restarted
    assert again.begin(digest, manifest, whole=True) == {"partition.json": 0, "model.onnx": 0, "one/stage_01.onnx": 100}
    send(again, chain_bundle, "one/stage_01.onnx")
    send(again, chain_bundle, "partition.json")
    assert again.lacking(digest, whole=False) == {}
    assert serve(again.folder_of(digest), "one", opener("cpu", 1), whole=False).flows.keys() == {"split"}
    assert send(again, chain_bundle, "partition.json") == (chain_bundle / "partition.json").stat().st_size


def test_bytes_that_do_not_follow_are_not_taken(store: Store, chain_bundle: Path) -> None:
    digest = digest_of(chain_bundle)
    store.begin(digest, (chain_bundle / "manifest.json").read_bytes(), whole=False)
    nothing = hashlib.sha256(b"abc").hexdigest()
    assert store.add(digest, "partition.json", 50, 100, nothing, b"abc") == 0


def test_damage_is_noticed(store: Store, chain_bundle: Path) -> None:
    digest, manifest = digest_of(chain_bundle), (chain_bundle / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="the manifest's SHA-256 is not the bundle's digest"):
        store.begin(digest, manifest + b" ", whole=False)
    store.begin(digest, manifest, whole=False)
    with pytest.raises(InputError, match="damaged on their way"):
        store.add(digest, "partition.json", 0, 3, "0" * 64, b"abc")
    with pytest.raises(InputError, match="is not the file that the manifest means"):
        store.add(digest, "partition.json", 0, 3, hashlib.sha256(b"abc").hexdigest(), b"abc")
    assert store.lacking(digest, whole=False)["partition.json"] == 0
    with pytest.raises(InputError, match="at most"):
        store.add(digest, "partition.json", 0, 2**40, hashlib.sha256(b"abc").hexdigest(), b"abc")


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "two/stage_02.onnx", "manifest.json", "one/../../evil", "one\\x"]
)
def test_no_other_file_is_written(store: Store, chain_bundle: Path, name: str) -> None:
    digest = digest_of(chain_bundle)
    store.begin(digest, (chain_bundle / "manifest.json").read_bytes(), whole=False)
    with pytest.raises(InputError, match="is no file that one needs"):
        store.add(digest, name, 0, 3, hashlib.sha256(b"abc").hexdigest(), b"abc")


@pytest.mark.parametrize("name", ["one/../../evil", "one/../../../../tmp/evil", "/one/evil"])
def test_a_manifest_that_names_files_elsewhere_is_refused(store: Store, chain_bundle: Path, name: str) -> None:
    fields = json.loads((chain_bundle / "manifest.json").read_bytes())
    manifest = json.dumps({**fields, "files": {**fields["files"], name: "0" * 64}}).encode()
    with pytest.raises(InputError, match="names a file outside the bundle"):
        store.begin(hashlib.sha256(manifest).hexdigest(), manifest, whole=False)


@pytest.mark.parametrize("digest", ["../evil", "0" * 63, "0" * 63 + "/", "G" * 64])
def test_a_digest_is_a_digest(store: Store, digest: str) -> None:
    with pytest.raises(InputError, match="is no digest of a bundle"):
        store.folder_of(digest)


def test_a_bundle_is_deployed_to_workers_that_have_none(chain_bundle: Path, of_chain: Any) -> None:
    """Only what they lack: the second time nothing, and then the whole model."""
    with LocalWorkers(None, ["one", "two"]) as workers:
        with pytest.raises(InputError, match="(one|two) has no bundle [0-9a-f]{12}"):
            Cluster(chain_bundle, workers.addresses, options=ClusterOptions(start_timeout_s=60.0))
        options = DeployOptions(start_timeout_s=60.0)
        first = deploy(chain_bundle, workers.addresses, options)
        assert [one.files for one in first] == [
            ("one/stage_01.onnx", "partition.json"),
            ("partition.json", "two/stage_02.onnx"),
        ]
        assert [one.sent_bytes for one in deploy(chain_bundle, workers.addresses, options)] == [0, 0]
        whole = deploy(chain_bundle, workers.addresses, DeployOptions(whole=True, start_timeout_s=60.0))
        assert [one.files for one in whole] == [("model.onnx",)] * 2
        with Cluster(chain_bundle, workers.addresses, options=ClusterOptions(timeout_s=20.0)) as cluster:
            of_chain.check(1, cluster.run(of_chain.feeds(1)))
