"""The bundle: the folder that edgeprune hands out, written whole or not at all.

A bundle is staged in a hidden folder beside its place and put there by one rename, so that a killed run leaves nothing
or the old bundle. `manifest.json` lists every other file with its SHA-256. Names inside a bundle are untrusted: they
are only ever resolved through `Bundle.path`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import psutil

from edgeprune.errors import InputError, first_line

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
PLAN = "plan.json"
WEIGHTS = "weights.safetensors"
DENSE_WEIGHTS = "dense.safetensors"
CLUSTERING = "clustering.json"
MODEL = "model.onnx"
PLAIN_MODEL = "plain.onnx"
"""The network with every layer as planned, where `model.onnx` has some in other forms."""
DENSE_MODEL = "dense.onnx"
LOWERING = "lowering.json"
PROFILE = "profile.json"
ENGINES = "engines"
"""Folder of what runtimes built for one device, such as TensorRT's plans; they look whether it is for them."""
PARTITION = "partition.json"
CHECKPOINT = "checkpoint.safetensors"
"""Of a training run that has not ended: its folder is no bundle yet."""


class Count(msgspec.Struct, frozen=True):
    """A figure of the dense and of the pruned network."""

    dense: int
    pruned: int


class ParityRecord(msgspec.Struct, frozen=True):
    """How far the exported model's outputs are from the masked dense model's."""

    max_abs: float
    max_rel: float
    """max_abs over the largest absolute value of the reference output."""
    tolerance: float
    """On max_rel."""
    passed: bool
    inputs: tuple[str, ...] = ()


class GatherCount(msgspec.Struct, frozen=True):
    """Gathers that the network needs when each layer permutes for itself, and those left in the exported model."""

    before_fold: int
    after_fold: int


class Accuracy(msgspec.Struct, frozen=True):
    """Top-1 in per cent, where test data was given."""

    dense: float
    pruned: float
    pruned_before_finetune: float | None = None
    n: int = 0
    data: str = ""
    full_shape: float | None = None
    """Of the network that a method pruned during training: after its last epoch, before what the method zeroed or
    merged was cut out."""


class Manifest(msgspec.Struct, frozen=True):
    """`manifest.json`: what the bundle is and holds."""

    schema_version: int
    edgeprune_version: str
    arch: str = ""
    method: str = ""
    settings: dict[str, Any] = {}
    seed: int = 0
    files: dict[str, str] = {}
    """Path inside the bundle -> SHA-256."""
    input_shape: tuple[int, ...] = ()
    """Of one sample, without the batch."""
    num_classes: int = 0
    macs: Count | None = None
    params: Count | None = None
    parity: ParityRecord | None = None
    gathers: GatherCount | None = None
    accuracy: Accuracy | None = None
    opset: int = 0
    training: dict[str, Any] = {}
    """How `edgeprune train` trained it."""
    environment: dict[str, str] = {}
    notes: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether it is a trained network that is not pruned."""
        return bool(self.training) and not self.method


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
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        if (folder / CHECKPOINT).is_file():
            raise InputError(
                "is an unfinished training run", where=folder, expected="a finished one, or another bundle",
                remedy="the same `edgeprune train` command with --resume continues it to its end",
            ) from None  # fmt: skip
        raise InputError(
            f"has no {MANIFEST}",
            where=folder,
            expected="a bundle",
            remedy="write one with `edgeprune export ... -o DIR`",
        ) from None
    except msgspec.DecodeError as error:
        raise InputError(
            f"is damaged: {first_line(error)}", where=folder / MANIFEST, expected="a bundle's manifest"
        ) from error
    if manifest.schema_version != SCHEMA_VERSION:
        raise InputError(
            f"has bundle schema {manifest.schema_version}",
            where=folder,
            expected=f"schema {SCHEMA_VERSION}",
            remedy="write the bundle again with this version of edgeprune",
        )
    for name in manifest.files:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name:
            raise InputError(f"names a file outside the bundle: {name!r}", where=folder / MANIFEST)
    return Bundle(folder, manifest)


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


def check_file(path: Path) -> None:
    """InputError if a file cannot be written there; called before any long work."""
    parent = _existing_parent(path.parent)
    if path.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError("cannot be written", where=path, expected="a file in a folder that you may write to")


def check_update(folder: Path) -> None:
    """InputError if a bundle cannot be rewritten in its place; called before any long work."""
    _require_writable_beside(folder, "copy the bundle to a folder that you may write to")


def _require_writable_beside(out: Path, remedy: str) -> None:
    """A bundle is staged beside its place. Permissions alone do not tell whether that can be: a file system may be
    read-only, or full, or none to write to."""
    try:
        Path(tempfile.mkdtemp(prefix=".edgeprune-", dir=_existing_parent(Path(os.path.realpath(out)).parent))).rmdir()
    except OSError as error:
        what = f"cannot be written: the folder that it is in takes no new files ({error.strerror})"
        raise InputError(what, where=out, remedy=remedy) from error


def write_manifest(stage: Path, manifest: Manifest) -> Manifest:
    """Write the manifest with the hashes of all files now in the staging folder."""
    names = sorted(p.relative_to(stage).as_posix() for p in stage.rglob("*") if p.is_file() and p.name != MANIFEST)
    complete = msgspec.structs.replace(manifest, files={name: sha256_of(stage / name) for name in names})
    (stage / MANIFEST).write_bytes(pretty_json(complete))
    return complete


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
                Path(temporary.name).chmod(0o666 & ~_umask())
                Path(temporary.name).replace(path)
            except BaseException:
                Path(temporary.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror})", where=path) from error


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        stage.chmod(0o777 & ~_umask())
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


def _existing_parent(path: Path) -> Path:
    parent = path.absolute()
    while not parent.exists():
        parent = parent.parent
    return parent


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
