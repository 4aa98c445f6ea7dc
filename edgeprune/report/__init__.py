"""The report: what a bundle promises, what was measured, and why the two differ, as HTML, Markdown, JSON and CSV; and
several runs beside each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgeprune.errors import InputError, unknown_name
from edgeprune.io.files import write_atomically
from edgeprune.report.comparison.compared import Compared
from edgeprune.report.comparison.data import comparison_to_csv, comparison_to_json
from edgeprune.report.comparison.page import build_comparison
from edgeprune.report.contents import Contents, read_contents
from edgeprune.report.page.data import to_csv, to_json
from edgeprune.report.page.markdown import render, to_markdown

__all__ = ["COMPARISON_FORMATS", "FORMATS", "check_formats", "write_comparison", "write_report"]


def check_formats(formats: Sequence[str]) -> None:
    """InputError if a format is unknown, or there is none."""
    for name in formats:
        if name not in FORMATS:
            raise unknown_name("report format", name, FORMATS)
    if not formats:
        raise InputError("no report format given", expected=f"one of {', '.join(FORMATS)}")


def write_report(bundle_folder: Path, formats: Sequence[str], *, into: Path, run: Path | None = None) -> list[Path]:
    """Write report.FORMAT for every format ("html", "md", "json", "csv") into the folder `into`; returns the paths.

    Made from what the bundle holds; what it does not hold (a profile, a split, the dense model) is left out, and the
    report says how to get it. `run`: what `edgeprune run --json` wrote, shown beside the prediction. InputError if the
    folder is no bundle, a file in it is damaged, a format is unknown, or the packages that HTML needs are missing.
    """
    check_formats(formats)
    contents = read_contents(bundle_folder, run)
    rendered = {name: FORMATS[name](contents) for name in dict.fromkeys(formats)}
    paths = []
    for name, text in rendered.items():
        path = into / f"report.{name}"
        path.write_text(text, encoding="utf-8", newline="\n")
        paths.append(path)
    return paths


def write_comparison(compared: Compared, paths: Mapping[str, Path]) -> None:
    """Write several runs beside each other: format -> file. InputError as `write_report`."""
    check_formats(tuple(paths))
    rendered = {name: COMPARISON_FORMATS[name](compared) for name in paths}
    for name, text in rendered.items():
        write_atomically(paths[name], text.encode())


def _to_html(contents: Contents) -> str:
    from edgeprune.report.page.html import to_html  # jinja2 and matplotlib are not installed on the device

    return to_html(contents)


def _comparison_to_html(compared: Compared) -> str:
    from edgeprune.report.page import html

    html.require_packages()
    return html.render(build_comparison(compared))


def _comparison_to_markdown(compared: Compared) -> str:
    return render(build_comparison(compared))


FORMATS: Mapping[str, Callable[[Contents], str]] = {
    "html": _to_html,
    "md": to_markdown,
    "json": to_json,
    "csv": to_csv,
}
"""Format -> what makes its text."""
COMPARISON_FORMATS: Mapping[str, Callable[[Compared], str]] = {
    "html": _comparison_to_html,
    "md": _comparison_to_markdown,
    "json": comparison_to_json,
    "csv": comparison_to_csv,
}
"""The same for several runs."""
