"""The weights of a TorchScript archive, without its code.

torch.jit.load compiles the archive's code and runs its `__setstate__` methods, whose operations can write files. The
weights lie beside the code, in the same form as in a checkpoint, under classes of the program's own (`__torch__....`);
so the archive is copied without its code, and torch's safe unpickler reads that, with a stand-in for these classes.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeprune.checkpoints.pickle_protocols import as_archive, numbers_in
from edgeprune.checkpoints.plain_objects import STAND_INS
from edgeprune.errors import InputError

_MOST_OBJECTS = 200_000
"""Of a program; one whose objects lie in one another twice over would have 2^depth names."""
_REMEDY = "save the weights of the network that it was made from: torch.save(model.state_dict(), PATH)"


class _Record:
    """A module of the program, or another object of its classes: its attributes by name."""

    attributes: dict[str, Any]

    def __new__(cls, *contents: object) -> _Record:
        record = super().__new__(cls)
        record.attributes = {}
        return record

    def __setstate__(self, state: object) -> None:
        self.attributes = state if isinstance(state, dict) else {}


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Whether a zip archive is a TorchScript program: it holds constants.pkl, by which torch tells them too."""
    return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path, archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """The tensors of the program's modules, by the names that they have in the network it was made from."""
    root = archive.namelist()[0].partition("/")[0]
    if f"{root}/data.pkl" not in archive.namelist():
        raise InputError("is a TorchScript program in the form of before PyTorch 1.4", where=path, remedy=_REMEDY)
    program = _loaded(archive, root)
    tensors = _tensors_by_name(program)
    if not tensors:
        raise InputError(
            "is a TorchScript program whose weights are constants without names, as torch.jit.freeze makes it",
            where=path, expected="weights by name", remedy=_REMEDY,
        )  # fmt: skip
    return tensors


def _loaded(archive: zipfile.ZipFile, root: str) -> Any:
    """What data.pkl holds, read by torch's safe unpickler from a copy without code and constants."""
    pickled = archive.read(f"{root}/data.pkl")
    copy = as_archive(pickled, numbers_in(archive, root))
    classes = [(_Record, name) for name in _names(pickled) if name.startswith("__torch__.")]
    with torch.serialization.safe_globals([*STAND_INS, *classes]):
        return torch.load(copy, map_location="cpu", weights_only=True)


def _names(data: bytes) -> set[str]:
    """The classes and functions that a pickle names; it is only looked through."""
    return {str(argument).replace(" ", ".") for op, argument, _ in pickletools.genops(data) if op.name == "GLOBAL"}


def _tensors_by_name(program: object) -> dict[str, Tensor]:
    """Tensor attributes of all modules, in their order; a module that is its own ancestor is entered once."""
    tensors: dict[str, Tensor] = {}
    waiting: list[tuple[str, object, frozenset[int]]] = [("", program, frozenset())]
    entered = 0
    while waiting:
        entered += 1
        if entered > _MOST_OBJECTS:
            raise ValueError(f"more than {_MOST_OBJECTS} objects")
        prefix, record, above = waiting.pop()
        if not isinstance(record, _Record) or id(record) in above or len(above) > 100:
            continue
        parts = []
        for name, value in record.attributes.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
            else:
                parts.append((f"{prefix}{name}.", value, above | {id(record)}))
        waiting += reversed(parts)
    return tensors
