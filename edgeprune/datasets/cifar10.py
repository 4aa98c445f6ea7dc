"""CIFAR-10 as it is published: the binary version, and the Python batches: pickles, which are never unpickled freely.

The reader of the pickles knows the names that a NumPy array is made of, and replaces them by plain records of what the
file says; any other name is refused. So no object of the file's choosing is ever made, and no code runs that it names.
It also knows only the opcodes that batches are written with, and hashes and prints none of their containers, so that
the work and the memory grow in proportion to the file, whose size is limited.
"""

from __future__ import annotations

import io
import pickle  # noqa: TID251  # only as the parser of the format; see above
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from edgeprune.datasets.sources import Images, Shape, balanced, resized
from edgeprune.errors import InputError, first_line

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_PIXELS = 3 * 32 * 32
_RECORD = 1 + _PIXELS
_MOST_BYTES = 64 << 20
"""A batch has 31 MB."""


def cifar10(folder: str, split: str, shape: Shape, limit: int | None) -> Images:
    """One split of CIFAR-10 in either version, in DIR or in the folder that its archive unpacks to."""
    root = Path(folder).expanduser()
    names = [f"data_batch_{n}" for n in range(1, 6)] if split == "train" else ["test_batch"]
    versions = [
        (root, ".bin"), (root / "cifar-10-batches-bin", ".bin"), (root, ""), (root / "cifar-10-batches-py", ""),
    ]  # fmt: skip
    found = [(place, suffix) for place, suffix in versions if (place / f"{names[0]}{suffix}").is_file()]
    if not found:
        raise InputError(
            f"has neither {names[0]}.bin nor {names[0]}", where=root, expected="CIFAR-10's binary or Python version",
            remedy="unpack cifar-10-binary.tar.gz or cifar-10-python.tar.gz there, or use imagefolder:DIR",
        )  # fmt: skip
    if shape[0] != 3:
        raise InputError(
            f"the network takes {shape[0]} channels", where=root, expected="3 for CIFAR-10's colour images"
        )
    place, suffix = found[0]
    read = _binary_records if suffix else _python_records
    records = np.concatenate([read(place / f"{name}{suffix}") for name in names])  # (N, 1 + 3 * 32 * 32)
    labels = torch.from_numpy(records[:, 0].astype(np.int64))
    pixels = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32))
    if limit is not None:
        chosen = balanced(labels, limit)
        labels, pixels = labels[chosen], pixels[chosen]
    return Images(resized(pixels, shape), labels, CLASSES)


def _binary_records(path: Path) -> NDArray[np.uint8]:
    """Records of one label byte and 3x32x32 pixel bytes."""
    content = np.frombuffer(_content(path), dtype=np.uint8)
    if not content.size or content.size % _RECORD:
        raise InputError(f"has {content.size} bytes", where=path, expected=f"a multiple of {_RECORD}; is it whole?")
    records = content.reshape(-1, _RECORD)
    outside = records[records[:, 0] > 9, 0]
    if len(outside):
        raise InputError(f"has label {outside[0]}", where=path, expected="0..9; is it CIFAR-10?")
    return records


def _python_records(path: Path) -> NDArray[np.uint8]:
    """The same records from a pickled batch: a dictionary with `labels` and `data`."""
    try:
        batch = _ArrayReader(io.BytesIO(_content(path)), encoding="bytes").load()
        labels, pixels = batch[b"labels"], batch[b"data"].pixels()
        if type(labels) is not list or not all(type(label) is int for label in labels):
            raise ValueError("labels that are no list of integers")
        if len(labels) != len(pixels):
            raise ValueError(f"{len(labels)} labels for {len(pixels)} images")
        if outside := [label for label in labels if not 0 <= label <= 9]:
            raise ValueError(f"label {outside[0]}, which is not one of 0..9")
    except Exception as error:  # bytes that are no such batch make the parser raise nearly anything
        raise InputError(
            f"is no sound batch of CIFAR-10 ({type(error).__name__}: {first_line(error)})", where=path,
            expected="a file of cifar-10-python.tar.gz", remedy="unpack it again",
        ) from error  # fmt: skip
    return np.concatenate([np.array(labels, dtype=np.uint8)[:, None], pixels], axis=1)


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(
            "no such file", where=path, expected="all batches of CIFAR-10", remedy="unpack its archive again"
        )
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise InputError(f"has {size} bytes", where=path, expected=f"a batch of CIFAR-10, at most {_MOST_BYTES}")
    return path.read_bytes()


class _ArrayState:
    """In place of a NumPy array or its type: what the file says of it, as plain values."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def pixels(self) -> NDArray[np.uint8]:
        """(N, 3072), if that is what the file says."""
        _, shape, kind, column_major, content = self.state
        if type(shape) is not tuple or len(shape) != 2 or shape[1] != _PIXELS:
            raise ValueError(f"an array that is not (N, {_PIXELS})")
        if kind.arguments[0] not in (b"u1", "u1") or column_major or type(content) is not bytes:
            raise ValueError("an array of other things than bytes")
        return np.frombuffer(content, dtype=np.uint8).reshape(-1, _PIXELS)


_ARRAY_NAMES = frozenset({
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"), ("numpy", "dtype"),
})  # fmt: skip
_MOST_ARGUMENTS = 3
_OPCODES = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE,
    pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1,
    pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINUNICODE, pickle.SHORT_BINUNICODE,
    pickle.BINBYTES, pickle.SHORT_BINBYTES,
    pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
    pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS,
    pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET, pickle.MEMOIZE,
    pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BUILD,
)  # fmt: skip
"""Those of protocols 2 to 4 for numbers, strings, tuples, lists, dictionaries and arrays."""


def _check_call(stack: list[Any]) -> None:
    function, arguments = stack[-2:]
    if not callable(function) or type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS:
        raise pickle.UnpicklingError("it makes an object in a way that arrays are not made")


def _check_state(stack: list[Any]) -> None:
    if type(stack[-2]) is not _ArrayState:
        raise pickle.UnpicklingError("it gives a state to what is no array")


def _check_keys(keys: list[Any]) -> None:
    # Keys are hashed: a tuple of a tuple that is named twice, and so on, would take for ever.
    if not all(type(key) in (bytes, str) for key in keys):
        raise pickle.UnpicklingError("it holds a dictionary whose keys are not names")


_CHECKS: dict[bytes, Callable[[list[Any]], None]] = {
    pickle.REDUCE: _check_call,
    pickle.BUILD: _check_state,
    pickle.SETITEM: lambda stack: _check_keys(stack[-2:-1]),
    pickle.SETITEMS: lambda stack: _check_keys(stack[::2]),
}
"""What must hold of the stack (of what lies above the last mark) before an opcode is carried out."""


def _carried_out(opcode: bytes) -> Callable[[Any], None]:
    """The usual work of an opcode, after its check."""
    usual: Callable[[Any], None] = pickle._Unpickler.dispatch[opcode[0]]
    check = _CHECKS.get(opcode)

    def load(reader: Any) -> None:
        if check is not None:
            check(reader.stack)
        usual(reader)

    return load


class _ArrayReader(pickle._Unpickler):  # in Python: the one in C reserves as much memory as a file asks for
    """Plain containers, and `_ArrayState` for arrays; pickle.UnpicklingError and others for anything else."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {opcode[0]: _carried_out(opcode) for opcode in _OPCODES}
    encoded = 0

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAY_NAMES:
            return _ArrayState
        if (module, name) == ("_codecs", "encode"):
            return self._latin1
        named = f"{module}.{name}"[:80]
        raise pickle.UnpicklingError(f"it holds {named}, which is never loaded: unpickling can run any code")

    def _latin1(self, text: object, encoding: object) -> bytes:
        """Bytes, as Python 3 writes them in the pickles of Python 2."""
        if type(text) is not str or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("it encodes what is no text in latin1")
        self.encoded += len(text)  # a file can name one long text many times
        if self.encoded > _MOST_BYTES:
            raise pickle.UnpicklingError("it asks for more memory than a batch needs")
        return text.encode("latin1")
