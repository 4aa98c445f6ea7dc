"""`edgeprune inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from edgeprune.cli.flags.common import Common
from edgeprune.cli.flags.kinds import COMMON, OptionalText, parse_open_size
from edgeprune.cli.tables import facts, table

if TYPE_CHECKING:
    from edgeprune.pipeline.inspect import Inspection


def inspect(
    path: Path,
    /,
    *,
    input_size: Annotated[OptionalText, Parameter(group=COMMON)] = "",
    common: Common = Common(),
) -> None:
    """What is in a checkpoint, an ONNX file or a bundle; a bundle's hashes are verified.

    **Examples**

    - `edgeprune inspect out/`
    - `edgeprune inspect model.onnx`
    - `edgeprune inspect model.pt`

    Parameters
    ----------
    path
        A checkpoint, an ONNX file or a bundle.
    input_size
        Sizes of the input's last axes, such as H,W or C,H,W, for which the multiply-adds of an ONNX file are counted
        that leaves more open than the batch.
    """
    from edgeprune.pipeline import inspect as steps

    result = steps.inspect(path, parse_open_size(input_size))
    show(result)
    common.write(result)
    steps.require_sound(result)


def show(result: Inspection) -> None:
    facts(f"{result.path}: {result.kind}", result.facts.items())
    if result.rows:
        table("", result.columns, result.rows)
