"""The folder of a training run before it is a bundle: whether a run may be kept there, and by one process alone."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeprune.bundles.bundle import is_bundle
from edgeprune.bundles.names import CHECKPOINT
from edgeprune.bundles.writing import check_out
from edgeprune.errors import InputError, Interrupted
from edgeprune.training.state import LOG, TICKETS, epochs_done


def check_place(out: Path, *, resume: bool, overwrite: bool) -> None:
    """InputError if the run cannot be kept in `out`."""
    if is_unfinished(out):
        if not (resume or overwrite):
            raise InputError(
                f"holds a run that was stopped after epoch {epochs_done(out)}", where=out,
                remedy="--resume continues it, --overwrite starts anew",
            )  # fmt: skip
        return
    check_out(out, overwrite=overwrite)


def is_unfinished(out: Path) -> bool:
    """Whether the folder holds what a run leaves before its end, and nothing else."""
    own = {CHECKPOINT, LOG, TICKETS}
    names = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    # A killed process may also leave a file that was being written, under a hidden name.
    return bool(names & own) and all(name.startswith((f".{CHECKPOINT}.", f".{LOG}.")) for name in names - own)


def remove_run(out: Path) -> None:
    """Remove the bundle or the unfinished run that `check_place` found in the folder."""
    if is_bundle(out) or is_unfinished(out):
        for entry in out.iterdir():  # the folder itself stays: its lock is held
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder, and keep other processes from training there; InputError if one does.

    The lock is on the folder itself: it leaves no file, and the system releases it even if the process is killed.
    """
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"the output folder cannot be written ({error.strerror})", where=out) from error
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                "another process is training there", where=out, remedy="wait for it, or choose another -o/--out"
            ) from None
        except OSError:
            pass  # a file system without such locks: training goes on unguarded
        yield
    finally:
        os.close(folder)
        if made and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


@contextmanager
def interruptible(out: Path, epochs: int) -> Iterator[None]:
    """Ctrl-C (or SIGTERM), or the end of another rank, becomes `Interrupted`, which says what was kept and how to go
    on."""
    try:
        yield
    except KeyboardInterrupt as error:
        why, done = str(error) or "interrupted", epochs_done(out)
        if not out.is_dir():  # another rank keeps the run, on its machine
            raise Interrupted(f"{why}; the same command with --resume continues") from None
        if not done:
            raise Interrupted(f"{why} before the end of the first epoch; nothing was kept") from None
        raise Interrupted(f"{why} after epoch {done} of {epochs}; the same command with --resume continues") from None
