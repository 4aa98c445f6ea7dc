"""`edgeprune list`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from edgeprune.cli.flags.common import Common
from edgeprune.cli.tables import heading, table

if TYPE_CHECKING:
    from edgeprune.pipeline.list import Row


def list_(what: Literal["methods", "archs", "targets", "devices"], /, *, common: Common = Common()) -> None:
    """What there is: methods with their settings, architectures, targets and device profiles.

    **Examples**

    - `edgeprune list methods`

    Parameters
    ----------
    what
        methods, archs, targets or devices.
    """
    from edgeprune.pipeline import list as steps

    rows = steps.rows(what)
    show(what, rows)
    common.write([row for row in rows])


def show(what: str, rows: Sequence[Row]) -> None:
    if what == "methods":
        _methods(rows)
    elif rows:
        table(what, tuple(rows[0]), [tuple(row.values()) for row in rows])


def _methods(rows: Sequence[Row]) -> None:
    """One table a method, its summary above its settings."""
    for head in (row for row in rows if not row["setting"]):
        heading(f"{head['method']}: {head['what']}")
        settings = [row for row in rows if row["method"] == head["method"] and row["setting"]]
        columns = ("setting", "default", "paper", "what")
        table("set with --set NAME=VALUE", columns, [tuple(row[name] for name in columns) for row in settings])
