"""Does the torch network compute what the file does? Asked of ONNX Runtime, before anything is pruned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import nn

from edgeprune.errors import first_line
from edgeprune.io.arrays import output_range
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner

TOLERANCE = 1e-4
"""On the largest difference over the largest value of an output, float32."""
Outputs = list[NDArray[np.generic]]


def difference(
    model: ModelProto, network: nn.Module, shape: Sequence[int], batches: Sequence[int], *, fixed: int | None
) -> str:
    """What differs between the file and the network on random images of this shape (C, H, W), so many at a time, in a
    clause; empty if nothing does.

    `fixed` is the batch that the file is for, None for any: a larger one is then given to it in parts.
    """
    with OrtRunner(model, RunOptions()) as runner:
        reasons = (_on_one_batch(runner, network, shape, batch, fixed or batch) for batch in batches)
        return next(filter(None, reasons), "")


def _on_one_batch(runner: OrtRunner, network: nn.Module, shape: Sequence[int], batch: int, part: int) -> str:
    images = np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)
    try:
        with torch.no_grad():
            found = network(torch.from_numpy(images))
    except Exception as error:  # whatever torch raises where sizes do not fit
        return f"torch cannot run it on {batch} image{'s' if batch > 1 else ''}: {first_line(error)}"
    given = [found] if isinstance(found, torch.Tensor) else list(found)
    (name,) = runner.input_names
    runs = [runner.run({name: images}) for images in np.split(images, batch // part)]
    for output, tensor in zip(runs[0], given, strict=True):
        wanted = np.concatenate([run[output] for run in runs]) if len(runs) > 1 else runs[0][output]
        if reason := _distance(wanted, tensor.numpy()):
            return f"output {output!r} {reason}"
    return ""


def _distance(wanted: NDArray[np.generic], given: NDArray[np.generic]) -> str:
    if wanted.shape != given.shape:
        return f"has shape {given.shape}, in ONNX Runtime {wanted.shape}"
    if not np.issubdtype(wanted.dtype, np.floating):
        return "" if np.array_equal(wanted, given) else "has other values than in ONNX Runtime"
    exact, found = wanted.astype(np.float64), given.astype(np.float64)
    same_gaps = np.array_equal(np.isfinite(exact), np.isfinite(found))
    finite = np.isfinite(exact) & np.isfinite(found)
    off = float(np.max(np.abs(exact - found)[finite], initial=0.0)) / output_range(exact[finite])
    return "" if same_gaps and off <= TOLERANCE else f"differs by {off:.1e} of its range from ONNX Runtime's"
