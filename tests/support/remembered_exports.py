"""Exports into bundles that give what an export before gave, for tests of what comes before or behind an export."""

from __future__ import annotations

import hashlib

import pytest
from onnx import ModelProto
from torch import Tensor, nn

from edgeprune.deployment import exporting
from edgeprune.exporters.options import ExportOptions

_EXPORTED: dict[str, bytes] = {}


def remember_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, networks that were exported into a bundle before have the same ONNX model again.

    Each file is still held against its network by the parity gate. Not for tests that compare two exports.
    """
    export = exporting.to_onnx

    def remembered(module: nn.Module, example: Tensor, options: ExportOptions | None = None) -> ModelProto:
        key = _key(module, example, options)
        if key not in _EXPORTED:
            _EXPORTED[key] = export(module, example, options).SerializeToString()
        return ModelProto.FromString(_EXPORTED[key])

    monkeypatch.setattr(exporting, "to_onnx", remembered)


def _key(module: nn.Module, example: Tensor, options: ExportOptions | None) -> str:
    """Of all that decides about the ONNX model: layers, what is done between them, weights, and how to export."""
    code = getattr(module, "code", "")  # torch.fx has the forward as text
    described = f"{type(module).__qualname__} {module} {code} {tuple(example.shape)} {options}"
    found = hashlib.sha256(described.encode())
    for name, tensor in module.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()
