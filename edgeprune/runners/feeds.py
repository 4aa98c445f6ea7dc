"""Whether inputs are what a model takes: every runner checks them the same way, before it runs anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeprune.errors import InputError, unknown_name
from edgeprune.io.arrays import Feeds
from edgeprune.onnx_files.graph import TensorSpec


def check_feeds(feeds: Feeds, specs: Sequence[TensorSpec]) -> None:
    """InputError for the first input that is missing, unknown, or of the wrong rank, size or type."""
    names = [spec.name for spec in specs]
    for name in feeds:
        if name not in names:
            raise unknown_name("input", name, names)
    sizes: dict[str, int] = {}
    for spec in specs:
        if spec.name not in feeds:
            raise InputError(f"input {spec.name!r} is missing", expected=f"inputs {', '.join(names)}")
        value = np.asarray(feeds[spec.name])
        if spec.dtype and str(value.dtype) != spec.dtype:
            raise InputError(
                f"input {spec.name!r} is {value.dtype}",
                expected=spec.dtype,
                remedy=_converted(str(value.dtype), spec.dtype),
            )
        if spec.states_shape and not _fits(value.shape, spec.shape, sizes):
            shape = shape_text(spec.shape)
            raise InputError(f"input {spec.name!r} has shape {value.shape}", expected=f"shape {shape}")


def _converted(found: str, wanted: str) -> str:
    if found.startswith("float") and wanted.startswith(("int", "uint")):
        return f"pass {wanted}, such as pixels that are not normalised: a conversion would cut fractions off"
    return f"convert it with .astype({wanted!r})"


def shape_text(shape: Sequence[int | str | None]) -> str:
    """As in (batch, 3, 32, 32)."""
    return "(" + ", ".join("?" if dim is None else str(dim) for dim in shape) + ")"


def _fits(shape: tuple[int, ...], wanted: Sequence[int | str | None], sizes: dict[str, int]) -> bool:
    """Whether a shape fits; a named dimension has the same size everywhere (collected in `sizes`)."""
    if len(shape) != len(wanted):
        return False
    for size, dim in zip(shape, wanted, strict=True):
        expected = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
        if expected is not None and size != expected:
            return False
    return True
