"""ONNX Runtime: one runner for every target that it serves (cpu, cuda, tensorrt, openvino)."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnx import ModelProto
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from edgeprune.errors import InputError
from edgeprune.io.arrays import Array, Feeds
from edgeprune.onnx_files.graph import TensorSpec
from edgeprune.onnx_files.model import as_model
from edgeprune.onnx_files.validity import runtime_sentence
from edgeprune.precision.formats import Precision
from edgeprune.runners.base import OPTIMIZATION_LEVELS, NodeTime, RunOptions
from edgeprune.runners.cores import pinned
from edgeprune.runners.feeds import check_feeds, shape_text
from edgeprune.runners.onnxruntime.layer_formats import layer_formats
from edgeprune.runners.onnxruntime.node_names import NodeNames
from edgeprune.runners.onnxruntime.node_times import NodeRecorder
from edgeprune.runners.onnxruntime.providers import TARGETS, check_available, provider_error, providers, start
from edgeprune.runners.opened import OpenedRunner

_NUMPY_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
# ONNX Runtime's exceptions share no base class of their own.
ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    getattr(ort_state, name)
    for name in (
        "EPFail",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
)
# Besides, while it loads a model: what its providers throw themselves.
_LOAD_ERRORS: tuple[type[Exception], ...] = (*ORT_ERRORS, RuntimeError, ValueError)


class OrtRunner(OpenedRunner):
    """A model in ONNX Runtime."""

    def __init__(
        self,
        model: str | Path | bytes | ModelProto,
        options: RunOptions | None = None,
        *,
        target: str = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        """`model` is in the precision already, where its file can be; TF32 is a switch of the provider.

        InputError if the model is none, the target is unknown, or its provider does not really run here.
        """
        super().__init__(options)
        self.target, self._precision = target, precision
        self._source = model
        check_available(target)
        self._names, self._session = self._open(self.options)
        self.provider = str(self._session.get_providers()[0])
        """The provider that really runs the model, as ONNX Runtime spells it."""
        self._inputs = tuple(
            replace(_spec(value), states_shape=value.name not in self._names.shapeless)
            for value in self._session.get_inputs()
        )
        self.input_names = tuple(spec.name for spec in self._inputs)
        self.output_specs = tuple(_spec(value) for value in self._session.get_outputs())
        self.output_names = tuple(spec.name for spec in self.output_specs)

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs by name; InputError if an input is missing, unknown, or of the wrong shape or type."""
        check_feeds(feeds, self._inputs)
        with pinned(self.options.pin[:1]):
            return self._run_session(self._session, feeds)

    def node_providers(self) -> dict[str, str]:
        """Node of the model -> the provider that took it; nodes that were computed while loading are left out.

        Empty where this version of ONNX Runtime does not tell.
        """
        return _node_providers(self._session)

    def providers(self) -> dict[str, int]:
        """See `Runner`."""
        return dict(Counter(self.node_providers().values()))

    def layer_formats(self) -> dict[str, str]:
        """Convolution or linear layer -> the number format in which the optimised model computes it, of a network in
        INT8 on the processor. Empty elsewhere: it is not told, or FP32's kernels compute FP16."""
        if self.target != "cpu" or self._precision != "int8":
            return {}
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            path = Path(folder) / "optimized.onnx"
            self._open(replace(self.options, optimized_model=str(path)))
            return layer_formats(as_model(self._source), onnx.load(path), self._names)

    def close(self) -> None:
        """Free the session; a second call does nothing."""
        self._session = None

    def original_node(self, name: str) -> str:
        """Name of the model's node that a node of the optimised model stands for; empty for reordering of data."""
        return self._names.original(name)

    def profile_nodes(self, feeds: Feeds, iterations: int, *, warmup: int = 5) -> list[NodeTime]:
        """Median time of every node of the optimised model, in order of execution, warm-up runs left out; an If, Loop
        or Scan as a whole.

        The mean would be that of the few runs in which another program had the core. Runs in a session of its own, so
        that measuring does not slow this one down. On GPU targets the times are those of starting the kernels.
        """
        if iterations < 1:
            raise InputError(f"--iterations {iterations} is out of range", expected="1 or more")
        recorder = self.recorder(feeds)
        with pinned(self.options.pin[:1]), self.errors_of_the_input():
            for _ in range(warmup + iterations):
                recorder.run()
        return [time for time in recorder.finish(warmup=warmup) if not self._names.is_inside(time.name)]

    def recorder(self, feeds: Feeds) -> NodeRecorder:
        """What takes the times of nodes in runs that the caller asks for, one at a time."""
        return NodeRecorder(self, feeds)

    def recording_session(self, prefix: Path) -> Any:
        """A session of its own in which the runtime records the times of nodes, to a file with this prefix."""
        return self._open(replace(self.options, profiling_prefix=str(prefix)))[1]

    def _open(self, options: RunOptions) -> tuple[NodeNames, Any]:
        where = self._source if isinstance(self._source, str | Path) else "ONNX model"
        model = as_model(self._source)
        names = NodeNames.of(model)
        data = model.SerializeToString()
        del model  # large models would otherwise be held three times while the session is built
        lacking = start(self.target, self._precision)
        provider, wanted = TARGETS[self.target].provider, providers(self.target, options, self._precision)
        try:
            # With its fallback enabled, a provider that fails is replaced by another, and its error hidden.
            session = onnxruntime.InferenceSession(data, _session_options(options), providers=wanted, enable_fallback=0)
        except _LOAD_ERRORS as error:
            raise InputError(
                f"ONNX Runtime cannot load it: {runtime_sentence(error)}",
                where=where,
                expected=f"a model that {provider} can run",
                remedy="export it again, or try another target",
            ) from error
        present = session.get_providers()
        if present[0] != provider:  # a provider that cannot start is dropped without an error
            reason = f" ({lacking})" if lacking else ""
            raise provider_error(self.target, f"ONNX Runtime fell back to {', '.join(present)}{reason}")
        took = set(_node_providers(session).values())
        if took and provider not in took:
            raise provider_error(self.target, f"it takes none of the model's nodes, {', '.join(sorted(took))} does")
        return names, session

    def _run_session(self, session: Any, feeds: Feeds) -> dict[str, Array]:
        if session is None:
            raise ValueError("the runner is closed")
        with self.errors_of_the_input():
            results = session.run(self.output_names, dict(feeds))
        return dict(zip(self.output_names, results, strict=True))

    @contextmanager
    def errors_of_the_input(self) -> Iterator[None]:
        """What ONNX Runtime raises in this block as an InputError: whatever it can take was checked before."""
        try:
            yield
        except ORT_ERRORS as error:
            raise InputError(
                f"ONNX Runtime cannot run the model on this input: {runtime_sentence(error)}",
                expected=", ".join(f"{spec.name} {shape_text(spec.shape)}" for spec in self._inputs),
            ) from error


class TimedOrtRunner(OrtRunner):
    """An `OrtRunner` whose checks stay out of the timed region: they take a fifth of a small network's time."""

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """See `ProfiledRunner`; the calling thread must be pinned by the caller."""
        self.run(feeds)  # what is wrong with the inputs is said here
        session, names, held = self._session, list(self.output_names), dict(feeds)
        return lambda: session.run(names, held)


def _session_options(options: RunOptions) -> Any:
    session = onnxruntime.SessionOptions()
    session.intra_op_num_threads = options.threads
    session.inter_op_num_threads = 1
    session.log_severity_level = 3
    level = OPTIMIZATION_LEVELS[options.graph_optimization]
    session.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
    if len(options.pin) > 1:  # the calling thread is not of the pool; ONNX Runtime numbers cores from 1
        affinities = ";".join(str(core + 1) for core in options.pin[1:])
        session.add_session_config_entry("session.intra_op_thread_affinities", affinities)
    session.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if options.optimized_model:
        session.optimized_model_filepath = options.optimized_model
    if options.profiling_prefix:
        session.enable_profiling = True
        session.profile_file_prefix = options.profiling_prefix
    return session


def _node_providers(session: Any) -> dict[str, str]:
    """See `OrtRunner.node_providers`."""
    told = getattr(session, "get_provider_graph_assignment_info", None)
    parts = told() if told else ()
    return {node.name: str(part.ep_name) for part in parts for node in part.get_nodes()}


def _spec(value: Any) -> TensorSpec:
    return TensorSpec(value.name, tuple(value.shape), _NUMPY_TYPES.get(value.type, ""))
