"""The other side of `process`: python -m edgeprune.profiling.sweeping.worker FOLDER measures the folder's job."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path

import msgspec

from edgeprune.errors import GateError, InputError
from edgeprune.io import progress
from edgeprune.profiling.sweeping import sweep
from edgeprune.profiling.sweeping.process import FAILURE, INTERRUPTED, JOB, RESULT, Failure, Request


def work(folder: Path) -> None:
    """Measure the folder's job, and leave there what came of it."""
    request = Request.decoded((folder / JOB).read_bytes())
    try:
        with progress.shown(request.shows_progress):
            result = sweep.measure(request.job)
    except GateError as error:
        (folder / FAILURE).write_bytes(msgspec.json.encode(Failure(str(error), is_gate=True)))
    except InputError as error:
        failure = Failure(error.what, error.where, error.expected, error.remedy)
        (folder / FAILURE).write_bytes(msgspec.json.encode(failure))
    except Exception:  # whatever it is, the process that waits shall tell it
        (folder / FAILURE).write_bytes(msgspec.json.encode(Failure(traceback.format_exc(), is_bug=True)))
    else:
        (folder / RESULT).write_bytes(msgspec.json.encode(result))


def main() -> None:
    threading.Thread(target=wait_for_parent, daemon=True).start()
    try:
        work(Path(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def wait_for_parent() -> None:
    """Leave at once when the process that started this one is gone, and its pipe with it."""
    os.read(sys.stdin.fileno(), 1)  # not through sys.stdin: its lock would be held when this process ends first
    os._exit(1)


if __name__ == "__main__":
    main()
