"""The report as Markdown: the same tables as in HTML, with words for pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgeprune.report.contents import Contents
from edgeprune.report.document import Block, Document, Notes, Picture, Table
from edgeprune.report.page.sections import build_document

_SPECIAL = re.compile(r"([\\`*\[\]|#])")


def to_markdown(contents: Contents) -> str:
    """The whole report of a bundle."""
    return render(build_document(contents))


def render(document: Document) -> str:
    """A document as GitHub-flavoured Markdown."""
    lines = [f"# {escaped(document.title)}", "", escaped(document.subtitle), "", escaped(document.summary), ""]
    for section in document.sections:
        body = [line for block in section.blocks for line in _block(block)]
        if body:
            lines += [f"## {escaped(section.title)}", "", *body]
    return "\n".join(lines).rstrip() + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, markup and HTML in it included."""
    harmless = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", " ".join(harmless.split()))


def _block(block: Block) -> Iterator[str]:
    match block:
        case str():
            yield from (escaped(block), "")
        case Notes():
            yield from (f"- {escaped(item)}" for item in block.items)
            yield ""
        case Table():
            yield from (f"**{escaped(block.caption)}**", "")
            yield _row([column.name for column in block.columns])
            yield "|" + "|".join("---:" if column.numeric else "---" for column in block.columns) + "|"
            yield from (_row(list(row)) for row in block.rows)
            yield ""
        case Picture():
            yield from (escaped(block.text), "") if block.text else ()


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(escaped(cell) for cell in cells) + " |"
