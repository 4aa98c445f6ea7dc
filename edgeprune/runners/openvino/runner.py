"""OpenVINO without ONNX Runtime around it: a model on the processor, in the precision that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from onnx import ModelProto

from edgeprune.errors import InputError
from edgeprune.exporters.openvino.ir import reason
from edgeprune.exporters.openvino.layer_formats import layer_formats, original_nodes
from edgeprune.exporters.openvino.package import import_openvino
from edgeprune.io.arrays import Array, Feeds
from edgeprune.onnx_files.graph import TensorSpec
from edgeprune.onnx_files.inputs import input_specs, output_specs
from edgeprune.onnx_files.model import as_model
from edgeprune.precision.formats import Precision
from edgeprune.runners.base import NodeTime, RunOptions
from edgeprune.runners.cores import pinned
from edgeprune.runners.feeds import check_feeds
from edgeprune.runners.opened import OpenedRunner

openvino: Any = import_openvino()

DEVICE = "CPU"
XML = ".xml"


@dataclass(frozen=True)
class _Compiled:
    """The model for inputs of one shape: with fixed shapes OpenVINO plans its memory and kernels beforehand."""

    model: Any
    request: Any


class OpenVinoRecorder:
    """A compiled model in which OpenVINO takes the times of nodes, to be run in turn with others."""

    def __init__(self, infer: Callable[[], None], request: Any, nodes: frozenset[str]) -> None:
        """`nodes`: those that OpenVINO runs; it lists others, too, that were fused into them."""
        self._infer, self._request, self._nodes = infer, request, nodes
        self._totals: list[dict[tuple[str, str], float]] = [{}]

    def run(self) -> None:
        self._infer()
        runs = len(self._totals)
        # OpenVINO tells the mean since compiling in whole microseconds: the difference between two totals is uncertain
        # by as many microseconds as there were runs.
        self._totals.append(
            {
                (entry.node_name, entry.node_type): entry.real_time.total_seconds() * 1e3 * runs
                for entry in self._request.profiling_info
                if entry.node_name in self._nodes
            }
        )

    def finish(self, *, warmup: int = 2) -> list[NodeTime]:
        """Each node's mean over the faster half of the runs behind the warm-up, in order of execution: in the others
        another program may have had the core."""
        runs = [
            {node: total - before.get(node, 0.0) for node, total in after.items()}
            for before, after in pairwise(self._totals[warmup:])
        ]
        faster = sorted(runs, key=lambda run: sum(run.values()))[: (len(runs) + 1) // 2]
        provider = OpenVinoRunner.provider
        return [NodeTime(*node, provider, max(fmean(run[node] for run in faster), 0.0)) for node in self._totals[-1]]


class OpenVinoRunner(OpenedRunner):
    """A model in OpenVINO, compiled anew when the shapes of its inputs change. A context manager, or call `close`.

    `RunOptions.spinning` and `graph_optimization` have no counterpart here.
    """

    target = "openvino-native"
    provider = "OpenVINO CPU"

    def __init__(
        self,
        model: str | Path | bytes | ModelProto,
        options: RunOptions | None = None,
        *,
        precision: Precision = "fp32",
    ) -> None:
        """`model`: ONNX, or OpenVINO's own `.xml` with its `.bin` beside it, whose layers keep OpenVINO's names.

        InputError if the model is none, or OpenVINO cannot read it.
        """
        super().__init__(options)
        self._precision = precision
        self._core: Any = openvino.Core()
        self._compiled: dict[tuple[tuple[int, ...], ...], _Compiled] = {}
        self._original: dict[str, str] = {}
        self._formats: dict[str, str] = {}
        self._source: str | bytes
        if isinstance(model, str | Path) and Path(model).suffix == XML:
            self._source = str(model)
            read = self._read()
            self._inputs, self._outputs = (tuple(map(_spec, values)) for values in (read.inputs, read.outputs))
            self._writers = dict[str, str]()
        else:
            proto = as_model(model)
            self._inputs, self._outputs = input_specs(proto), output_specs(proto)
            self._writers = {value: node.name for node in proto.graph.node for value in node.output}
            self._source = proto.SerializeToString()
            self._read()
        self.input_names = tuple(spec.name for spec in self._inputs)
        self.output_names = tuple(spec.name for spec in self._outputs)

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs by name; InputError if an input is missing, unknown, or of the wrong shape or type."""
        compiled = self._for(feeds)
        with pinned(self.options.pin):
            self._infer(compiled.request, feeds)
        return {name: np.array(compiled.request.get_tensor(name).data) for name in self.output_names}

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """See `ProfiledRunner`."""
        self.run(feeds)  # also starts the threads, on the cores that they are pinned to
        request = self._for(feeds).request
        for name in self.input_names:
            request.set_tensor(name, openvino.Tensor(np.ascontiguousarray(feeds[name]), shared_memory=True))
        # Shared arrays are those of the request: other runs would write into what the caller holds, but nobody does.
        return lambda: request.infer(share_outputs=True)

    def profile_nodes(self, feeds: Feeds, iterations: int, *, warmup: int = 5) -> list[NodeTime]:
        """Time of every node that OpenVINO ran, in order of execution: the mean over the faster half of the runs behind
        the warm-up, since in the others another program may have had the core.

        Measured in a compilation of its own, so that measuring does not slow `run` down.
        """
        check_feeds(feeds, self._inputs)
        if iterations < 1:
            raise InputError(f"--iterations {iterations} is out of range", expected="1 or more")
        recorder = self.recorder(feeds)
        with pinned(self.options.pin):
            for _ in range(warmup + iterations):
                recorder.run()
        return recorder.finish(warmup=warmup)

    def recorder(self, feeds: Feeds) -> OpenVinoRecorder:
        """What takes the times of nodes in runs that the caller asks for, one at a time, in a compilation of its own.

        InputError as for `run`.
        """
        check_feeds(feeds, self._inputs)
        with pinned(self.options.pin):
            request = self._compile(_shapes(feeds, self.input_names), counting=True).request
        return OpenVinoRecorder(partial(self._infer, request, dict(feeds)), request, frozenset(self._original))

    def original_node(self, name: str) -> str:
        """The ONNX model's node that a node of OpenVINO's stands for; empty for a reordering of data."""
        return self._original.get(name, name)

    def providers(self) -> dict[str, int]:
        """See `Runner`: OpenVINO's own nodes, once it has run, since it compiles for the inputs' shapes."""
        return {self.provider: len(self._original)} if self._original else {}

    def layer_formats(self) -> dict[str, str]:
        """Convolution or linear layer of the ONNX model -> the number format in which OpenVINO ran it last."""
        return self._formats

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        self._compiled, self._core = {}, None

    def _for(self, feeds: Feeds) -> _Compiled:
        """The model compiled for these inputs; only the last is kept."""
        if self._core is None:
            raise ValueError("the runner is closed")
        check_feeds(feeds, self._inputs)
        shapes = _shapes(feeds, self.input_names)
        if shapes not in self._compiled:
            with pinned(self.options.pin):
                self._compiled = {shapes: self._compile(shapes)}
        return self._compiled[shapes]

    def _read(self) -> Any:
        try:
            return self._core.read_model(self._source)
        except RuntimeError as error:
            raise InputError(
                f"OpenVINO cannot read it: {reason(error)}",
                where=self._source if isinstance(self._source, str) else "ONNX model",
                expected=f"operations that OpenVINO {openvino.__version__} knows",
                remedy="choose another --target",
            ) from error

    def _compile(self, shapes: tuple[tuple[int, ...], ...], *, counting: bool = False) -> _Compiled:
        settings = {
            "INFERENCE_NUM_THREADS": self.options.threads,
            "PERFORMANCE_HINT": "LATENCY",
            # Left alone, it computes in bfloat16 on processors that have it.
            "INFERENCE_PRECISION_HINT": "f16" if self._precision == "fp16" else "f32",
            # Its own choice of cores may be those that other programs use: pinning is the caller's.
            "ENABLE_CPU_PINNING": False,
            "PERF_COUNT": counting,
            **dict(self.options.provider_options),
        }
        model = self._read()
        try:
            model.reshape({name: list(shape) for name, shape in zip(self.input_names, shapes, strict=True)})
            compiled = self._core.compile_model(model, DEVICE, settings)
            request = compiled.create_infer_request()
        except RuntimeError as error:
            raise InputError(
                f"OpenVINO cannot compile it: {reason(error)}", where="ONNX model", remedy="choose another --target"
            ) from error
        running = compiled.get_runtime_model()
        self._original = original_nodes(running, self._writers)
        self._formats = layer_formats(running, self._writers)
        return _Compiled(compiled, request)

    def _infer(self, request: Any, feeds: Feeds) -> None:
        try:
            request.infer({name: np.ascontiguousarray(feeds[name]) for name in self.input_names})
        except RuntimeError as error:
            raise InputError(f"OpenVINO cannot run the model on this input: {reason(error)}") from error


def _spec(port: Any) -> TensorSpec:
    """What OpenVINO says of an input or output."""
    shape = tuple(None if size.is_dynamic else size.get_length() for size in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), shape, np.dtype(port.get_element_type().to_dtype()).name)


def _shapes(feeds: Feeds, names: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(np.shape(feeds[name]) for name in names)
