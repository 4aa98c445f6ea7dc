"""Modules imported each in a process of its own, where nothing of edgeprune was imported before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LIGHT = ("numpy", "onnx", "onnxruntime", "msgspec", "rich")
"""What the light install has, and what takes most of the time of every import."""

_CODE = """
import importlib, os, sys, traceback
before, after, light, modules = sys.argv[1], sys.argv[2], sys.argv[3].split(), sys.argv[4:]
exec(before)
for name in light:
    importlib.import_module(name)
assert not any(name.partition(".")[0] == "edgeprune" for name in sys.modules)
for module in modules:
    child = os.fork()
    if not child:
        try:
            importlib.import_module(module)
            exec(after)
        except BaseException:
            print(module, traceback.format_exc().replace("\\n", " | "), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(module, "its process was ended from outside", flush=True)
"""


def failed_imports(modules: Sequence[str], folder: Path, *, before: str = "", after: str = "") -> dict[str, str]:
    """Module -> what went wrong, for those that cannot be imported; each is imported in a process that was forked from
    one with the light packages alone, which ran the code `before`. `after` is run behind the import."""
    command = [sys.executable, "-c", _CODE, before, after, " ".join(LIGHT), *modules]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())
