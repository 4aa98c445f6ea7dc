"""Single files, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from edgeprune.errors import InputError


def check_file(path: Path) -> None:
    """InputError if a file cannot be written there; called before any long work."""
    parent = existing_parent(path.parent)
    if path.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError("cannot be written", where=path, expected="a file in a folder that you may write to")


def pretty_json(value: Any) -> bytes:
    """JSON for people: sorted keys, two spaces, a final newline."""
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2) + b"\n"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a single file whole or not at all; InputError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as temporary:
            try:
                temporary.write(data)
                temporary.flush()
                os.fsync(temporary.fileno())
                Path(temporary.name).chmod(0o666 & ~umask())
                Path(temporary.name).replace(path)
            except BaseException:
                Path(temporary.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=path) from error


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def existing_parent(path: Path) -> Path:
    """The nearest folder above a path, or the path itself, that exists."""
    parent = path.absolute()
    while not parent.exists():
        parent = parent.parent
    return parent


def umask() -> int:
    """The permissions that this process takes from new files."""
    current = os.umask(0)
    os.umask(current)
    return current
