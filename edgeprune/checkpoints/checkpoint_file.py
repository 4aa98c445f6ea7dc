"""Reading checkpoint files, which are untrusted: tensors and plain data are read, and nothing is ever executed."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - the error alone
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgeprune.checkpoints.pickle_protocols import as_archive, in_protocol_2, numbers_in
from edgeprune.checkpoints.plain_objects import STAND_INS
from edgeprune.checkpoints.refusals import EXPECTED, TORCH_MAGIC, refusal
from edgeprune.checkpoints.torchscript import is_torchscript, read_torchscript
from edgeprune.errors import InputError, first_line

SUFFIXES = frozenset({".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors"})


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
        raise InputError("no such file", where=path, expected=EXPECTED)
    try:
        if not path.stat().st_size:
            raise InputError("is empty", where=path, expected=EXPECTED, remedy="copy or download it again")
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, expected=EXPECTED) from error
    if path.suffix == ".safetensors" or head[8:10] == b'{"':
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
    """All tensors of the file, and those that safetensors.torch.save_model left out because they share memory with
    another: it notes in the file's metadata, name -> the other's name, what it left out."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"is no sound safetensors file ({first_line(error)})",
            where=path,
            expected=EXPECTED,
            remedy="copy or download it again",
        ) from error
    shared = {name: tensors[other] for name, other in metadata.items() if other in tensors and name not in tensors}
    return tensors | shared


def _read_torch(path: Path, head: bytes) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters to the user is said by the error
            if head.startswith(b"PK"):
                with zipfile.ZipFile(path) as archive:
                    if is_torchscript(archive):
                        return read_torchscript(path, archive)
            return _unpickled(path, head)
    except InputError:
        raise
    except Exception as error:  # bytes that are no checkpoint make torch's reader raise nearly anything (KeyError, ...)
        with torch.serialization.safe_globals(STAND_INS):
            raise refusal(path, head, error) from error


def _unpickled(path: Path, head: bytes) -> Any:
    """By torch's safe unpickler; what it cannot read for its form alone is given to it in another form."""
    if head.startswith(b"\x80") and TORCH_MAGIC not in head:
        return _safely(as_archive(in_protocol_2(path.read_bytes()), {}))
    try:
        return _safely(path)
    except UnpicklingError as error:
        if "Unsupported operand" not in str(error) or not head.startswith(b"PK"):
            raise
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = name.removesuffix("/data.pkl")
        return _safely(as_archive(in_protocol_2(archive.read(name)), numbers_in(archive, root)))


def _safely(source: Path | io.BytesIO) -> Any:
    """Python 2 wrote NumPy's numbers as text of any bytes: latin1 keeps these."""
    with torch.serialization.safe_globals(STAND_INS):
        try:
            return torch.load(source, map_location="cpu", weights_only=True)
        except UnicodeDecodeError:
            if isinstance(source, io.BytesIO):
                source.seek(0)
            return torch.load(source, map_location="cpu", weights_only=True, encoding="latin1")
