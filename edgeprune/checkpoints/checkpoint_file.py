"""Reading checkpoint files, which are untrusted: tensors and plain data are read, and nothing is ever executed."""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edgeprune.errors import InputError, first_line

SUFFIXES = frozenset({".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors"})
_EXPECTED = "a checkpoint saved by torch.save or safetensors"
_BLOCKED = re.compile(r"GLOBAL ([\w.]+)")

# Beside tensors and plain values, checkpoints often hold a command line's arguments, and accuracies as NumPy numbers.
# These types are plain data too: rebuilding them runs no code of the file's choosing.
_SCALAR = np.float64(0).__reduce__()[0]
_DATA_TYPES: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]


def is_checkpoint_name(path: Path) -> bool:
    """Whether a file's name ends as those of checkpoints do; .pth.tar too, which many training scripts write."""
    return path.suffix in SUFFIXES or (path.suffix == ".tar" and Path(path.stem).suffix in SUFFIXES)


def read_object(path: Path) -> Any:
    """What the file holds, as tensors, containers and plain values, tensors on the CPU.

    Raises InputError if the file is missing, empty, truncated, no checkpoint, or holds Python objects such as a whole
    pickled module: these are refused, because unpickling can run any code.
    """
    if path.is_dir():
        raise InputError("is a folder", where=path, expected="a checkpoint file")
    if not path.exists():
        raise InputError("no such file", where=path, expected=_EXPECTED)
    try:
        if not path.stat().st_size:
            raise InputError("is empty", where=path, expected=_EXPECTED, remedy="copy or download it again")
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, expected=_EXPECTED) from error
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if head.startswith(b"PK") and not _is_whole_zip(path):
        raise InputError("is truncated", where=path, expected="a whole checkpoint", remedy="copy or download it again")
    return _read_torch(path, head)


def _is_whole_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # some Pythons raise for a damaged end record instead of answering
        return False


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"is no sound safetensors file ({first_line(error)})",
            where=path,
            expected=_EXPECTED,
            remedy="copy or download it again",
        ) from error


def _read_torch(path: Path, head: bytes) -> Any:
    try:
        with torch.serialization.safe_globals(_DATA_TYPES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters to the user is said by the error
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint make torch's reader raise nearly anything (KeyError, ...)
        raise _refusal(path, head, error) from error


def _refusal(path: Path, head: bytes, error: Exception) -> InputError:
    text = str(error)
    save_weights = "save only the weights: torch.save(model.state_dict(), PATH)"
    if "TorchScript" in text:
        return InputError(
            "is a TorchScript program", where=path, expected="a checkpoint of weights", remedy=save_weights
        )
    blocked = _BLOCKED.search(text)
    if blocked:
        name = blocked[1]
        kind = "a pickled module" if _is_module(name) else "Python objects"
        return InputError(
            f"holds {kind} ({name}), which is never loaded: unpickling can run any code",
            where=path,
            expected="tensors only",
            remedy=save_weights,
        )
    seen = first_line(error)[:120] if head.startswith(b"PK") else f"it begins with {head!r}"
    return InputError(
        f"is no checkpoint, or a damaged one ({seen})",
        where=path,
        expected=_EXPECTED,
        remedy="copy or download it again if it was one",
    )


def _is_module(name: str) -> bool:
    """torch's own layers, and classes that look like a network's: a capital, in a module of the user's."""
    return name.startswith("torch.nn.") or name.rpartition(".")[2][:1].isupper()
