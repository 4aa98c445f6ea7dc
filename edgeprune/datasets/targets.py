"""Targets of any structure: a tensor (N, ...), a list with an entry an image, or a dictionary or tuple of such."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import InputError


def as_targets(value: Any, count: int, where: str) -> Any:
    """What the user gave, arrays as tensors; InputError unless each part of it is for `count` images."""

    def checked(part: Any) -> Any:
        part = torch.as_tensor(part) if isinstance(part, np.ndarray) else part
        is_one_each = isinstance(part, list) or (isinstance(part, Tensor) and part.ndim > 0)
        if not is_one_each or len(part) != count:
            got = tuple(part.shape) if isinstance(part, Tensor) else f"a {type(part).__name__}"
            raise InputError(
                f"targets of {got}" + (f" of {len(part)}" if isinstance(part, list) else ""), where=where,
                expected=f"for {count} images: a tensor ({count}, ...), a list of {count}, or a dictionary of these",
            )  # fmt: skip
        return part

    return _mapped(value, checked)


def taken(targets: Any, chosen: slice | Tensor) -> Any:
    """The targets of some of the images; `chosen`: a slice, or their numbers (n,)."""
    numbers = None if isinstance(chosen, slice) else chosen.tolist()

    def part_of(part: Any) -> Any:
        if isinstance(part, list):
            return part[chosen] if numbers is None else [part[number] for number in numbers]
        return part[chosen]

    return _mapped(targets, part_of)


def moved(targets: Any, device: torch.device) -> Any:
    """The targets with every tensor in them, also in the entries of lists, on the device."""
    if isinstance(targets, Tensor):
        return targets.to(device)
    if isinstance(targets, list):
        return [moved(part, device) for part in targets]
    if isinstance(targets, (dict, tuple)):
        return _mapped(targets, lambda part: moved(part, device))
    return targets


def leaves(targets: Any) -> Iterator[Any]:
    """Every tensor, and whatever else is no list, tuple or dictionary."""
    if isinstance(targets, (dict, list, tuple)):
        for part in targets.values() if isinstance(targets, dict) else targets:
            yield from leaves(part)
    else:
        yield targets


def _mapped(targets: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of each part that holds one entry an image."""
    if isinstance(targets, dict):
        return {name: _mapped(part, function) for name, part in targets.items()}
    if isinstance(targets, tuple):
        return tuple(_mapped(part, function) for part in targets)
    return function(targets)
