"""The report: what a bundle promises, what was measured, and why the two differ, as HTML, Markdown, JSON and CSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgeprune.errors import InputError, unknown_name
from edgeprune.report.contents import Contents, read_contents
from edgeprune.report.data import to_csv, to_json
from edgeprune.report.markdown import to_markdown

__all__ = ["FORMATS", "write_report"]


def write_report(bundle_folder: Path, formats: Sequence[str], *, into: Path) -> list[Path]:
    """Write report.FORMAT for every format ("html", "md", "json", "csv") into the folder `into`; returns the paths.

    Made from what the bundle holds; what it does not hold (a profile, a split, the dense model) is left out, and the
    report says how to get it. InputError if the folder is no bundle, a file in it is damaged, a format is unknown, or
    the packages that HTML needs are missing.
    """
    for name in formats:
        if name not in FORMATS:
            raise unknown_name("report format", name, FORMATS)
    if not formats:
        raise InputError("no report format given", expected=f"one of {', '.join(FORMATS)}")
    contents = read_contents(bundle_folder)
    rendered = {name: FORMATS[name](contents) for name in dict.fromkeys(formats)}
    paths = []
    for name, text in rendered.items():
        path = into / f"report.{name}"
        path.write_text(text, encoding="utf-8", newline="\n")
        paths.append(path)
    return paths


def _to_html(contents: Contents) -> str:
    from edgeprune.report.html import to_html  # jinja2 and matplotlib are not installed on the device

    return to_html(contents)


FORMATS: Mapping[str, Callable[[Contents], str]] = {
    "html": _to_html,
    "md": to_markdown,
    "json": to_json,
    "csv": to_csv,
}
"""Format -> what makes its text."""
