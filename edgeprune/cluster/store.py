"""Where a worker keeps the bundles that were deployed to it: one folder a bundle, named by its digest.

Only files that the bundle's manifest lists are written, each under a name that was checked not to leave the folder, and
a file gets its name only when all of it is there and its SHA-256 is the manifest's. What is there of an unfinished file
stays, so that a deployment that was cut off goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.names import MANIFEST, MODEL, PARTITION
from edgeprune.errors import InputError
from edgeprune.io.files import sha256_of, write_atomically

MOST_FILE = 2**31
"""Bytes of a file: what an ONNX file can have."""
PART = ".partial"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def needed_files(bundle: Bundle, device: str, *, whole: bool) -> list[str]:
    """The files of a split bundle that one device needs, in order; with `whole` the whole model, too."""
    own = [name for name in sorted(bundle.manifest.files) if name.startswith(f"{device}/")]
    also = [name for name in (PARTITION, *([MODEL] if whole else ())) if bundle.has(name)]
    return also + own


class Store:
    """The folder with all deployed bundles of a worker."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device

    def folder_of(self, digest: str) -> Path:
        """Where a bundle lies, or would lie."""
        if not _DIGEST.fullmatch(digest):
            raise InputError(f"{digest[:80]!r} is no digest of a bundle", expected="64 hexadecimal digits")
        return self.folder / digest

    def begin(self, digest: str, manifest: bytes, *, whole: bool) -> dict[str, int]:
        """Take a bundle's manifest; the files that are still to come, with how many bytes of each are here already.

        InputError if the manifest is none, or is not what the digest says.
        """
        if hashlib.sha256(manifest).hexdigest() != digest:
            raise InputError("the manifest's SHA-256 is not the bundle's digest", where=digest)
        folder = self.folder_of(digest)
        write_atomically(folder / MANIFEST, manifest)
        return self.lacking(digest, whole=whole)

    def lacking(self, digest: str, *, whole: bool) -> dict[str, int]:
        """The files that are still to come; InputError if the bundle was never begun, or names files elsewhere."""
        bundle = open_bundle(self.folder_of(digest))
        return {
            name: self._size(self._partial(bundle, name))
            for name in needed_files(bundle, self.device, whole=whole)
            if not self._is_whole(bundle, name)
        }

    def add(self, digest: str, name: str, offset: int, total: int, sha256: str, data: bytes | memoryview) -> int:
        """Append to a file; how many bytes of it are here now. Bytes that do not follow what is here are not taken.

        InputError if the file is none of this bundle's, too large, or the bytes are damaged; if the file as a whole is
        not what the manifest says, it is removed.
        """
        bundle = open_bundle(self.folder_of(digest))
        if name not in needed_files(bundle, self.device, whole=True):
            raise InputError(f"{name[:200]!r} is no file that {self.device} needs", where=digest)
        if total > MOST_FILE or offset + len(data) > total:
            raise InputError(f"{name!r} has {total:,} bytes", where=digest, expected=f"at most {MOST_FILE:,}")
        if hashlib.sha256(data).hexdigest() != sha256:
            raise InputError(f"bytes of {name!r} were damaged on their way", where=digest)
        if self._is_whole(bundle, name):
            return total
        partial = self._partial(bundle, name)
        size = self._size(partial)
        if offset != size:
            return size
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab") as file:
            file.write(data)
        size += len(data)
        if size == total:
            self._complete(bundle, name)
        return size

    def _complete(self, bundle: Bundle, name: str) -> None:
        partial = self._partial(bundle, name)
        if sha256_of(partial) != bundle.manifest.files[name]:
            partial.unlink()
            raise InputError(f"{name!r} is not the file that the manifest means", where=bundle.folder.name)
        partial.rename(bundle.folder / name)

    @staticmethod
    def _partial(bundle: Bundle, name: str) -> Path:
        return bundle.folder / f"{name}{PART}"

    @staticmethod
    def _size(path: Path) -> int:
        return path.stat().st_size if path.is_file() else 0

    @staticmethod
    def _is_whole(bundle: Bundle, name: str) -> bool:
        path = bundle.folder / name
        return path.is_file() and sha256_of(path) == bundle.manifest.files[name]


def chunks_of(path: Path, offset: int, size: int) -> Iterator[tuple[int, bytes, str]]:
    """The rest of a file in pieces: where each begins, its bytes, and their SHA-256."""
    with path.open("rb") as file:
        file.seek(offset)
        while data := file.read(size):
            yield offset, data, hashlib.sha256(data).hexdigest()
            offset += len(data)
