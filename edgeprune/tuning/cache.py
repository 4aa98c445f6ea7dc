"""What tuning measured before, so that it need not be measured again: one JSON file a user and machine.

Entries belong to a runtime version, a processor and a number of threads; what differs in any of them is never found. A
file that is corrupt, foreign or of another version counts as empty; it is kept under another name. What a busy machine
spoilt is not remembered.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path

import msgspec

from edgeprune.errors import InputError, first_line
from edgeprune.io import progress
from edgeprune.io.files import write_atomically
from edgeprune.io.user_cache import cache_folder
from edgeprune.profiling.measurement import NOISY

SCHEMA_VERSION = 1


class CachedTime(msgspec.Struct, frozen=True):
    """One thing that was measured."""

    ms: float
    noise: float = 0.0
    """Interquartile range over median."""

    @property
    def is_noisy(self) -> bool:
        return self.noise > NOISY


class _File(msgspec.Struct, frozen=True):
    schema_version: int
    machines: dict[str, dict[str, CachedTime]]


def default_path() -> Path:
    """Where the cache lies unless it is told otherwise. InputError as `cache_folder`."""
    return cache_folder() / "tuning.json"


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
        """Write what was measured beside what the file holds by now; where that cannot be, a note says so."""
        if self.path is None:
            return
        try:
            machines = _read(self.path)
            if not machines:
                _put_aside(self.path)
            machines[self.machine] = {**machines.get(self.machine, {}), **self.times}
            write_atomically(self.path, msgspec.json.encode(_File(SCHEMA_VERSION, machines), order="sorted"))
        except (InputError, OSError) as error:  # measured all the same
            progress.note(f"what was measured is not remembered for the next tuning: {first_line(error)}")


def _put_aside(path: Path) -> None:
    """Keep a file that is no cache (anything may have been named by mistake) under a name that is not taken."""
    if not path.is_file() or not path.stat().st_size or _decoded(path):
        return
    names = chain([f"{path.name}.kept"], (f"{path.name}.kept-{number}" for number in count(2)))
    kept = next(place for name in names if not os.path.lexists(place := path.with_name(name)))
    path.rename(kept)
    progress.note(f"{path} was no tuning cache of this version: it is now {kept.name}")


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
    if not all(time.ms > 0 for times in file.machines.values() for time in times.values()):
        return {}
    return {
        machine: {key: time for key, time in times.items() if not time.is_noisy}
        for machine, times in file.machines.items()
    }
