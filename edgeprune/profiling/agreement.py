"""Does a target compute what ONNX Runtime computes in FP32? Asked before anything is timed: how fast wrong numbers come
is of no interest, and runtimes give them without a word.

The reference is the network's own file in ONNX Runtime on the processor, with nothing of it fused or laid out anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto

from edgeprune.errors import GateError
from edgeprune.io.arrays import Array, Feeds, load_arrays, output_range, save_arrays
from edgeprune.onnx_files.constants import constants
from edgeprune.onnx_files.inputs import input_specs
from edgeprune.onnx_files.model import load_model
from edgeprune.precision.formats import tolerance
from edgeprune.precision.quantization import quantized_layers
from edgeprune.profiling.setup import Which, random_feeds
from edgeprune.runners.base import Runner, RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner


@dataclass(frozen=True)
class References:
    """What networks give on random inputs, in FP32: computed when asked for, or read where that was done before."""

    networks: Mapping[Which, Path]
    seed: int
    threads: int = 1
    folder: Path | None = None

    def write(self, sizes: Sequence[int]) -> None:
        """Compute those of these batch sizes into the folder. What cannot be computed is left out: who needs it meets
        the reason."""
        for which in self.networks:
            for size in sizes:
                with contextlib.suppress(Exception):  # runtimes raise what they like
                    found = {str(place): output for place, output in enumerate(self._computed(which, size))}
                    save_arrays(self._file(which, size), found)

    def outputs(self, which: Which, size: int) -> list[Array]:
        """In order; InputError if ONNX Runtime cannot run the network."""
        if self.folder is not None and (path := self._file(which, size)).is_file():
            return list(load_arrays(path).values())
        return self._computed(which, size)

    def require(self, which: Which, size: int, runner: Runner, feeds: Feeds) -> None:
        """GateError if the runner does not give these outputs for the same inputs."""
        model = load_model(self.networks[which], require_conv=False)
        what = f"target {runner.target}: the {which} network"
        require_agreement(self.outputs(which, size), list(runner.run(feeds).values()), allowed(model), what)

    def _computed(self, which: Which, size: int) -> list[Array]:
        model = load_model(self.networks[which], require_conv=False)
        return reference_outputs(model, random_feeds(input_specs(model), size, self.seed), self.threads)

    def _file(self, which: Which, size: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{which}-{size}.npz"


def reference_outputs(model: ModelProto, values: Sequence[Array], threads: int = 1) -> list[Array]:
    """The outputs of a network for inputs in order, by ONNX Runtime on the processor."""
    with OrtRunner(model, RunOptions(threads=threads, spinning=False, graph_optimization="disabled")) as runner:
        return list(runner.run(dict(zip(runner.input_names, values, strict=True))).values())


def require_agreement(expected: Sequence[Array], got: Sequence[Array], limit: float, what: str) -> None:
    """GateError if outputs differ in number or shape, or by more than `limit` of their range."""
    shapes = [[output.shape for output in outputs] for outputs in (expected, got)]
    if shapes[0] != shapes[1]:
        raise GateError(f"{what} gives outputs of shapes {shapes[1]}, in ONNX Runtime {shapes[0]}: nothing was timed")
    worst = max(map(relative_difference, expected, got), default=0.0)
    if not worst <= limit:
        raise GateError(
            f"{what} gives other outputs than in ONNX Runtime: they differ by {worst:.2e} of their range "
            f"(tolerance {limit:g}), so nothing was timed"
        )


def relative_difference(expected: Array, got: Array) -> float:
    """The largest difference over the range of `expected`, of arrays of one shape; infinite where one of the two is not
    finite and the other something else."""
    first, second = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    if same.all():
        return 0.0
    off = np.abs(first[~same] - second[~same])
    if not np.isfinite(off).all():
        return float("inf")
    return float(off.max()) / output_range(first[np.isfinite(first)])


def allowed(model: ModelProto) -> float:
    """How far outputs of a file may be from ONNX Runtime's: that of FP32, unless its own numbers are of fewer bits."""
    if quantized_layers(model):
        return tolerance("int8")
    kinds = {constant.data_type for constant in constants(model).stored.values()}
    return tolerance("fp16" if TensorProto.FLOAT16 in kinds else "fp32")
