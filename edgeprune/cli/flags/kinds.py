"""The groups that the help shows flags in, and the kinds of values that flags take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar, dataclass_transform

from cyclopts import Group, Parameter, Token

from edgeprune.errors import InputError, UsageError

NETWORK = Group("Network", sort_key=1)
PRUNING = Group("Pruning", sort_key=2)
TRAINING = Group("Training", sort_key=2)
DATA = Group("Data", sort_key=3)
EXPORT = Group("Export", sort_key=4)
MEASURING = Group("Measuring", sort_key=4)
COMMON = Group("Common", sort_key=9)

T = TypeVar("T")


@dataclass_transform(eq_default=False, frozen_default=True)
def flags(cls: type[T]) -> type[T]:
    """Flags of one subject: a frozen dataclass without comparison and text, which are not used and cost --help 3 %."""
    return dataclass(frozen=True, eq=False, repr=False)(cls)


def _integer(kind: type, tokens: Sequence[Token]) -> int:
    """An integer, where the parser's own conversion would cut 4.5 down to 4."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no integer") from None


Integer = Annotated[int, Parameter(converter=_integer)]
OptionalInteger = Annotated[int | None, Parameter(converter=_integer, show_default=False)]
OptionalNumber = Annotated[float | None, Parameter(show_default=False)]
Switch = Annotated[bool, Parameter(negative="", show_default=False)]
OptionalText = Annotated[str, Parameter(show_default=False)]
OptionalPath = Annotated[Path | None, Parameter(show_default=False)]
Texts = Annotated[tuple[str, ...], Parameter(negative_iterable="", show_default=False)]
"""Flags whose default (off, empty) tells nothing, so that the help leaves it out."""


def integers(flag: str, text: str) -> tuple[int, ...]:
    """Integers separated by commas; UsageError for anything else."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{flag} {text!r} is no list of integers", expected="such as 1 or 1,8") from None


def parse_input_size(text: str) -> tuple[int, ...]:
    """(H, W) or (C, H, W) from `H,W`, `C,H,W` or the same with `x` between; empty for an empty text."""
    if not text:
        return ()
    try:
        size = tuple(int(part) for part in text.lower().replace("x", ",").split(","))
    except ValueError:
        size = ()
    if len(size) not in (2, 3) or min(size) < 1:
        raise InputError(
            f"--input-size {text!r} is no size",
            expected="H,W or C,H,W, such as 224,224 or 3,224,224, of a network of 2-D convolutions",
        )
    return size


def parse_open_size(text: str) -> tuple[int, ...]:
    """The last axes of an ONNX file's input, from `L`, `H,W`, `C,H,W` ... or the same with `x` between; empty for an
    empty text."""
    if not text:
        return ()
    try:
        size = tuple(int(part) for part in text.lower().replace("x", ",").split(","))
    except ValueError:
        size = ()
    if not size or min(size) < 1:
        raise InputError(f"--input-size {text!r} is no size", expected="sizes such as 224,224 or 3,224,224")
    return size
