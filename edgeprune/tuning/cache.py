"""What tuning measured before, so that it need not be measured again: one JSON file a user and machine.

Entries belong to a runtime version, a processor and a number of threads; what differs in any of them is never found. A
file that is corrupt, foreign or of another version counts as empty and is replaced.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgeprune import progress
from edgeprune.bundle import write_atomically
from edgeprune.errors import InputError

SCHEMA_VERSION = 1


class CachedTime(msgspec.Struct, frozen=True):
    """One thing that was measured."""

    ms: float
    noise: float = 0.0
    """Interquartile range over median."""


class _File(msgspec.Struct, frozen=True):
    schema_version: int
    machines: dict[str, dict[str, CachedTime]]


def default_path() -> Path:
    """Where the cache lies: in the user's cache folder, as the XDG base directory specification has it."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "edgeprune" / "tuning.json"


@dataclass
class TuningCache:
    """The times of one machine, as `machine` names it; `save` writes them back."""

    path: Path | None
    """None: nothing is read or kept."""
    machine: str
    times: dict[str, CachedTime] = field(default_factory=dict)

    @staticmethod
    def load(path: Path | None, machine: str) -> TuningCache:
        return TuningCache(path, machine, dict(_read(path).get(machine, {})) if path else {})

    def save(self) -> None:
        """Write what was measured beside what the file holds by now; a cache that cannot be written is left out."""
        if self.path is None:
            return
        machines = _read(self.path)
        if not machines:
            _put_aside(self.path)
        machines[self.machine] = {**machines.get(self.machine, {}), **self.times}
        try:
            write_atomically(self.path, msgspec.json.encode(_File(SCHEMA_VERSION, machines), order="sorted"))
        except InputError:  # measured all the same
            return


def _put_aside(path: Path) -> None:
    """Keep a file that is no cache (anything may have been named by mistake) under another name."""
    try:
        if not path.is_file() or not path.stat().st_size or _decoded(path):
            return
        kept = path.with_name(f"{path.name}.kept")
        path.replace(kept)
        progress.note(f"{path} was no tuning cache of this version: it is now {kept.name}")
    except OSError:
        return


def _decoded(path: Path) -> _File | None:
    """The file of this version; None for any other."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return file if file.schema_version == SCHEMA_VERSION else None


def _read(path: Path) -> dict[str, dict[str, CachedTime]]:
    file = _decoded(path)
    if file is None:
        return {}
    sound = all(time.ms > 0 for times in file.machines.values() for time in times.values())
    return file.machines if sound else {}
