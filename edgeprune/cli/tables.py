"""How the command line prints: tables and lines on standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from rich.table import Table

PIPE_WIDTH = 180
NUMERIC = frozenset("0123456789")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; cells that are numbers are set to the right."""
    body = [
        ["" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows
    ]
    shown = _titled(title, show_header=True)
    for number, column in enumerate(columns):
        numeric = all(not row[number] or row[number][0] in NUMERIC for row in body)
        shown.add_column(column, justify="right" if numeric and body else "left", overflow="fold")
    for row in body:
        shown.add_row(*map(_plain, row))
    _console().print(shown)


def facts(title: str, pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values, one a line."""
    shown = _titled(title, show_header=False)
    for name, value in pairs:
        shown.add_row(_plain(name), _plain(value))
    _console().print(shown)


def say(text: str) -> None:
    """A line as it is; names out of files are no markup."""
    _console().print(text, soft_wrap=True, highlight=False, markup=False)


def heading(text: str) -> None:
    """A line that stands above a table."""
    _console().print(f"\n{text}", markup=False, highlight=False, style="bold")


def milliseconds(value: float | None) -> str:
    """A table's cell."""
    return "" if value is None else f"{value:.3f}"


def speedup(value: float | None) -> str:
    """A speed-up as a table's cell."""
    return "" if value is None else f"{value:.2f}x"


def _titled(title: str, *, show_header: bool) -> Table:
    from rich.table import Table  # which no --help needs

    return Table(title=_plain(title), title_justify="left", title_style="bold", show_header=show_header)


def _plain(text: str) -> Any:
    from rich.text import Text  # names out of files must not be read as markup

    return Text(text)


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Nobody reads on (`| head`): print nothing more, but let the exit code still say how it went."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _console() -> Console:
    """Standard output; in a pipe or a file, lines are wide rather than wrapped."""
    console = _Output()
    return console if console.is_terminal or "COLUMNS" in os.environ else _Output(width=PIPE_WIDTH)
