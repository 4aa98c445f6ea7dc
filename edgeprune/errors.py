"""The errors that edgeprune raises on purpose, each with the exit code that the CLI gives it."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable


class EdgepruneError(Exception):
    """Base of all errors raised on purpose; `exit_code` is the CLI's exit status."""

    exit_code = 70


class InputError(EdgepruneError):
    """The user's input is at fault. The message is one line: where, what, expected, remedy."""

    exit_code = 1

    def __init__(self, what: str, *, where: object = "", expected: str = "", remedy: str = "") -> None:
        self.what, self.where, self.expected, self.remedy = what, str(where), expected, remedy
        super().__init__(what)

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.remedy:
            parts.append(self.remedy)
        return " ".join("; ".join(parts).split())


class UsageError(InputError):
    """The command line cannot be read: what is no number, where one is asked for."""

    exit_code = 2


class Interrupted(KeyboardInterrupt):
    """The user stopped a run; the text says what is left of it."""


class GateError(EdgepruneError):
    """A gate (parity, --max-drop, --min-speedup) failed: the input was fine, the result is not good enough."""

    exit_code = 3


class SlowPathError(GateError):
    """A runtime would compute the network's layers, but not by its fast kernels."""


def unloadable(error: ImportError, *, where: str = "") -> InputError | None:
    """An error for a package that is there but does not load, such as without a library of its own; None where it is
    edgeprune's own module that does not."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    inside = next((name for name in reversed(frames) if not name.startswith("importlib")), "")
    package = (error.name or inside).partition(".")[0]
    if package in ("", "edgeprune"):
        return None
    return InputError(
        f"the package {package} cannot be loaded: {first_line(error)}",
        where=where,
        remedy="install it anew, with the libraries that it loads",
    )


def unknown_name(kind: str, name: str, known: Iterable[str], *, remedy: str = "") -> InputError:
    """An error for a name that is not in `known`, with the nearest names suggested."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    expected = f"one of {', '.join(choices)}" if len(choices) <= 12 else f"one of {len(choices)} known names"
    hint = f"did you mean {' or '.join(near)}?" if near else remedy
    return InputError(f"unknown {kind} {name!r}", expected=expected, remedy=hint)


def first_line(error: BaseException) -> str:
    """The first line of an error's text (or its type's name), for quoting a library's error inside ours."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".:") if text else type(error).__name__
