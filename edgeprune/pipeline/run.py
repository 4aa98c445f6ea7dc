"""`edgeprune run`: inputs through a bundle, split or not."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.names import MODEL, PARTITION
from edgeprune.errors import InputError
from edgeprune.io.arrays import load_array, save_arrays
from edgeprune.partitioning.executor import LocalExecutor
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner


class RunResult(msgspec.Struct, frozen=True):
    """`run --json`."""

    outputs: dict[str, tuple[int, ...]]
    """Name -> shape."""
    milliseconds: float
    devices: dict[str, float]
    """Device -> its computing time in ms; empty for an unsplit model."""
    transferred_bytes: int


def run(folder: Path, source: Path, destination: Path, threads: int) -> RunResult:
    """`edgeprune run`: one batch through a bundle, on every device's own session if it is split."""
    if source.resolve() == destination.resolve():
        raise InputError("the output would replace the input", where=destination, remedy="choose another --output")
    outputs, result = run_arrays(open_bundle(folder), load_array(source), threads)
    save_arrays(destination, outputs)
    return result


def run_arrays(
    bundle: Bundle, inputs: NDArray[np.generic], threads: int = 1, *, unsplit: bool = False
) -> tuple[dict[str, NDArray[np.generic]], RunResult]:
    """Outputs by name for inputs (N, C, H, W), and what they cost; `unsplit` runs the whole model of a split bundle."""
    if bundle.has(PARTITION) and not unsplit:
        bundle.require_sound()
        with LocalExecutor(bundle.folder, threads) as executor:
            outputs = executor.run({executor.input_names[0]: inputs})
            stats = executor.last_run
        milliseconds, devices, moved = stats.latency_ms, stats.device_ms, stats.transferred_bytes
    else:
        with OrtRunner(bundle.path(MODEL), RunOptions(threads)) as runner:
            started = time.perf_counter()
            outputs = runner.run({runner.input_names[0]: inputs})
            milliseconds, devices, moved = (time.perf_counter() - started) * 1e3, {}, 0
    shapes = {name: tuple(array.shape) for name, array in outputs.items()}
    return outputs, RunResult(shapes, milliseconds, devices, moved)
