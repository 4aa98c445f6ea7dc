"""Read TOML into a struct, and write a struct as TOML that people read: values first, small tables in one line, larger
ones under a heading."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgeprune.errors import InputError, first_line

T = TypeVar("T")


def decode_toml(data: bytes, expected: type[T], *, where: object, what: str, fields: str = "") -> T:
    """A `what` out of TOML; InputError that names the file, the field that is wrong, and the `fields` there are."""
    try:
        return msgspec.convert(tomllib.loads(data.decode("utf-8")), expected, str_keys=True)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is not TOML: {first_line(error)}", where=where, expected=what) from error
    except msgspec.ValidationError as error:
        raise InputError(
            f"is not {what}: {first_line(error)}", where=where, expected=fields or f"the fields of {what}"
        ) from error


def read_toml(path: Path, expected: type[T], *, what: str, fields: str = "") -> T:
    """A `what` from a TOML file; InputError as `decode_toml`, or if the file cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise InputError(reason, where=path, expected=f"{what} as a TOML file", remedy="check the path") from error
    return decode_toml(data, expected, where=path, what=what, fields=fields)


def toml_text(value: msgspec.Struct) -> str:
    """TOML that `decode_toml` reads back as an equal struct. None is left out, as are empty tables."""
    return "\n".join(_lines(msgspec.to_builtins(value, str_keys=True), "")).strip() + "\n"


def _lines(table: Mapping[str, Any], heading: str) -> Iterator[str]:
    kept = {key: value for key, value in table.items() if value is not None and value != {}}
    larger = {key: value for key, value in kept.items() if isinstance(value, dict) and not _is_small(value)}
    small = {key: value for key, value in kept.items() if key not in larger}
    if small and heading:
        yield from ("", f"[{heading}]")
    yield from (f"{key} = {_value(value)}" for key, value in small.items())
    for key, value in larger.items():
        yield from _lines(value, f"{heading}.{key}".strip("."))


def _is_small(table: Mapping[str, Any]) -> bool:
    return not any(isinstance(value, dict) for value in table.values())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        inside = ", ".join(f"{key} = {_value(part)}" for key, part in value.items() if part is not None)
        return f"{{ {inside} }}"
    # JSON's strings are TOML's, but that TOML wants one more character escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
