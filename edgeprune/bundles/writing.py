"""Bundles are written whole or not at all.

A bundle is staged in a hidden folder beside its place and put there by one rename, so that a killed run leaves nothing
or the old bundle.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil

from edgeprune.bundles.bundle import is_bundle, open_bundle
from edgeprune.bundles.manifest import Manifest
from edgeprune.bundles.names import MANIFEST
from edgeprune.errors import InputError
from edgeprune.io.files import existing_parent, pretty_json, sha256_of, umask


@contextmanager
def new_bundle(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a staging folder to fill; on success it becomes `out`, on any error nothing is left.

    `out` must not exist, or be an empty folder, or (with `overwrite`) an edgeprune bundle.
    """
    check_out(out, overwrite=overwrite)
    with _staged(out) as stage:
        yield stage


@contextmanager
def updated_bundle(folder: Path, replacing: Collection[str] = ()) -> Iterator[Path]:
    """Yield a staging copy of the bundle to change, in which some files will be replaced; on success it takes the
    bundle's place."""
    bundle = open_bundle(folder)
    bundle.require_sound(replacing)  # or its new manifest would hash whatever lies there
    with _staged(folder) as stage:
        for name in [MANIFEST, *bundle.manifest.files]:
            source = folder / name
            if source.is_file():
                (stage / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, stage / name)
        yield stage


@contextmanager
def finished_bundle(folder: Path, kept: Iterable[str]) -> Iterator[Path]:
    """Yield a staging folder with the files `kept` of a folder that is no bundle yet, to be completed; on success it
    takes the folder's place, and what was not kept is gone; on any error the folder is as it was."""
    with _staged(folder) as stage:
        for name in kept:
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                (stage / name).hardlink_to(folder / name)
            except OSError:  # a file system without hard links
                shutil.copy2(folder / name, stage / name)
        yield stage


def copy_files(names: Iterable[str], source: Path, destination: Path) -> None:
    """Copy files from folder to folder, those in folders inside of it, too."""
    for name in names:
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, destination / name)


def check_out(out: Path, *, overwrite: bool = False) -> None:
    """InputError if a bundle cannot be written to `out`; called before any long work."""
    if out.exists() and not out.is_dir():
        raise InputError("exists and is not a folder", where=out, remedy="choose another -o/--out")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise InputError(
                "the output folder is not empty",
                where=out,
                expected="a new or empty folder",
                remedy="choose another -o/--out"
                + (", or pass --overwrite to replace this bundle" if is_bundle(out) else ""),
            )
        if not is_bundle(out):
            raise InputError(
                "is not a bundle, so --overwrite will not replace it", where=out, remedy="choose another -o/--out"
            )
    _require_writable_beside(out, "choose a folder that you may write to")


def check_update(folder: Path) -> None:
    """InputError if a bundle cannot be rewritten in its place; called before any long work."""
    _require_writable_beside(folder, "copy the bundle to a folder that you may write to")


def _require_writable_beside(out: Path, remedy: str) -> None:
    """A bundle is staged beside its place. Permissions alone do not tell whether that can be: a file system may be
    read-only, or full, or none to write to."""
    try:
        Path(tempfile.mkdtemp(prefix=".edgeprune-", dir=existing_parent(Path(os.path.realpath(out)).parent))).rmdir()
    except OSError as error:
        what = f"cannot be written: the folder that it is in takes no new files ({error.strerror})"
        raise InputError(what, where=out, remedy=remedy) from error


def write_manifest(stage: Path, manifest: Manifest) -> Manifest:
    """Write the manifest with the hashes of all files now in the staging folder."""
    names = sorted(p.relative_to(stage).as_posix() for p in stage.rglob("*") if p.is_file() and p.name != MANIFEST)
    complete = msgspec.structs.replace(manifest, files={name: sha256_of(stage / name) for name in names})
    (stage / MANIFEST).write_bytes(pretty_json(complete))
    return complete


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    out = Path(os.path.realpath(out))  # a link to a folder stays a link
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        stage = Path(tempfile.mkdtemp(prefix=f"{_staging_prefix(out)}{os.getpid()}-", dir=out.parent))
    except OSError as error:
        raise InputError(f"the output folder cannot be written ({error.strerror})", where=out) from error
    try:
        stage.chmod(0o777 & ~umask())
        yield stage
        _publish(stage, out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _staging_prefix(out: Path) -> str:
    return f".{out.name}.partial-"


def _remove_leftovers(out: Path) -> None:
    """Remove the staging folders of earlier runs to the same place that were killed."""
    prefix = _staging_prefix(out)
    for entry in list(out.parent.iterdir()):
        process = entry.name.removeprefix(prefix).partition("-")[0]
        if entry.name.startswith(prefix) and process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(entry, ignore_errors=True)


def _publish(stage: Path, out: Path) -> None:
    """Put `stage` in the place of `out` by one rename; what was there ends in `stage`, to be removed."""
    for path in stage.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    if not out.exists() or not any(out.iterdir()):
        stage.rename(out)  # POSIX: replaces an empty folder in one step
    elif not _exchange(stage, out):
        # No atomic exchange here: the old bundle keeps its contents under the other name until the new one stands.
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
        out.rename(old)
        try:
            stage.rename(out)
        except OSError:
            old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders atomically (Linux renameat2); False where the system cannot."""
    at_cwd, exchange = -100, 2
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) == 0)
