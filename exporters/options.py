"""How `export` writes and checks ONNX files. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

OLDEST_OPSET = 18
"""The exporter does not go below it."""


@dataclass(frozen=True)
class ExportOptions:
    """How to write the ONNX file."""

    opset: int = 20
    dynamic_batch: bool = True
    simplify: bool = True
    input_name: str = "input"
    output_names: tuple[str, ...] = ()
    """Of all outputs, in order; by default one is named `output`, and several as torch names them."""
