"""How data is named on the command line. Importing this module does not import torch."""

from __future__ import annotations

from edgeprune.errors import InputError, unknown_name
from edgeprune.io.user_code import check_factory_file, is_file_spec

SOURCES = ("digits", "cifar10:DIR", "imagefolder:DIR", "path/to/file.py:factory")


def check_source(spec: str) -> None:
    """InputError if there is no such data source, or it names no folder or file."""
    kind, _, folder = spec.partition(":")
    if is_file_spec(spec):
        check_factory_file(spec, "data")
    elif kind in ("cifar10", "imagefolder"):
        if not folder:
            raise InputError(f"{spec!r} names no folder", expected=f"{kind}:DIR")
    elif spec != "digits":
        raise unknown_name("data source", spec, SOURCES)
