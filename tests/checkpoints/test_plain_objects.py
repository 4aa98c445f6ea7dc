"""Objects beside the weights are data where they are known to be; code never runs, and is refused by its name."""

from __future__ import annotations

import argparse
import array
import collections
import datetime
import decimal
import enum
import fractions
import os
import pathlib
import pickle  # noqa: TID251
import random
import re
import subprocess
import sys
import time
import types
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeprune.checkpoints import plain_objects
from edgeprune.checkpoints.checkpoint import read_state_dict
from edgeprune.checkpoints.checkpoint_file import read_object
from edgeprune.errors import InputError

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}

BESIDE: dict[str, Any] = {
    "floats": np.zeros(3, np.float32),
    "a mask": np.array([True]),
    "whole numbers": np.arange(5),
    "no numbers": np.zeros((0, 3)),
    "text": np.array(["cat", "dog"]),
    "objects": np.array([1, "a", None], dtype=object),
    "records": np.zeros(2, dtype=[("a", "f4")]),
    "dates": np.array(["2024-01-01"], dtype="M8[D]"),
    "with holes": np.ma.array([1, 2], mask=[0, 1]),
    "scalars": [np.float16(1), np.float64(2), np.int16(3), np.uint8(4), np.bool_(True), np.complex64(1j), np.str_("x")],
    "date scalar": np.datetime64("2024-01-01"),
    "types": [np.dtype("f4"), np.float32, int, str, type(None)],
    "generators": [np.random.default_rng(0), np.random.RandomState(0), np.random.get_state(), random.getstate()],
    "paths": [pathlib.Path("x"), pathlib.PureWindowsPath("C:/x")],
    "namespaces": [argparse.Namespace(out=pathlib.Path("x")), types.SimpleNamespace(a=1)],
    "dicts": [collections.defaultdict(int, a=1), collections.defaultdict(list), collections.Counter("ab")],
    "wrapped dicts": [collections.UserDict(a=1), collections.ChainMap({"a": 1}), collections.OrderedDict(a=1)],
    "lists": [collections.deque([1, 2], 3), range(3), slice(1), {1, 2}, frozenset([1]), (1,)],
    "times": [datetime.datetime.now(datetime.UTC), datetime.date(2024, 1, 1), datetime.time(1), datetime.timedelta(1)],
    "numbers": [decimal.Decimal("1.5"), fractions.Fraction(1, 3), 1j, 10**400, uuid.UUID(int=3)],
    "bytes": [b"", b"ab", bytearray(b"ab")],
    "more numbers": [array.array("d", [1.5]), time.gmtime(0)],
    "patterns": re.compile("a+"),
    "training": [
        torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1),
        torch.optim.AdamW([nn.Parameter(torch.ones(2))]),
    ],
    "constants": [..., None, NotImplemented],
    "torch": [torch.Size([1]), torch.float16, torch.device("cpu"), torch.__version__, torch.strided],
}


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_state_dict(path)
    text = str(error.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("kind", BESIDE)
def test_data_beside_the_weights_does_no_harm(tmp_path: Path, kind: str, new_format: bool) -> None:
    content = {"extra": BESIDE[kind], "state_dict": WEIGHTS}
    path = saved(tmp_path / "net.pt", content, _use_new_zipfile_serialization=new_format)
    assert same(read_state_dict(path).tensors, WEIGHTS)


@pytest.mark.parametrize(
    "written", [lambda a: a, np.asfortranarray, lambda a: a.astype(">f4"), lambda a: a.astype(np.float32)]
)
def test_weights_as_numpy_arrays(tmp_path: Path, written: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    path = saved(tmp_path / "net.pt", {key: written(value.numpy()) for key, value in WEIGHTS.items()})
    assert same(read_state_dict(path).tensors, WEIGHTS)


def test_arrays_of_every_type_of_number(tmp_path: Path) -> None:
    types = [
        np.float16,
        np.float32,
        np.float64,
        np.int8,
        np.int16,
        np.int32,
        np.int64,
        np.uint8,
        np.bool_,
        np.complex64,
    ]
    arrays = {np.dtype(t).name: np.array([[0, 1, 3]]).astype(t) for t in types}
    tensors = read_state_dict(saved(tmp_path / "net.pt", arrays)).tensors
    assert all(np.array_equal(tensors[name].numpy(), array) for name, array in arrays.items())
    assert all(tensors[name].numpy().dtype == array.dtype for name, array in arrays.items())


def test_the_epoch_may_be_a_numpy_number(tmp_path: Path) -> None:
    assert read_state_dict(saved(tmp_path / "net.pt", {"state_dict": WEIGHTS, "epoch": np.int64(7)})).epoch == 7


def test_a_dict_of_settings_needs_no_package_and_its_class_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("easydict")
    kind = type("EasyDict", (dict,), {"__module__": "easydict", "__qualname__": "EasyDict"})
    module.EasyDict = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "easydict", module)
    path = saved(tmp_path / "net.pt", {"model": kind(WEIGHTS), "settings": kind(lr=0.1)})
    monkeypatch.delitem(sys.modules, "easydict")
    assert same(read_state_dict(path).tensors, WEIGHTS)
    assert "easydict" not in sys.modules


def test_a_loss_beside_the_weights_is_no_network(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", {"criterion": nn.CrossEntropyLoss(torch.ones(3)), "state_dict": WEIGHTS})
    assert same(read_state_dict(path).tensors, WEIGHTS)


def test_python_2_wrote_numpys_bytes_as_text(tmp_path: Path) -> None:
    raw = np.array([200.5, -1e30], "<f8").tobytes()
    body = (
        b"\x80\x02}(U\x04lossc" + b"numpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01K\x02\x85cnumpy\ndtype\n(U\x02f8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U" + bytes([len(raw)]) + raw + b"tbU\x01wK\x01u."
    )
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    path = tmp_path / "old.pth"
    path.write_bytes(magic + pickle.dumps({"little_endian": True}, 2) + body + pickle.dumps([], 2))
    content = read_object(path)
    assert content["loss"].tensor().tolist() == [200.5, -1e30]


# -- what is refused ---------------------------------------------------------------------------------------------------
class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def attacks(marker: Path) -> dict[str, Calls]:
    """Ways to make a file, each by another function."""
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": Calls(os.system, f"touch {marker}"),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "open": Calls(open, str(marker), "w"),
        "Popen": Calls(subprocess.Popen, ["touch", str(marker)]),
        "call": Calls(subprocess.call, ["touch", str(marker)]),
        "mkdir": Calls(os.mkdir, str(marker)),
        "save": Calls(np.save, str(marker), 1),
    }


@pytest.mark.parametrize("name", list(attacks(Path("x"))))
def test_code_never_runs_and_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    attack = attacks(marker)[name]
    text = refused(saved(tmp_path / "net.pt", {"state_dict": WEIGHTS, "extra": attack}))
    assert name in text.split("(")[1]
    assert "can run any code" in text
    assert not marker.exists()


HIDING_PLACES: dict[str, Callable[[Any], Any]] = {
    "namespace": lambda a: argparse.Namespace(inner=a),
    "array": lambda a: np.array([a], dtype=object),
    "deque": lambda a: collections.deque([a]),
    "defaultdict": lambda a: collections.defaultdict(int, a=a),
    "list": lambda a: [[a]],
    "path": lambda a: Calls(pathlib.PurePath, a),
    "type": lambda a: Calls(np.dtype, a),
    "reconstruct": lambda a: Calls(np.array(1).__reduce__()[0], a, (0,), b"b"),
    "scalar": lambda a: Calls(np.float64(1).__reduce__()[0], np.dtype("f8"), a),
    "deque of": lambda a: Calls(collections.deque, [a]),
    "date": lambda a: Calls(datetime.date, a),
}


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_code_inside_data_is_found_too(tmp_path: Path, place: str) -> None:
    marker = tmp_path / "marker"
    hidden = HIDING_PLACES[place](Calls(os.system, f"touch {marker}"))
    assert "system" in refused(saved(tmp_path / "net.pt", {"extra": hidden, "state_dict": WEIGHTS}))
    assert not marker.exists()


def test_a_function_from_a_harmless_place_is_refused(tmp_path: Path) -> None:
    for function in (getattr, torch.load, np.load, __import__, collections.namedtuple, pathlib.Path.cwd):
        text = refused(saved(tmp_path / "net.pt", {"extra": Calls(function, "x"), "state_dict": WEIGHTS}))
        assert "can run any code" in text


class Pointer:
    """An array of objects that says it is made of bytes: numpy itself would take these bytes for addresses."""

    class Type:
        def __reduce__(self) -> tuple[Any, ...]:
            return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)

    def __reduce__(self) -> tuple[Any, ...]:
        state = (1, (2,), Pointer.Type(), False, b"\x10" * 16)
        return np.array(1).__reduce__()[0], (np.ndarray, (0,), b"b"), state


def test_bytes_are_never_taken_for_addresses(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", {"state_dict": {**WEIGHTS, "evil": Pointer()}, "scalar": Pointer()})
    assert same(read_state_dict(path).tensors, WEIGHTS)


@pytest.mark.parametrize("shape", [(3,), (-2, 3), ("6",), 6, (2, 10**30)])
def test_an_array_whose_shape_and_bytes_do_not_agree_is_damaged(tmp_path: Path, shape: object) -> None:
    class Wrong:
        def __reduce__(self) -> tuple[Any, ...]:
            state = (1, shape, np.dtype("f4"), False, bytes(24))
            return np.array(1).__reduce__()[0], (np.ndarray, (0,), b"b"), state

    assert "damaged" in refused(saved(tmp_path / "net.pt", {"a": Wrong(), "state_dict": WEIGHTS}))


def test_no_class_of_the_files_choosing_is_called() -> None:
    for stand_in, name in plain_objects.STAND_INS:
        assert stand_in.__module__ == plain_objects.__name__, name
    assert all(entry.why for entry in (*plain_objects._CONTENT, *plain_objects._BESIDE))


class Colour(enum.Enum):
    RED = 1


class Net(nn.Module):
    pass


def test_all_that_is_in_the_way_is_named_and_a_module_only_where_there_is_one(tmp_path: Path) -> None:
    text = refused(saved(tmp_path / "net.pt", {"state_dict": WEIGHTS, "colour": Colour.RED}))
    assert f"holds Python objects ({__name__}.Colour)" in text
    text = refused(saved(tmp_path / "net.pt", {"colour": Colour.RED, "net": Net()}))
    assert f"holds a pickled module ({__name__}.Colour, {__name__}.Net)" in text
    text = refused(saved(tmp_path / "net.pt", nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.BatchNorm2d(1))))
    assert "(torch.nn.modules.container.Sequential, " in text
    assert "and 1 more)" in text
    text = refused(saved(tmp_path / "net.pt", {"state_dict": WEIGHTS, "f": torch.relu}))
    assert "(getattr, torch._C._VariableFunctionsClass)" in text


# -- files of other kinds ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!doctype html><html>", "web page"),
        (b"\x1f\x8b\x08" + bytes(20), "compressed by gzip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
    ],
)
def test_other_files_are_told_from_damaged_ones(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "net.pth").write_bytes(content)
    text = refused(tmp_path / "net.pth")
    assert said in text
    assert "damaged" not in text


def test_archives_that_torch_save_did_not_write(tmp_path: Path) -> None:
    np.savez(tmp_path / "net.npz", w=np.ones(3))
    assert "archive of NumPy arrays" in refused(tmp_path / "net.npz")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "net.pt2")
    assert "program of torch.export" in refused(tmp_path / "net.pt2")


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("kind", BESIDE)
def test_newer_pickle_protocols(tmp_path: Path, kind: str, protocol: int) -> None:
    content = {"extra": BESIDE[kind], "again": [WEIGHTS, "extra", 10**1000], "state_dict": WEIGHTS}
    path = saved(tmp_path / "net.pt", content, pickle_protocol=protocol)
    assert same(read_state_dict(path).tensors, WEIGHTS)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_plain_pickles_of_arrays(tmp_path: Path, protocol: int) -> None:
    arrays = {key: value.numpy() for key, value in WEIGHTS.items()}
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "me", "s": {1}}, protocol))
    assert same(read_state_dict(tmp_path / "net.pkl").tensors, WEIGHTS)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("plain", [True, False])
def test_code_in_newer_pickle_protocols_never_runs(tmp_path: Path, protocol: int, plain: bool) -> None:
    marker, path = tmp_path / "marker", tmp_path / "net.pt"
    for name, attack in attacks(marker).items():
        content = {"state_dict": {"w": np.ones(2)}, "extra": [attack, "posix", "system"]}
        if plain:
            path.write_bytes(pickle.dumps(content, protocol))
        else:
            saved(path, content, pickle_protocol=protocol)
        text = refused(path)
        assert name in text.split("(")[1]
        assert "can run any code" in text
        assert not marker.exists()


def test_instructions_that_the_safe_reader_does_not_know_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", WEIGHTS, pickle_protocol=4, _use_new_zipfile_serialization=False)
    text = refused(path)
    assert "(FRAME)" in text
    assert "no pickle_protocol=" in text
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"w": Calls(dict)}, 0))
    assert "(DICT)" in refused(tmp_path / "net.pkl")
