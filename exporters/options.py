"""How ONNX files, and those of other runtimes, are written. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgeprune.errors import unknown_name
from edgeprune.io.arrays import Feeds
from edgeprune.precision.formats import Precision
from edgeprune.precision.weight_bits import WeightBits

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


IoLayout = Literal["nhwc", "nchw"]
IO_LAYOUTS: tuple[IoLayout, ...] = ("nhwc", "nchw")


@dataclass(frozen=True)
class ConvertOptions:
    """How to write a network in another runtime's format."""

    io_layout: IoLayout = "nhwc"
    """Of inputs and outputs with four axes, where the format leaves a choice."""
    input_size: tuple[int, ...] = ()
    """Sizes of the input's last axes, as (H, W) or (C, H, W), where the ONNX file leaves them open."""
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    """Name -> what to keep under it inside of the file, where the format has a place for it."""
    precision: Precision = "fp32"
    """Number format of weights and activations."""
    batches: tuple[Feeds, ...] = ()
    """Inputs that calibrate INT8, by the ONNX file's names and in its shapes."""
    weight_bits: WeightBits = "auto"
    """Of INT8's weights, where the format has no rule of its own."""
    fp32_layers: tuple[str, ...] = ()
    """ONNX nodes that INT8 leaves in FP32."""

    def check(self) -> None:
        """InputError for values that cannot work."""
        if self.io_layout not in IO_LAYOUTS:
            raise unknown_name("layout", self.io_layout, IO_LAYOUTS)
