"""All that is known before a measurement: the options, the two models, their layers at one batch size, the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgeprune.errors import InputError
from edgeprune.onnx_files.graph import TensorSpec
from edgeprune.onnx_files.inputs import dynamic_axes
from edgeprune.precision.formats import Precision, share_of_bytes
from edgeprune.precision.weight_bits import WeightBits
from edgeprune.profiling.explaining.facts import MachineFacts
from edgeprune.profiling.layer_times import LayerInfo, ModelLayers
from edgeprune.profiling.measurement import check_counts
from edgeprune.runners.base import RunOptions

Which = Literal["dense", "pruned"]


def is_gpu(target: str) -> bool:
    """Whether a target runs on a GPU."""
    return "cuda" in target or "tensorrt" in target


@dataclass(frozen=True)
class ProfileOptions:
    """How to measure."""

    threads: int = 1
    """Threads inside one operation."""
    batch_sizes: tuple[int, ...] = (1,)
    warmup: int = 10
    """Runs of each model before measuring, at least; warm-up goes on until the times are steady."""
    iterations: int = 1000
    """Runs of each model at most: measuring ends once `interval` is reached, or with the time limit."""
    interval: float = 0.02
    """Width of the 95% interval, as a share of the speed-up (without a baseline: of the latency), at which measuring
    ends. 0: never, all iterations are run."""
    per_layer: bool = True
    pin: tuple[int, ...] = ()
    """Cores to pin to, one a thread."""
    seed: int = 0
    spinning: bool = False
    """Whether idle threads wait by spinning. The threads of the model that rests would then take cores from the one
    that runs: on two cores with two threads, both measured nearly three times as slow."""
    time_limit_s: float = 120.0
    """For the measured runs of one target, thread count and batch size."""
    machine_profile: str = ""
    """The device profile of this machine, whose peaks bound the layers: a name or a file; by default the shipped one
    that is nearest."""
    fresh_process: bool = True
    """Whether every target and thread count is measured in a process of its own (by `pipeline.profile.profile`)."""
    precision: Precision = "fp32"
    """The number format that both models are run in."""
    input_size: tuple[int, ...] = ()
    """(H, W) or (C, H, W) for networks whose input has dynamic axes beside the batch."""
    weight_bits: WeightBits = "auto"
    """Of INT8's weights."""
    calibration_images: int = 256
    """Images at most that calibrate INT8."""
    fp32_where_faster: bool = False
    """Whether layers stay in FP32 that INT8 makes slower, as far as the target tells the times of layers."""

    def check(self) -> None:
        """InputError for values that make no sense on any machine."""
        check_counts(self.warmup, self.iterations)
        self.run_options().check()
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            given = ",".join(map(str, self.batch_sizes)) or "is empty"
            raise InputError(f"--batch-size {given}", expected="1 or more", remedy="pass --batch-size 1")
        if min(self.input_size, default=1) < 1:
            given = ",".join(map(str, self.input_size))
            raise InputError(f"--input-size {given}", expected="1 or more on each axis")
        if not 0 <= self.interval < 1:
            raise InputError(f"--interval {self.interval:g}", expected="a share from 0 to 1", remedy="try 0.02")
        if not self.time_limit_s > 0:
            raise InputError(f"--time-limit {self.time_limit_s:g}", expected="seconds, more than 0")

    def with_threads(self, count: int) -> ProfileOptions:
        """The same for another number of threads, on the first of the cores."""
        return replace(self, threads=count, pin=self.pin[:count])

    def run_options(self) -> RunOptions:
        return RunOptions(threads=self.threads, spinning=self.spinning, pin=self.pin)


@dataclass(frozen=True)
class Pair:
    """The two ONNX models, and what the plan says of their layers."""

    dense: ModelProto | None
    pruned: ModelProto
    notes: Mapping[str, str] = field(default_factory=dict)
    """Layer -> the plan's note on it."""
    planned_macs: Mapping[str, int] = field(default_factory=dict)
    """Layer -> MACs a sample under the plan, where its lowering executes more."""
    lowerings: Mapping[str, str] = field(default_factory=dict)
    """Layer -> the kind of form that it was given."""


@dataclass(frozen=True)
class Batch:
    """One pair with one batch size on one target: everything that is known before measuring."""

    pair: Pair
    dense: ModelLayers | None
    pruned: ModelLayers
    target: str
    size: int
    machine: MachineFacts

    @staticmethod
    def of(pair: Pair, target: str, size: int, machine: MachineFacts, precision: Precision = "fp32") -> Batch:
        """InputError if the batch size does not fit the models."""
        share = share_of_bytes(precision)
        dense = None if pair.dense is None else ModelLayers.of(pair.dense, size, share)
        return Batch(pair, dense, ModelLayers.of(pair.pruned, size, share), target, size, machine)

    def planned(self, layer: LayerInfo) -> int:
        """MACs that the plan leaves of a pruned layer, for the whole batch."""
        planned = self.pair.planned_macs.get(layer.name)
        return layer.macs if planned is None else planned * self.size

    @property
    def dense_macs(self) -> int | None:
        return None if self.dense is None else self.dense.counted.total

    @property
    def pruned_macs(self) -> int:
        """MACs of the whole pruned network under the plan."""
        return self.pruned.counted.total + sum(self.planned(layer) - layer.macs for layer in self.pruned.layers)

    def unsupported(self) -> list[str]:
        """A sentence for each model that has operations which no counter knows."""
        named = (("dense", self.dense), ("pruned", self.pruned))
        return [
            f"MACs of the {name} model are too low: no counter knows {', '.join(sorted(model.counted.unsupported))}"
            for name, model in named
            if model is not None and model.counted.unsupported
        ]


def random_feeds(specs: Sequence[TensorSpec], batch: int, seed: int) -> list[NDArray[np.generic]]:
    """Standard normal inputs (bytes and pixels uniform, truths by chance), the batch axis of size `batch`.

    InputError if an input has another dynamic axis, another fixed batch, or a type without natural random values.
    """
    rng = np.random.default_rng(seed)
    values: list[NDArray[np.generic]] = []
    for spec in specs:
        shape, kind = _concrete(spec, batch), np.dtype(spec.dtype or "float32")
        if kind.kind == "f":
            values.append(rng.standard_normal(shape).astype(kind))
        elif kind.kind == "b":
            values.append(rng.integers(0, 1, shape, endpoint=True).astype(kind))
        elif kind in (np.dtype(np.uint8), np.dtype(np.int8)):
            limits = np.iinfo(kind)
            values.append(rng.integers(limits.min, limits.max, shape, kind, endpoint=True))
        elif kind.kind in "iu" and len(shape) == 4:
            values.append(rng.integers(0, 255, shape, kind, endpoint=True))
        else:
            raise InputError(
                f"input {spec.name!r} is {kind}",
                expected="floating point, bytes or truths: of other numbers nobody can say which make sense",
                remedy=f"export the network with {spec.name!r} as a constant",
            )
    return values


def _concrete(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    for axis in dynamic_axes(spec):
        raise InputError(
            f"input {spec.name!r} has a dynamic axis {axis} ({spec.shape[axis] or 'unnamed'})",
            expected="a dynamic batch only",
            remedy="pass --input-size, or export with a fixed input size",
        )
    first = spec.shape[0] if spec.shape and spec.is_batched else None
    if isinstance(first, int) and first != batch:
        raise InputError(
            f"input {spec.name!r} has a fixed batch of {first}",
            expected=f"batch size {batch}",
            remedy=f"pass --batch-size {first}, or export with a dynamic batch",
        )
    return tuple(size if isinstance(size, int) else batch for size in spec.shape)
