"""Why a file cannot be read as a checkpoint: the cause is looked up in the file before it is named."""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path

import torch

from edgeprune.errors import InputError, first_line

EXPECTED = "a checkpoint saved by torch.save or safetensors"
SAVE_WEIGHTS = "save only the weights: torch.save(model.state_dict(), PATH)"

_BLOCKED = re.compile(r"GLOBAL (\S+)")
_UNKNOWN_INSTRUCTION = re.compile(r"Unsupported operand (\d+)")
TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""torch.save's number at the start of files in its old format."""
_PICKLE_SEEN = 1 << 24
"""Bytes of an old file that are looked through: its pickle comes before its numbers."""

_OTHER_FILES = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file that it stands for", "fetch it: git lfs pull"),
    (b"\x1f\x8b", "is compressed by gzip", "unpack it first: gunzip, or tar -xzf"),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras writes them", ""),
    (b"<!DOCTYPE", "is a web page", "download the file itself, not the page about it"),
    (b"<html", "is a web page", "download the file itself, not the page about it"),
    (b"\x93NUMPY", "is a NumPy array", ""),
)
"""How other files begin that are taken for checkpoints, what they are, and what to do."""


def refusal(path: Path, head: bytes, error: Exception) -> InputError:
    """The error for a file that torch's safe unpickler gave up with `error`; `head` is how the file begins."""
    blocked = _BLOCKED.search(str(error))
    if blocked:
        return _of_objects(path, blocked[1])
    if "torch.distributed.tensor" in str(error):
        return InputError(
            "holds tensors that are spread over several processes (DTensor)",
            where=path,
            expected="whole tensors",
            remedy="save them gathered: get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))",
        )
    other = _of_another_kind(path, head, str(error))
    if other is not None:
        return other
    seen = first_line(error)[:120] if head.startswith(b"PK") else f"it begins with {head[:8]!r}"
    return InputError(
        f"is no checkpoint, or a damaged one ({seen})",
        where=path,
        expected=EXPECTED,
        remedy="copy or download it again if it was one",
    )


def _of_objects(path: Path, first: str) -> InputError:
    """For a file with classes or functions that are not known to be harmless; all of them are named, `first` first."""
    data = _pickle_in(path)
    names = list(dict.fromkeys([first, *(name.removeprefix("builtins.") for name in _refused_names(path))]))
    listed = ", ".join(_printable(name) for name in names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
    # A pickled torch.nn.Module has these two attributes, whatever its class is called.
    kind = "a pickled module" if b"_modules" in data and b"_parameters" in data else "Python objects"
    return InputError(
        f"holds {kind} ({listed}), which is never loaded: unpickling can run any code",
        where=path,
        expected="tensors and plain data only",
        remedy=SAVE_WEIGHTS,
    )


def _refused_names(path: Path) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a file in the old format, or damaged further on: the name that was in the way is known
        return []


def _printable(name: str) -> str:
    return "".join(letter for letter in name[:100] if letter.isprintable())


def _pickle_in(path: Path) -> bytes:
    """The file's pickle, or the part of the file where it lies."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next((n for n in archive.namelist() if n.endswith("/data.pkl")), "")
                with archive.open(name) as file:
                    return file.read(_PICKLE_SEEN)
        with path.open("rb") as file:
            return file.read(_PICKLE_SEEN)
    # NotImplementedError is what zipfile raises for a compression or version that it does not know.
    except (OSError, KeyError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile):
        return b""


def _of_another_kind(path: Path, head: bytes, error: str) -> InputError | None:
    for start, what, remedy in _OTHER_FILES:
        if head.lower().startswith(start.lower()):
            return InputError(what, where=path, expected=EXPECTED, remedy=remedy)
    if "legacy .tar format" in error:
        return InputError(
            "is in torch's tar format of 2017, which its safe reader does not read", where=path, remedy=SAVE_WEIGHTS
        )
    instruction = _UNKNOWN_INSTRUCTION.search(error)
    if instruction and _is_pickle(_pickle_in(path)):
        name = _instruction_name(int(instruction[1]))
        return InputError(
            f"is pickled with an instruction ({name}) that torch's safe reader does not know",
            where=path,
            expected="pickle protocol 2, as torch.save writes it",
            remedy="save it again with torch.save and no pickle_protocol=",
        )
    return _of_another_archive(path) if head.startswith(b"PK") else None


def _instruction_name(code: int) -> str:
    return next((op.name for op in pickletools.opcodes if ord(op.code) == code), str(code))


def _is_pickle(data: bytes) -> bool:
    """Whether the bytes are a whole pickle, by looking through its instructions; none is carried out."""
    try:
        return any(op.name == "STOP" for op, _, _ in pickletools.genops(data)) and len(data) > 4
    except Exception:  # genops raises nearly anything on bytes that are none
        return False


def _of_another_archive(path: Path) -> InputError | None:
    """For a zip archive that torch.save did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    # NotImplementedError is what zipfile raises for a compression or version that it does not know.
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return None
    if any(name.endswith(("/archive_format", "serialized_exported_program.json")) for name in names):
        what = "is a program of torch.export"
    elif names and all(name.endswith(".npy") for name in names):
        what = "is an archive of NumPy arrays"
    elif not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        what = f"is a zip archive without a checkpoint in it (it holds {_printable(', '.join(names[:3])) or 'nothing'})"
    else:
        return None
    return InputError(what, where=path, expected=EXPECTED, remedy=SAVE_WEIGHTS)
