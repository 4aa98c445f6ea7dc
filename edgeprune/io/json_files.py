"""Read the JSON files that edgeprune writes. They are untrusted: whatever is wrong with one is an `InputError`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from edgeprune.errors import InputError, first_line


class Versioned(Protocol):
    """What says which schema it has."""

    @property
    def schema_version(self) -> int: ...


T = TypeVar("T", bound=Versioned)


def read_json(path: Path, kind: type[T], schema: int, *, what: str, expected: str, remedy: str) -> T:
    """A file of this kind and schema. InputError if it cannot be read, is no `what`, or of another schema: with what
    was expected, and what to do about it."""
    try:
        value = msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        raise InputError(reason, where=path, expected=expected, remedy=remedy) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = f"is no {what}: {first_line(error)}"
        raise InputError(reason, where=path, expected=expected, remedy=remedy) from error
    if value.schema_version != schema:
        reason = f"has {what} schema {value.schema_version}"
        raise InputError(reason, where=path, expected=f"schema {schema}", remedy=remedy)
    return value
