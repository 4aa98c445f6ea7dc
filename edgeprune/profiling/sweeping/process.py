"""Measure in a fresh process, which no other target's threads, memory or caches disturb.

The process (`worker`) runs the same code on the same files, and leaves its result, or what went wrong, as JSON
in a folder:

    FOLDER/job.json     what to measure, a `Request`
    FOLDER/result.json  a `ProfileResult`
    FOLDER/failure.json a `Failure` instead
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from edgeprune.errors import GateError, InputError
from edgeprune.io import progress
from edgeprune.profiling.result import ProfileResult
from edgeprune.profiling.setup import ProfileOptions
from edgeprune.profiling.subject import Subject

JOB, RESULT, FAILURE = "job.json", "result.json", "failure.json"
INTERRUPTED = 130  # as shells report it


class ProfileJob(msgspec.Struct, frozen=True):
    """One target with one thread count."""

    subject: Subject
    target: str
    options: ProfileOptions
    engines: Path | None = None
    """Folder of what runtimes built for this device, which they use again."""
    references: Path | None = None
    """Folder of what the networks give in ONNX Runtime."""


class Failure(msgspec.Struct, frozen=True):
    """What went wrong in the other process."""

    what: str
    where: str = ""
    expected: str = ""
    remedy: str = ""
    is_bug: bool = False
    """Then `what` is a traceback; else it was the user's input."""
    is_gate: bool = False
    """The outputs were wrong."""

    def error(self) -> Exception:
        if self.is_bug:
            return RuntimeError(f"the measuring process failed:\n{self.what}")
        if self.is_gate:
            return GateError(self.what)
        return InputError(self.what, where=self.where, expected=self.expected, remedy=self.remedy)


class Request(msgspec.Struct, frozen=True):
    """What the process is given."""

    job: ProfileJob
    shows_progress: bool

    def encoded(self) -> bytes:
        return msgspec.json.encode(self, enc_hook=str)  # JSON has no type for paths

    @staticmethod
    def decoded(data: bytes) -> Request:
        return msgspec.json.decode(data, type=Request, dec_hook=lambda kind, text: kind(text))


def run_apart(job: ProfileJob) -> ProfileResult:
    """The result of `sweep.measure` for this job, out of a process of its own.

    InputError as there, or if the process was ended from outside (mostly: for the memory that it took).
    """
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as text:
        folder = Path(text)
        (folder / JOB).write_bytes(Request(job, progress.is_shown()).encoded())
        status = run_module("edgeprune.profiling.sweeping.worker", folder)
        if (folder / RESULT).exists():
            return msgspec.json.decode((folder / RESULT).read_bytes(), type=ProfileResult)
        if (folder / FAILURE).exists():
            raise msgspec.json.decode((folder / FAILURE).read_bytes(), type=Failure).error()
    raise ended_from_outside(f"target {job.target}", status)


def run_module(module: str, folder: Path) -> int:
    """Run a module with the folder as its argument in a process of its own, and wait; its exit status, less than 0 for
    a signal. KeyboardInterrupt if the user ended it."""
    # The same modules as here, wherever they came from; -P: and not the working directory's, if it was not there.
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    command = [sys.executable, "-P", "-m", module, str(folder)]
    # Ctrl-C is for this process alone, which then ends the other one. Nothing is ever written to that one's input:
    # it ends when this process does, however it ends.
    environment, group = {**os.environ, "PYTHONPATH": paths}, 0 if os.name == "posix" else None
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, process_group=group)
    try:
        status = process.wait()
    finally:
        if process.poll() is None:  # interrupted
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    return status


def ended_from_outside(where: str, status: int) -> InputError:
    """The error of a process that left no result."""
    known = {int(number): number.name for number in signal.Signals}
    by = f"by {known.get(-status, f'signal {-status}')}" if status < 0 else f"with status {status}"
    killed = -status == getattr(signal, "SIGKILL", None)
    return InputError(
        f"the measuring process was ended {by}" + (": most likely for the memory that it took" if killed else ""),
        where=where,
        remedy="try a smaller --batch-size" if killed else "the runtime crashed: leave this target out, or update it",
    )
