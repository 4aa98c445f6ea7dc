"""What networks return, whatever they return it in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


def tensors_in(value: object) -> list[Tensor]:
    """The tensors in a forward's result in order, out of tuples, lists, dictionaries, nested: the outputs of its ONNX
    file. A name, a number or None beside them is left out."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for part in value.values() for tensor in tensors_in(part)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [tensor for part in value for tensor in tensors_in(part)]
    return []
