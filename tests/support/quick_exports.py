"""One table of ONNX functions for all exports of a process.

`torch.onnx.export` makes its table anew each time: it parses the source of 500 functions, which takes half of the time
that a small network's export does.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

_MODULE = "torch.onnx._internal.exporter._registration"
_MARK = "remembers_torchlib"


def remember_torchlib(*, importing: bool = False) -> None:
    """From now on, `torch.onnx.export` gets copies of the table that was made first for its opset. Does nothing in a
    process that has not imported the exporter, since that alone takes seconds; unless with `importing`."""
    if importing:
        importlib.import_module(_MODULE)
    registration: Any = sys.modules.get(_MODULE)
    registry = getattr(registration, "ONNXRegistry", None)
    make = getattr(registry, "from_torchlib", None)
    if make is None or hasattr(registry, _MARK):  # another torch may have no such table
        return
    made: dict[Any, Any] = {}

    def from_torchlib(_: type[Any], opset_version: int = registration._constants.TORCHLIB_OPSET) -> Any:
        if opset_version not in made:
            made[opset_version] = make(opset_version)
        copy = registry()
        copy._opset_version = opset_version
        copy.functions = {target: list(found) for target, found in made[opset_version].functions.items()}
        return copy

    registry.from_torchlib = classmethod(from_torchlib)
    setattr(registry, _MARK, True)
