"""Progress bars. The CLI switches them on; used as a library, edgeprune is silent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
_shown: ContextVar[bool] = ContextVar("edgeprune_progress", default=False)


@contextmanager
def shown(on: bool = True) -> Iterator[None]:
    """Show (or hide) progress bars and notes on standard error while the block runs."""
    token = _shown.set(on)
    try:
        yield
    finally:
        _shown.reset(token)


def note(text: str) -> None:
    """One line for the user on standard error, where progress is shown."""
    if _shown.get():
        _console().print(text, highlight=False, markup=False, soft_wrap=True)


def track(items: Iterable[T], what: str, *, total: int | None = None) -> Iterator[T]:
    """Yield `items`, showing a bar labelled `what` (on a terminal), or its first and last line (elsewhere)."""
    if not _shown.get():
        yield from items
        return
    console = _console()
    if not console.is_terminal:
        console.print(f"{what} ...", highlight=False, markup=False)
        yield from items
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield from bar.track(items, total=total, description=what)


def _console() -> Console:
    from rich.console import Console  # rich is imported only where something is shown

    return Console(stderr=True)
