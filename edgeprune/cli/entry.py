"""One run of the command line: parses, runs the verb, and turns whatever ends it into an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from edgeprune.cli.app import app
from edgeprune.cli.config_file import config_tokens
from edgeprune.errors import EdgepruneError, InputError, unloadable
from edgeprune.io import progress
from edgeprune.training.ranks import Ranks

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
WORKSTATION_PACKAGES = {"torch", "torchvision", "sklearn", "scipy", "onnxsim", "onnxscript", "safetensors", "PIL"}
"""What `edgeprune[prune]` adds; a device has none of it."""
TRAINING_VERBS = ("train", "prune", "export")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. Of several ranks that train together the first alone shows
    progress and results, and the others leave at once when they are stopped: they have nothing to clean up."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    ranks = _ranks() if tokens and tokens[0] in TRAINING_VERBS else Ranks()
    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        return _run(tokens, ranks)
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _ranks() -> Ranks:
    """This process among others; alone where the environment makes no sense, as whoever trains there will say."""
    try:
        return Ranks.here()
    except InputError:
        return Ranks()


def _run(tokens: list[str], ranks: Ranks) -> int:
    told = partial(_told, speaker="edgeprune" if ranks.is_first else f"edgeprune: process {ranks.rank}")
    for stream in (sys.stdout, sys.stderr):  # a path that the terminal's encoding lacks must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with progress.shown(ranks.is_first and "--quiet" not in tokens), _stopped_cleanly(at_once=not ranks.is_first):
            app([*tokens, *config_tokens(tokens)], result_action="return_value")
            sys.stdout.flush()
    except EdgepruneError as error:
        return told(str(error), error.exit_code)
    except KeyboardInterrupt as error:
        return told(str(error) or "interrupted; nothing half-written was left", EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 2
    except OSError as error:  # a full disk, a device that is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        where = f"{error.filename}: " if error.filename else ""
        return told(f"{where}{error.strerror or error}", InputError.exit_code)
    except Exception as error:
        package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if package in WORKSTATION_PACKAGES:
            return told(f"this needs {package}: pip install 'edgeprune[prune]'", InputError.exit_code)
        if isinstance(error, ImportError) and (why := unloadable(error)) is not None:
            return told(str(why), InputError.exit_code)
        traceback.print_exc()
        return told("this is a bug of edgeprune; please report it with the lines above", EXIT_BUG)
    return 0


def _told(text: str, code: int, *, speaker: str) -> int:
    print(f"{speaker}: {text}", file=sys.stderr)
    return code


@contextmanager
def _stopped_cleanly(*, at_once: bool) -> Iterator[None]:
    """SIGTERM and SIGHUP (a dropped connection) end a run as Ctrl-C does, so that staged files are removed; further
    ones do not keep it from saying why it ends. With `at_once` all three end the process as they come: Python would
    hear them only after a call into torch, which may wait for another rank for ever."""

    def stop(number: int, frame: object) -> None:
        handle(signal.SIG_IGN)
        raise KeyboardInterrupt

    def handle(handler: signal.Handlers | Callable[[int, object], None]) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, handler)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handle(signal.SIG_DFL if at_once else stop)
    if at_once:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        handle(signal.SIG_IGN)
