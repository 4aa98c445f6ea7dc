"""OpenVINO's package, imported without its telemetry.

`import openvino` imports its converter of models, which tells Google Analytics of the import, through the package
openvino-telemetry, from a process of its own, and keeps a number for the user in the home folder. Where that package is
missing OpenVINO does without it: so it is hidden while OpenVINO is imported. The documented way to decline, `opt_in_out
--opt_out`, would decide for the user's other programs, too.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> ModuleType:
    """The package; as it is where the program had imported it before. ImportError where it is not installed."""
    known = sys.modules.pop(_TELEMETRY, None)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # the import system's sign for a module that is not there
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[_TELEMETRY]
        if known is not None:
            sys.modules[_TELEMETRY] = known
