"""The report as one HTML file that asks for nothing outside itself."""

from __future__ import annotations

from importlib import resources

from edgeprune.devices.this_machine import is_importable
from edgeprune.errors import InputError
from edgeprune.report.contents import Contents
from edgeprune.report.document import Document, Notes, Picture, Table
from edgeprune.report.page.sections import build_document

TEMPLATE, STYLE = "report.html", "report.css"


def to_html(contents: Contents) -> str:
    """The whole report of a bundle; InputError if jinja2 or matplotlib is not installed."""
    require_packages()
    return render(build_document(contents))


def require_packages() -> None:
    """InputError if a page cannot be made here."""
    missing = [name for name in ("jinja2", "matplotlib") if not is_importable(name)]
    if missing:
        raise InputError(
            f"an HTML report needs {' and '.join(missing)}", remedy="pip install 'edgeprune[report]', or --format md"
        )


def render(document: Document) -> str:
    """A document as one page; jinja2 and matplotlib must be installed."""
    import jinja2
    from markupsafe import Markup

    from edgeprune.report.figures.pictures import draw

    def kind(block: object) -> str:
        kinds = {str: "text", Table: "table", Picture: "picture", Notes: "notes"}
        return kinds[type(block)]

    files = resources.files("edgeprune.report.page")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["kind"] = kind
    environment.filters["draw"] = lambda picture: Markup(draw(picture))
    template = environment.from_string(files.joinpath(TEMPLATE).read_text("utf-8"))
    style = Markup(files.joinpath(STYLE).read_text("utf-8"))
    return template.render(document=document, style=style)
