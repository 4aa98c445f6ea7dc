"""A bundle on disk, trusting nothing in it.

`manifest.json` lists every other file with its SHA-256. Names inside a bundle are untrusted: they are only ever
resolved through `Bundle.path`.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgeprune.bundles.manifest import SCHEMA_VERSION, Manifest
from edgeprune.bundles.names import CHECKPOINT, MANIFEST
from edgeprune.errors import InputError
from edgeprune.io.files import sha256_of
from edgeprune.io.json_files import read_json

_LONGEST_NAME, _LONGEST_PATH = 255, 1024
"""Bytes of a file's name, on all usual systems, and of one with the folders that it lies in."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk."""

    folder: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Where the bundle's file `name` lies; InputError if it is not listed, missing, or was changed."""
        path = self.folder / name
        if name not in self.manifest.files or not path.is_file():
            present = sorted(n for n in self.manifest.files if (self.folder / n).is_file())
            raise InputError(f"this bundle has no {name}", where=self.folder, expected=f"one of {', '.join(present)}")
        if sha256_of(path) != self.manifest.files[name]:
            raise InputError(
                "its SHA-256 is not the manifest's: it was changed or damaged",
                where=path,
                remedy="write the bundle again",
            )
        return path

    def require_sound(self, replacing: Collection[str] = ()) -> None:
        """InputError if any file but those that are about to be replaced is missing, changed or not listed."""
        faults = [fault.rstrip(".") for fault in self.faults(replacing)]
        if faults:
            raise InputError(f"the bundle is damaged: {'; '.join(faults)}", where=self.folder, remedy="write it again")

    def has(self, name: str) -> bool:
        return name in self.manifest.files

    def faults(self, ignored: Collection[str] = ()) -> list[str]:
        """A sentence for every file that is missing, changed or not listed; empty for a sound bundle."""
        faults = []
        for name, digest in sorted(self.manifest.files.items()):
            path = self.folder / name
            if name in ignored:
                continue
            if path.is_symlink() or not path.is_file():
                faults.append(f"{name}: listed in the manifest but not a file here.")
            elif sha256_of(path) != digest:
                faults.append(f"{name}: its SHA-256 is not the manifest's; it was changed or damaged.")
        present = {str(p.relative_to(self.folder).as_posix()) for p in self.folder.rglob("*") if p.is_file()}
        faults.extend(
            f"{name}: not listed in the manifest."
            for name in sorted(present - {MANIFEST, *ignored, *self.manifest.files})
        )
        return faults


def is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def open_bundle(folder: Path) -> Bundle:
    """Open a bundle, trusting nothing in it; InputError if the folder is none."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "no such folder"
        raise InputError(what, where=folder, expected="a bundle (a folder that edgeprune wrote)")
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / CHECKPOINT).is_file():
            raise InputError(
                "is an unfinished training run", where=folder, expected="a finished one, or another bundle",
                remedy="the same `edgeprune train` command with --resume continues it to its end",
            )  # fmt: skip
        raise InputError(
            f"has no {MANIFEST}",
            where=folder,
            expected="a bundle",
            remedy="write one with `edgeprune export ... -o DIR`",
        )
    expected, remedy = "a bundle's manifest", "write the bundle again with this version of edgeprune"
    manifest = read_json(path, Manifest, SCHEMA_VERSION, what="manifest of a bundle", expected=expected, remedy=remedy)
    for name in manifest.files:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name:
            raise InputError(f"names a file outside the bundle: {name!r}", where=folder / MANIFEST)
        if "\0" in name or len(os.fsencode(name)) > _LONGEST_PATH or _longest(pure) > _LONGEST_NAME:
            raise InputError(
                f"names what can be no file: {name[:_LONGEST_NAME]!r}",
                where=folder / MANIFEST,
                expected=f"names of at most {_LONGEST_NAME} bytes, {_LONGEST_PATH:,} with their folders",
                remedy=remedy,
            )
    return Bundle(folder, manifest)


def _longest(path: PurePosixPath) -> int:
    """Bytes of the longest part of a path."""
    return max((len(os.fsencode(part)) for part in path.parts), default=0)
