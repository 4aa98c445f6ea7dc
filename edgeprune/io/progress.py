"""Progress bars. The CLI switches them on; used as a library, edgeprune is silent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
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


def is_shown() -> bool:
    """Whether progress is shown here."""
    return _shown.get()


def note(text: str) -> None:
    """One line for the user on standard error, where progress is shown."""
    if _shown.get():
        _console().print(text, highlight=False, markup=False, soft_wrap=True)


def track(items: Iterable[T], what: str, *, total: int | None = None) -> Iterator[T]:
    """Yield `items`, showing a bar labelled `what` (on a terminal), or its first line (elsewhere)."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(what, total) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def bar(what: str, total: int | None, *, done: int = 0) -> Iterator[Callable[[], None]]:
    """Show a bar labelled `what` while the block runs, with what is left of the time; call what it gives after each
    of `total` steps, of which `done` are done already."""
    if not _shown.get():
        yield lambda: None
        return
    console = _console()
    if not console.is_terminal:
        console.print(f"{what} ...", highlight=False, markup=False)
        yield lambda: None
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
    with Progress(*columns, console=console) as shown_bar:
        task = shown_bar.add_task(what, total=total, completed=done)
        yield lambda: shown_bar.advance(task)


@lru_cache(maxsize=1)
def _console() -> Console:
    """One for all, so that notes are printed above the bars that are shown."""
    from rich.console import Console  # rich is imported only where something is shown

    return Console(stderr=True)
