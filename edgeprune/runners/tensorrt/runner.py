"""TensorRT 10 or 11 itself as a target: an engine built for this GPU, kept beside the model, and timed by the GPU.

No run on a GPU has ever been seen: docs/targets.md tells what was tried instead.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from edgeprune.errors import InputError, first_line, unknown_name
from edgeprune.io.arrays import Array, Feeds
from edgeprune.onnx_files.graph import TensorSpec
from edgeprune.onnx_files.inputs import input_specs, output_specs, static_batch
from edgeprune.onnx_files.model import load_model
from edgeprune.precision.formats import PRECISIONS
from edgeprune.runners.base import NodeTime, RunOptions, TargetState
from edgeprune.runners.cores import pinned
from edgeprune.runners.feeds import check_feeds
from edgeprune.runners.gpu import Gpu
from edgeprune.runners.opened import OpenedRunner
from edgeprune.runners.tensorrt.batch_range import BatchRange
from edgeprune.runners.tensorrt.engine_files import EngineFiles

if TYPE_CHECKING:
    from edgeprune.runners.tensorrt.session import EngineSession, StageTimes

TARGET = "tensorrt-native"
PROVIDER = "TensorRT"
OLDEST = 10
"""TensorRT's first version with the API that is used here."""


def state() -> TargetState:
    """Whether TensorRT can be used here. Imports it if it is installed."""
    try:
        machine = _machine()
    except InputError as error:
        return TargetState(TARGET, PROVIDER, False, f"{error.what}: {error.remedy}")
    return TargetState(TARGET, PROVIDER, True, f"TensorRT {machine.version} on {machine.gpu.name}")


def open_runner(
    model: Path,
    options: RunOptions,
    *,
    precision: str = "fp32",
    engines: Path | None = None,
    batches: BatchRange | None = None,
) -> TensorrtRunner:
    """A runner for an ONNX file. Engines are kept in the folder `engines`, if there is one, and used again.

    A model with a dynamic batch gets one engine for each batch size that it is run with, built for just that one, or
    one for all sizes of `batches`. InputError if a package, the driver or the GPU is missing, `precision` is unknown,
    the model is not as the precision wants it, or TensorRT does not take it.
    """
    return TensorrtRunner(model, options, precision=precision, engines=engines, batches=batches)


class TensorrtRunner(OpenedRunner):
    """A model in TensorRT."""

    def __init__(
        self,
        model: Path,
        options: RunOptions | None = None,
        *,
        precision: str = "fp32",
        engines: Path | None = None,
        batches: BatchRange | None = None,
    ) -> None:
        """As `open_runner`. Where the batch sizes are known, the engine is built now, else when it is first run."""
        super().__init__(options)
        _check(self.options, precision, batches)
        self._machine = _machine()
        from edgeprune.runners.tensorrt.session import EngineSource, open_session  # both packages are there

        self.target = TARGET
        loaded = load_model(model, require_conv=False)
        self.input_specs = input_specs(loaded)
        self.input_names = tuple(spec.name for spec in self.input_specs)
        self.output_names = tuple(spec.name for spec in output_specs(loaded))
        _check_axes(self.input_specs, model)
        op_types = {node.name: node.op_type for node in loaded.graph.node}
        if precision == "int8" and "QuantizeLinear" not in op_types.values():
            expected = "QuantizeLinear and DequantizeLinear around its layers"
            raise InputError("is not quantised", where=model, expected=expected, remedy="choose --precision fp16")
        source = EngineSource(
            model.stem,
            loaded.SerializeToString(deterministic=True),
            op_types,
            precision,
            self._machine.gpu,
            None if engines is None else EngineFiles(engines),
        )
        fixed = static_batch(loaded)
        self._batches = batches if fixed is None else BatchRange.only(fixed)
        self._open: Callable[[BatchRange], EngineSession] | None = lambda batches: open_session(source, batches)
        self._session = None if self._batches is None else open_session(source, self._batches)

    @property
    def provider(self) -> str:
        """TensorRT's version and, once there is one, the batch sizes that the engine is built for."""
        built = "" if self._session is None else f", engine for batch {self._session.batches}"
        return f"{PROVIDER} {self._machine.version}{built}"

    def providers(self) -> dict[str, int]:
        """See `Runner`: the layers of the engine, as TensorRT fused them; empty before there is one."""
        return {} if self._session is None else {self.provider: len(self._session.layers.nodes)}

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs by name; InputError if an input is missing, unknown, or of the wrong shape or type, if no engine can
        be built for its batch size, or if the GPU's memory is used up."""
        with pinned(self.options.pin[:1]):
            return self._ready(feeds).run()

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """One run on these inputs, which are on the GPU already, until its outputs are there. Good until the runner
        is given other inputs."""
        session = self._ready(feeds)
        session.run()  # what goes wrong is said here
        return session.compute

    def timed_run(self, feeds: Feeds) -> StageTimes:
        """One run from the inputs in the computer's memory to the outputs there, by the GPU's clock."""
        return self._ready(feeds).timed_run()

    def copy_times(self, feeds: Feeds, iterations: int) -> tuple[float, float]:
        """Median milliseconds of copying the inputs to the GPU, and of copying the outputs back, by the GPU's clock."""
        _check_iterations(iterations)
        session = self._ready(feeds)
        session.timed_run()  # warm-up
        times = [session.timed_run() for _ in range(iterations)]
        return median(time.copy_in_ms for time in times), median(time.copy_out_ms for time in times)

    def profile_nodes(self, feeds: Feeds, iterations: int, *, warmup: int = 5) -> list[NodeTime]:
        """Mean time a run of every layer of the engine, in order of execution, warm-up runs left out.

        Timed in runs of their own, in which TensorRT reads the clock between the layers: the sum is more than a whole
        run takes otherwise.
        """
        _check_iterations(iterations)
        session = self._ready(feeds)
        with pinned(self.options.pin[:1]):
            times = session.layer_times(iterations, warmup)
        op_type = session.layers.op_type
        return [NodeTime(name, op_type(name), self.provider, sum(ms) / iterations) for name, ms in times.items()]

    def original_node(self, name: str) -> str:
        """The model's node that a layer of the engine stands for; empty for a reordering of data."""
        if self._session is None:
            raise ValueError("the runner has not run yet, or is closed")
        return self._session.layers.original(name)

    def close(self) -> None:
        """Free the engine and its memory; a second call does nothing."""
        if self._session is not None:
            self._session.close()
        self._session = self._open = None

    def _ready(self, feeds: Feeds) -> EngineSession:
        """An engine for this batch size, with these inputs on the GPU."""
        if self._open is None:
            raise ValueError("the runner is closed")
        check_feeds(feeds, self.input_specs)
        size = _batch_size(feeds, self.input_specs)
        if self._batches is not None and size not in self._batches:
            expected = f"batch size {self._batches}, for which the engine was built"
            raise InputError(f"a batch of {size}", where=f"target {TARGET}", expected=expected)
        if self._session is None or size not in self._session.batches:
            if self._session is not None:
                self._session.close()  # before the next one needs the memory
                self._session = None
            self._session = self._open(BatchRange.only(size))
        self._session.put(feeds)
        return self._session


@dataclass(frozen=True)
class _Machine:
    gpu: Gpu
    version: str
    """Of TensorRT."""


def _machine() -> _Machine:
    """The GPU and TensorRT's version; InputError that says which package or driver is missing."""
    tensorrt = _import("tensorrt", "pip install tensorrt (on a Jetson it comes with JetPack)")
    version = str(getattr(tensorrt, "__version__", "0"))
    if int(version.partition(".")[0]) < OLDEST:
        raise InputError(
            f"TensorRT {version} is installed",
            where=f"target {TARGET}",
            expected=f"TensorRT {OLDEST} or later",
            remedy="pip install --upgrade tensorrt",
        )
    _import("cuda.bindings.runtime", "pip install cuda-bindings")
    from edgeprune.runners.tensorrt.cuda_memory import this_gpu

    return _Machine(this_gpu(), version)


def _import(module: str, remedy: str) -> object:
    """InputError if a package is not there, or is there without the libraries that it loads."""
    package, where = module.partition(".")[0], f"target {TARGET}"
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        missing = isinstance(error, ModuleNotFoundError) and module.startswith(error.name or "-")
        reason = "is not installed" if missing else f"is installed, but cannot be loaded ({first_line(error)})"
        what = f"the package {package} {reason}"
        raise InputError(what, where=where, expected="it and the libraries that it loads", remedy=remedy) from error


def _check(options: RunOptions, precision: str, batches: BatchRange | None) -> None:
    if precision not in PRECISIONS:
        raise unknown_name(f"precision of target {TARGET}", precision, PRECISIONS)
    if batches is not None:
        batches.check()
    if options.provider_options:
        raise InputError(
            f"provider options {', '.join(name for name, _ in options.provider_options)}",
            where=f"target {TARGET}",
            expected="none: they are for ONNX Runtime's providers",
        )


def _check_axes(specs: Sequence[TensorSpec], where: Path) -> None:
    for spec in specs:
        for axis, size in enumerate(spec.shape[1:], start=1):
            if not isinstance(size, int):
                raise InputError(
                    f"input {spec.name!r} has a dynamic axis {axis} ({size or 'unnamed'})",
                    where=where,
                    expected="a dynamic batch only",
                    remedy="export with a fixed input size",
                )


def _check_iterations(iterations: int) -> None:
    if iterations < 1:
        raise InputError(f"--iterations {iterations} is out of range", expected="1 or more")


def _batch_size(feeds: Feeds, specs: Sequence[TensorSpec]) -> int:
    """The size of the first axes that are dynamic, else of all first axes; InputError if they differ."""
    dynamic = [spec.name for spec in specs if spec.shape and not isinstance(spec.shape[0], int)]
    sizes = {feeds[name].shape[0] for name in dynamic or [spec.name for spec in specs if spec.shape]}
    if dynamic and len(sizes) > 1:
        raise InputError(f"the inputs have batch sizes {sorted(sizes)}", expected="one batch size for all")
    return int(min(sizes, default=1))
