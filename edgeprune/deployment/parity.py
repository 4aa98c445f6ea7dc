"""The parity gate: does the exported file compute what the pruned network should?

The reference is the dense network with zeros at the pruned weights, run in torch in float64; the exported file runs in
ONNX Runtime. Nothing that edgeprune did to the graph is shared between the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeprune.bundles.manifest import ParityRecord
from edgeprune.errors import GateError
from edgeprune.io.arrays import Array, Feeds, output_range
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner

TOLERANCE = 1e-4
"""On max_rel, float32."""


def random_inputs(shape: tuple[int, ...], seed: int, batch: int = 2) -> NDArray[np.float32]:
    """Standard normal inputs of shape (batch, *shape)."""
    return np.random.default_rng(seed).standard_normal((batch, *shape)).astype(np.float32)


def measure_parity(
    model: Path,
    inputs: Mapping[str, NDArray[np.float32] | Feeds],
    references: Mapping[str, list[NDArray[np.float64]]],
    tolerance: float = TOLERANCE,
) -> ParityRecord:
    """Run `model` on each named batch of inputs (by name where it has several) and compare its outputs with the
    references, in order.

    max_rel is the largest absolute difference over the output's range (`output_range`); the worst output counts.
    """
    runner = OrtRunner(model, RunOptions())
    max_abs = max_rel = 0.0
    try:
        for name, batch in inputs.items():
            outputs = runner.run({runner.input_names[0]: batch} if isinstance(batch, np.ndarray) else batch)
            found = differences(outputs.values(), references[name])
            max_abs, max_rel = max(max_abs, found[0]), max(max_rel, found[1])
    finally:
        runner.close()
    return ParityRecord(max_abs, max_rel, tolerance, bool(max_rel <= tolerance), tuple(inputs))


def differences(outputs: Iterable[Array], references: Iterable[NDArray[np.float64]]) -> tuple[float, float]:
    """The largest absolute difference of outputs from their references, in order, and the largest as a share of its
    output's range (`output_range`); infinite where either side is no number. GateError for another shape."""
    max_abs = max_rel = 0.0
    for output, reference in zip(outputs, references, strict=True):
        if output.shape != reference.shape:
            raise GateError(f"parity: output shape {output.shape}, the reference has {reference.shape}")
        difference = float(np.max(np.abs(output.astype(np.float64) - reference), initial=0.0))
        # NaN on either side must not pass as "not larger".
        max_abs = max(max_abs, difference if np.isfinite(difference) else np.inf)
        max_rel = max(max_rel, difference / output_range(reference) if np.isfinite(difference) else np.inf)
    return max_abs, max_rel


def require_parity(record: ParityRecord) -> None:
    """GateError if the exported model is outside the tolerance."""
    if not record.passed:
        raise GateError(
            f"parity failed: the exported model differs from the masked dense model by {record.max_rel:.2e} of the "
            f"output's range (tolerance {record.tolerance:.0e}, on {', '.join(record.inputs)} inputs)"
        )
