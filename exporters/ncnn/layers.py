"""ncnn's files as values: a layer, and a network of them as text (`.param`) and as weights (`.bin`).

The text has a line a layer: type, name, numbers of inputs and outputs, their names, then `id=value` for what differs
from the layer's defaults; an array is `-233XX=length,values`, where XX is its id. The weights follow each other in the
order of the layers. (ncnn, docs/developer-guide/param-and-model-file-structure.md and operators.md)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

MAGIC = "7767517"
_ARRAY = -23300
LONGEST_NAME = 240
"""ncnn reads 255 characters of a name; a number may have to follow."""

Value = int | float | tuple[int, ...] | tuple[float, ...]


@dataclass(frozen=True)
class Layer:
    """One layer of ncnn; blobs go by the names of the ONNX values, or by fresh ones."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: Mapping[int, Value] = field(default_factory=dict)
    weights: bytes = b""


@dataclass(frozen=True)
class NcnnNetwork:
    """Layers in an order in which they can run. Each blob is written once and read once at most."""

    layers: tuple[Layer, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def param(self) -> str:
        """The text file."""
        blobs = sum(len(layer.outputs) for layer in self.layers)
        return "\n".join([MAGIC, f"{len(self.layers)} {blobs}", *map(_line, self.layers)]) + "\n"

    def weights(self) -> bytes:
        """The file of weights: float32, little endian."""
        return b"".join(layer.weights for layer in self.layers)


def tagged(values: ArrayLike) -> bytes:
    """Weights that ncnn may hold in several types: behind a tag, which is 0 for float32."""
    return bytes(4) + plain(values)


def plain(values: ArrayLike) -> bytes:
    """Weights that ncnn holds in float32 alone."""
    return np.ascontiguousarray(values, "<f4").tobytes()


def blob_sizes(shape: Sequence[int]) -> dict[int, Value]:
    """The parameters by which Input, Reshape and MemoryData tell the shape of a blob of 1 to 4 axes, outermost first:
    (w), (h, w), (c, h, w) or (c, d, h, w)."""
    ids = {1: (0,), 2: (1, 0), 3: (2, 1, 0), 4: (2, 11, 1, 0)}[len(shape)]
    return dict(sorted(zip(ids, shape, strict=True)))


def _line(layer: Layer) -> str:
    names = [*layer.inputs, *layer.outputs]
    counts = f"{len(layer.inputs)} {len(layer.outputs)}"
    params = [_param(key, value) for key, value in sorted(layer.params.items())]
    return " ".join([f"{layer.kind:<24} {layer.name:<24} {counts}", *names, *params])


def _param(key: int, value: Value) -> str:
    if isinstance(value, tuple):
        return f"{_ARRAY - key}={','.join([str(len(value)), *map(_number, value)])}"
    return f"{key}={_number(value)}"


def _number(value: float) -> str:
    """Nine digits tell every float32, and the exponent that it is one."""
    return f"{value:.8e}" if isinstance(value, float) else str(value)
