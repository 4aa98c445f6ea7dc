"""torch's exporter parses the source of 500 functions at every export, half a second long: here, once a process."""

from __future__ import annotations

import functools
import importlib

_REGISTRATION = "torch.onnx._internal.exporter._registration"
_LIBRARY, _PARSED = "onnxscript_apis", "get_torchlib_ops"


@functools.cache
def keep_function_table(registration: str = _REGISTRATION) -> bool:
    """From now on `torch.onnx.export` is handed what was parsed first; whether this torch has such a place, which is
    none of its public ones. Without it, every export parses anew."""
    try:
        library = getattr(importlib.import_module(registration), _LIBRARY)
        setattr(library, _PARSED, functools.cache(getattr(library, _PARSED)))
    except (ImportError, AttributeError):
        return False
    return True
