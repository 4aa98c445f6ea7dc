"""Measure several runtimes together in a process of its own, and once more without one that crashes it.

`python -m edgeprune.profiling.runtimes.apart FOLDER` is the other side. In the folder lie:

    job.json     what to measure, a `Request`
    at           the key of the candidate that is tried; empty once all were
    result.json  a `Together`
"""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path

import msgspec

from edgeprune.errors import first_line
from edgeprune.io import progress
from edgeprune.profiling.runtimes.joint import Broken, Job, Together, measure
from edgeprune.profiling.sweeping.process import INTERRUPTED, JOB, RESULT, ended_from_outside, run_module
from edgeprune.profiling.sweeping.worker import wait_for_parent

AT = "at"


class Request(msgspec.Struct, frozen=True):
    """What the process is given."""

    job: Job
    shows_progress: bool


def run_together(job: Job) -> Together:
    """The result of `joint.measure` for this job, out of a process of its own.

    A candidate with which the process ended is broken, and the others are measured without it. InputError if it ended
    while all of them ran.
    """
    crashed: dict[str, Broken] = {}
    while True:
        left = tuple(candidate for candidate in job.candidates if candidate.key not in crashed)
        if not left:
            return Together({}, crashed)
        result, culprit, status = _run(msgspec.structs.replace(job, candidates=left))
        if result is not None:
            return msgspec.structs.replace(result, broken={**crashed, **result.broken})
        error = ended_from_outside(f"target {culprit}" if culprit else "all runtimes together", status)
        if not culprit:
            raise error
        crashed[culprit] = Broken(first_line(error), "input")


def _run(job: Job) -> tuple[Together | None, str, int]:
    """The result, or else with which candidate and with what status the process ended."""
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as text:
        folder = Path(text)
        request = Request(job, progress.is_shown())
        (folder / JOB).write_bytes(msgspec.json.encode(request, enc_hook=str))  # JSON has no type for paths
        status = run_module("edgeprune.profiling.runtimes.apart", folder)
        if (folder / RESULT).is_file():
            return msgspec.json.decode((folder / RESULT).read_bytes(), type=Together), "", status
        at = folder / AT
        return None, at.read_text(encoding="utf-8") if at.is_file() else "", status


def work(folder: Path) -> None:
    """Measure the folder's job, and leave there what came of it."""
    text = (folder / JOB).read_bytes()
    request = msgspec.json.decode(text, type=Request, dec_hook=lambda kind, value: kind(value))
    with progress.shown(request.shows_progress):
        result = measure(request.job, lambda key: _write(folder / AT, key))
    (folder / RESULT).write_bytes(msgspec.json.encode(result))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def main() -> None:
    threading.Thread(target=wait_for_parent, daemon=True).start()
    try:
        work(Path(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
