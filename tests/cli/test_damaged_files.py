"""Damaged files of every kind: each ends in 0 or in one sentence and exit 1 (a failed gate: 3), and none hangs.

The same few hundred damages every time: bytes that are changed, cut off, doubled or swapped for what numbers at their
limits look like.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import small_bundle as small

from edgeprune.cli import main
from edgeprune.onnx_files.constants import constants
from edgeprune.onnx_files.macs import count_macs
from edgeprune.onnx_files.model import load_model

SECONDS = 10.0
EXTREMES = (
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x00" * 4,
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\x80\x01",
    b"9" * 24,
)


def damaged(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(changed))
            kind = chance.randrange(6)
            if kind == 0:
                changed[place] = chance.randrange(256)
            elif kind == 1:
                changed[place] ^= 1 << chance.randrange(8)
            elif kind == 2:
                del changed[place : place + chance.randint(1, 9)]
            elif kind == 3:
                changed[place:place] = changed[place : place + chance.randint(1, 9)]
            elif kind == 4:
                extreme = chance.choice(EXTREMES)
                changed[place : place + len(extreme)] = extreme
            else:
                del changed[max(place, 1) :]
            if not changed:
                changed = bytearray(b"\0")
        yield bytes(changed)


@pytest.fixture
def sound(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., int]]:
    """Runs the command line, and checks that it ends well or with one sentence; in all, the clock."""
    started = time.monotonic()

    def run(*arguments: object) -> int:
        code = main([*map(str, arguments), "--quiet"])
        told = capsys.readouterr().err
        assert code in (0, 1, 3), told
        assert "Traceback" not in told
        if code:
            (line,) = [text for text in told.splitlines() if text.startswith("edgeprune: ")]
            assert len(line) < 2000
        return code

    yield run
    assert time.monotonic() - started < SECONDS


def test_damaged_onnx_files(sound: Callable[..., int], tmp_path: Path) -> None:
    model = small.models()[1]
    for tensor in model.graph.initializer:  # small enough that damage hits what is not a weight
        if len(tensor.dims) == 4:
            tensor.raw_data = b"\0" * len(tensor.raw_data)
    data = model.SerializeToString()
    bare = [place for place in range(len(data)) if data[place]]
    place, ends = tmp_path / "damaged.onnx", set[int]()
    chance = random.Random(3)
    for number in range(150):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            changed[chance.choice(bare)] = chance.randrange(256)
        place.write_bytes(changed)
        verb = ("inspect", "split")[number % 2]
        flags = ("--devices", "2", "--force", "-o", tmp_path / "out", "--overwrite") if verb == "split" else ()
        ends.add(sound(verb, place, *flags))
    for changed in damaged(data, 60, 1):
        place.write_bytes(changed)
        ends.add(sound("inspect", place))
    assert ends == {0, 1}
    assert count_macs(model).total
    assert constants(load_model(small.write_models(tmp_path / "whole")[1]))


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_damaged_arrays(kind: str, sound: Callable[..., int], tmp_path: Path) -> None:
    _, model = small.write_models(tmp_path)
    image = np.zeros((1, 3, small.SIZE, small.SIZE), np.float32)
    place, out = tmp_path / f"x.{kind}", tmp_path / "y.npy"
    np.save(place, image) if kind == "npy" else np.savez(place, input=image)
    data = place.read_bytes()
    head = data[:128]
    for changed in damaged(head, 70, 2):
        place.write_bytes(changed + data[128:])
        sound("run", model, "--input", place, "--output", out)
    for changed in damaged(data, 20, 4):
        place.write_bytes(changed)
        sound("run", model, "--input", place, "--output", out)


def test_an_array_that_says_it_is_larger_than_memory(sound: Callable[..., int], tmp_path: Path) -> None:
    _, model = small.write_models(tmp_path)
    place = tmp_path / "x.npy"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000), }"
    place.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    assert sound("run", model, "--input", place, "--output", tmp_path / "y.npy") == 1


def test_damaged_bundles(sound: Callable[..., int], tmp_path: Path) -> None:
    _, model = small.write_models(tmp_path / "models")
    whole, place = tmp_path / "whole", tmp_path / "damaged"
    assert sound("split", model, "--devices", "2", "--force", "-o", whole) == 0
    np.save(tmp_path / "x.npy", np.zeros((1, 3, small.SIZE, small.SIZE), np.float32))
    shutil.copytree(whole, place)
    given = ("--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy")
    for name in ("manifest.json", "partition.json"):
        for changed in damaged((whole / name).read_bytes(), 60, 5):
            (place / name).write_bytes(changed)
            _sign(place, whole) if name == "partition.json" else None
            sound("run", place, *given)
        shutil.copyfile(whole / name, place / name)


@pytest.mark.parametrize("name", ["n" * 5000, "a/" * 2500 + "b", "nul\0.onnx", "../up.onnx", "device1"])
@pytest.mark.parametrize("file", ["partition.json", "manifest.json"])
def test_names_that_no_file_can_have(name: str, file: str, sound: Callable[..., int], tmp_path: Path) -> None:
    _, model = small.write_models(tmp_path / "models")
    folder = tmp_path / "bundle"
    assert sound("split", model, "--devices", "2", "--force", "-o", folder) == 0
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    content = json.loads((folder / file).read_text())
    if file == "manifest.json":
        content["files"][name] = "0" * 64
    else:
        content["devices"][1]["subgraphs"] = [name]
    (folder / file).write_text(json.dumps(content))
    if file == "partition.json":
        _sign(folder, whole)
    np.save(tmp_path / "x.npy", np.zeros((1, 3, small.SIZE, small.SIZE), np.float32))
    assert sound("run", folder, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy") == 1


def _sign(folder: Path, whole: Path) -> None:
    """Give the manifest the hash of the changed partition, so that it is read."""
    import hashlib

    manifest = json.loads((whole / "manifest.json").read_text())
    digest = hashlib.sha256((folder / "partition.json").read_bytes()).hexdigest()
    manifest["files"]["partition.json"] = digest
    (folder / "manifest.json").write_text(json.dumps(manifest))
