"""What `export` is told of the files that it writes and checks. Importing this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import onnx

from edgeprune.deployment.parity import TOLERANCE
from edgeprune.deployment.quantizing import Calibration
from edgeprune.errors import InputError
from edgeprune.exporters.conversions import conversion_named
from edgeprune.exporters.options import OLDEST_OPSET, ExportOptions
from edgeprune.io.arrays import load_array
from edgeprune.precision.formats import Precision


@dataclass(frozen=True)
class DeployOptions:
    """How to export."""

    onnx: ExportOptions = field(default_factory=ExportOptions)
    tolerance: float = TOLERANCE
    """On the parity gate's max_rel."""
    inputs: Path | None = None
    """.npy with real inputs (N, C, H, W) for the parity gate."""
    seed: int = 0
    to: tuple[str, ...] = ()
    """Formats of other runtimes in which both networks are written, too."""
    to_precision: Precision = "fp32"
    """In which number format."""
    calibration: Calibration = Calibration("")
    """For INT8."""

    def check(self) -> None:
        """InputError for values that cannot work; called before any long work."""
        newest = onnx.defs.onnx_opset_version()
        if not OLDEST_OPSET <= self.onnx.opset <= newest:
            raise InputError(f"--opset {self.onnx.opset} is out of range", expected=f"{OLDEST_OPSET} to {newest}")
        if not 0 < self.tolerance < 1:
            raise InputError(
                f"--tolerance {self.tolerance} is out of range", expected="above 0 and below 1, such as 1e-4"
            )
        if self.inputs is not None:
            load_array(self.inputs)
        for name in self.to:
            conversion_named(name, self.to_precision)
        if self.to_precision != "fp32":
            if not self.to:
                raise InputError(
                    f"--to-precision {self.to_precision} is for --to",
                    remedy="name a format, or leave it out: `edgeprune profile --precision` converts ONNX files",
                )
            self.calibration.check()
