"""One run of the command line: parses, runs the verb, and turns whatever ends it into an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from edgeprune.cli.app import app
from edgeprune.cli.config_file import config_tokens
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.io import progress

EXIT_BUG = 70
EXIT_INTERRUPTED = 130
WORKSTATION_PACKAGES = {"torch", "torchvision", "sklearn", "scipy", "onnxsim", "onnxscript", "safetensors", "PIL"}
"""What `edgeprune[prune]` adds; a device has none of it."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a path that the terminal's encoding lacks must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with progress.shown("--quiet" not in tokens), _stopped_cleanly():
            app([*tokens, *config_tokens(tokens)], result_action="return_value")
            sys.stdout.flush()
    except EdgepruneError as error:
        return _told(str(error), error.exit_code)
    except KeyboardInterrupt as error:
        return _told(str(error) or "interrupted; nothing half-written was left", EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 2
    except OSError as error:  # a full disk, a device that is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        where = f"{error.filename}: " if error.filename else ""
        return _told(f"{where}{error.strerror or error}", InputError.exit_code)
    except Exception as error:
        package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if package in WORKSTATION_PACKAGES:
            return _told(f"this needs {package}: pip install 'edgeprune[prune]'", InputError.exit_code)
        traceback.print_exc()
        return _told("this is a bug of edgeprune; please report it with the lines above", EXIT_BUG)
    return 0


def _told(text: str, code: int) -> int:
    print(f"edgeprune: {text}", file=sys.stderr)
    return code


@contextmanager
def _stopped_cleanly() -> Iterator[None]:
    """SIGTERM and SIGHUP (a dropped connection) end a run as Ctrl-C does, so that staged files are removed."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
