"""The examples' modules, which lie in no package."""

import importlib
import sys
from pathlib import Path
from typing import Any


def load(folder: Path, name: str) -> Any:
    """A module of this folder, which is on the path only while it is imported."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
