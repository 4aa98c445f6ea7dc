"""A value of the ONNX network and how the .tflite file holds it: the order of its axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHANNELS_LAST = (0, 2, 3, 1)
"""Order in which LiteRT's convolutions take ONNX's (N, C, H, W): (N, H, W, C)."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the file, or a constant that no tensor holds yet."""

    shape: tuple[int, ...]
    """As ONNX has it."""
    order: tuple[int, ...]
    """Which of ONNX's axes each axis of the tensor holds: CHANNELS_LAST says that it holds (N, H, W, C)."""
    tensor: int = -1
    """Its number in the file."""
    data: NDArray[Any] | None = None
    """Of a constant, its values in ONNX's order."""
    columns: NDArray[np.int64] | None = None
    """Of a value (N, F) whose columns lie in another order: which of ONNX's columns each of them is."""

    @property
    def held_shape(self) -> tuple[int, ...]:
        """The tensor's."""
        return tuple(self.shape[axis] for axis in self.order)

    def place(self, axis: int) -> int:
        """Where the tensor has an axis of ONNX's, which may count from the end."""
        return self.order.index(axis % len(self.shape))


def plain(rank: int) -> tuple[int, ...]:
    """The order that ONNX has itself."""
    return tuple(range(rank))


def wide_axes(value: Value, order: tuple[int, ...]) -> list[int]:
    """The axes of more than one element, in this order: what alone matters for where the elements lie."""
    return [axis for axis in order if value.shape[axis] != 1]
