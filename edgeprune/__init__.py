"""edgeprune: prune a trained CNN into something that really runs faster on an edge device.

The verbs of the command line are functions here: `train`, `prune`, `export`, `tune`, `split`, `run`, `profile`,
`write_report`.
They are loaded when they are first used, so that `import edgeprune` needs neither torch nor ONNX Runtime.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeprune.api import export as export
    from edgeprune.api import profile as profile
    from edgeprune.api import prune as prune
    from edgeprune.api import run as run
    from edgeprune.api import split as split
    from edgeprune.api import train as train
    from edgeprune.api import tune as tune
    from edgeprune.api import write_report as write_report

# ONNX Runtime's packages since 1.29 number the machine, in the home folder, and tell Microsoft of each session, with
# names and hashes of the model. It reads this when it is imported; a user who has decided has the last word.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["export", "profile", "prune", "run", "split", "train", "tune", "write_report"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("edgeprune.api"), name)
    raise AttributeError(f"module 'edgeprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
