"""ONNX files of networks that take the same input, measured in turn in one loop: one thread, ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeprune.profiling.measurement import Measurement, interleave, settles_within
from edgeprune.runners.base import RunOptions
from edgeprune.runners.registry import open_runner
from edgeprune.runners.target import OpenOptions, Source

ROUNDS = 3000
"""That are measured at most."""
SETTLED = 0.005
"""Relative width of the ratio's 95% interval at which the loop ends."""


def measured(paths: Mapping[str, Path], images: NDArray[np.float32], seconds: float) -> dict[str, Measurement]:
    """The files' times on these images (N, C, H, W) by name, within so many seconds; the first is what others are
    compared with."""
    with ExitStack() as stack:
        runs = {}
        for name, path in paths.items():
            runner = open_runner("cpu", Source(path), OpenOptions(RunOptions(threads=1, spinning=False)))
            stack.callback(runner.close)
            runs[name] = runner.prepared({runner.input_names[0]: images})
        return interleave(runs, warmup=20, iterations=ROUNDS, time_limit_s=seconds, until=settles_within(SETTLED))
