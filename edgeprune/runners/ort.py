"""ONNX Runtime: one runner for every target that it serves (cpu, cuda, tensorrt, openvino)."""

from __future__ import annotations

import ctypes
import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from onnx import ModelProto
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from edgeprune.devices.device_profile import machine_has_nvidia_gpu
from edgeprune.errors import InputError, first_line, unknown_name
from edgeprune.onnx_files.model import TensorSpec, check_model, load_model, parse_model
from edgeprune.runners.base import OPTIMIZATION_LEVELS, Array, Feeds, RunOptions, TargetState
from edgeprune.runners.node_names import NodeNames

__all__ = [
    "TARGETS",
    "NodeRecorder",
    "NodeTime",
    "OrtRunner",
    "RunOptions",
    "TimedOrtRunner",
    "as_model",
    "check_cores",
    "check_feeds",
    "pinned",
    "target_state",
]


@dataclass(frozen=True)
class _Target:
    provider: str
    package: str
    """What brings the provider."""
    after: tuple[str, ...] = ()
    """Providers for the nodes that the first one does not take."""
    library: str = ""
    """A library that the provider loads when it starts, and that its package does not bring."""
    options: tuple[tuple[str, str], ...] = ()
    """Of the provider, where nothing else is asked for."""

    @property
    def needs_gpu(self) -> bool:
        return "CUDAExecutionProvider" in (self.provider, *self.after)


TARGETS: Mapping[str, _Target] = {
    "cpu": _Target("CPUExecutionProvider", "onnxruntime"),
    "cuda": _Target(
        "CUDAExecutionProvider",
        "onnxruntime-gpu with CUDA and cuDNN 9",
        ("CPUExecutionProvider",),
        # FP32 is measured as FP32: by default cuDNN rounds the products' factors to 10 bits (TF32).
        options=(("use_tf32", "0"),),
    ),
    "tensorrt": _Target(
        "TensorrtExecutionProvider",
        "onnxruntime-gpu with the libraries of TensorRT 10",
        ("CUDAExecutionProvider", "CPUExecutionProvider"),
        "libnvinfer.so.10",
    ),
    "openvino": _Target("OpenVINOExecutionProvider", "onnxruntime-openvino", ("CPUExecutionProvider",)),
}

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


class NodeTime(NamedTuple):
    """Time of one node of the optimised model. `OrtRunner.original_node` tells which node of the file it was."""

    name: str
    op_type: str
    provider: str
    mean_ms: float
    """Of one run: the median of all where ONNX Runtime tells them, elsewhere the mean."""


class NodeRecorder:
    """A session whose runtime takes the time of every node, to be run in turn with others. `finish` ends it."""

    def __init__(self, runner: OrtRunner, feeds: Feeds) -> None:
        """InputError as for `OrtRunner.run`."""
        check_feeds(feeds, runner.input_specs)
        self._folder = tempfile.TemporaryDirectory(prefix="edgeprune-")
        self._session = runner.recording_session(Path(self._folder.name) / "nodes")
        self._names, self._feeds = list(runner.output_names), dict(feeds)

    def run(self) -> None:
        self._session.run(self._names, self._feeds)

    def finish(self, *, warmup: int = 2) -> list[NodeTime]:
        """The median time of every node over all runs but the first `warmup`, in order of execution."""
        return [NodeTime(*key, median(times) * 1e3) for key, times in self.durations(warmup=warmup).items()]

    def durations(self, *, warmup: int = 2) -> dict[tuple[str, str, str], tuple[float, ...]]:
        """(node, operation, provider) -> seconds of every run but the first `warmup`; as `finish`, but raw."""
        with self._folder:
            events = json.loads(Path(self._session.end_profiling()).read_text())
        found = _node_durations(events, warmup)
        return {key: tuple(time / 1e6 for time in times) for key, times in found.items()}


class OrtRunner:
    """A model in ONNX Runtime. Use as a context manager, or call `close`."""

    def __init__(
        self, model: str | Path | bytes | ModelProto, options: RunOptions | None = None, *, target: str = "cpu"
    ) -> None:
        """InputError if the model is none, the target is unknown, or its provider does not really run here."""
        self.options = options or RunOptions()
        self.options.check()
        check_cores(self.options.pin)
        self.target = target
        self._source = model
        _check_available(target)
        self._names, self._session = self._open(self.options)
        self._inputs = tuple(_spec(value) for value in self._session.get_inputs())
        self.input_names = tuple(spec.name for spec in self._inputs)
        self.output_specs = tuple(_spec(value) for value in self._session.get_outputs())
        self.output_names = tuple(spec.name for spec in self.output_specs)

    def __enter__(self) -> OrtRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def provider(self) -> str:
        """The provider that really runs the model, as ONNX Runtime spells it."""
        return str(self._session.get_providers()[0])

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
        told = getattr(self._session, "get_provider_graph_assignment_info", None)
        parts = told() if told else ()
        return {node.name: str(part.ep_name) for part in parts for node in part.get_nodes()}

    def providers(self) -> dict[str, int]:
        """See `Runner`."""
        return dict(Counter(self.node_providers().values()))

    def close(self) -> None:
        """Free the session; a second call does nothing."""
        self._session = None

    def original_node(self, name: str) -> str:
        """Name of the model's node that a node of the optimised model stands for; empty for reordering of data."""
        return self._names.original(name)

    def profile_nodes(self, feeds: Feeds, iterations: int, *, warmup: int = 5) -> list[NodeTime]:
        """Median time of every node of the optimised model, in order of execution, warm-up runs left out.

        The mean would be that of the few runs in which another program had the core. Runs in a session of its own, so
        that measuring does not slow this one down. On GPU targets the times are those of starting the kernels.
        """
        check_feeds(feeds, self._inputs)
        if iterations < 1:
            raise InputError(f"--iterations {iterations} is out of range", expected="1 or more")
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            session = self.recording_session(Path(folder) / "nodes")
            with pinned(self.options.pin[:1]):
                for _ in range(warmup + iterations):
                    self._run_session(session, feeds)
            events = json.loads(Path(session.end_profiling()).read_text())
        return _median_times(events, warmup)

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
        target = TARGETS[self.target]
        wanted: list[object] = [(target.provider, dict((*target.options, *options.provider_options)))]
        present = onnxruntime.get_available_providers()
        if target.needs_gpu and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA's libraries may lie in Python packages, where the system does not look
        wanted += [provider for provider in target.after if provider in present]
        try:
            session = onnxruntime.InferenceSession(data, _session_options(options), providers=wanted)
        except ORT_ERRORS as error:
            raise InputError(
                f"ONNX Runtime cannot load it: {first_line(error)}",
                where=where,
                expected=f"a model that {target.provider} can run",
                remedy="export it again, or try another target",
            ) from error
        if session.get_providers()[0] != target.provider:  # a provider that cannot start is dropped without an error
            raise _provider_error(self.target, "ONNX Runtime fell back to " + ", ".join(session.get_providers()))
        return names, session

    def _run_session(self, session: Any, feeds: Feeds) -> dict[str, Array]:
        if session is None:
            raise ValueError("the runner is closed")
        try:
            results = session.run(self.output_names, dict(feeds))
        except ORT_ERRORS as error:
            raise InputError(
                f"ONNX Runtime cannot run the model on this input: {first_line(error)}",
                expected=", ".join(f"{spec.name} {_shape_text(spec.shape)}" for spec in self._inputs),
            ) from error
        return dict(zip(self.output_names, results, strict=True))


class TimedOrtRunner(OrtRunner):
    """An `OrtRunner` whose checks stay out of the timed region: they take a fifth of a small network's time."""

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """See `ProfiledRunner`; the calling thread must be pinned by the caller."""
        self.run(feeds)  # what is wrong with the inputs is said here
        session, names, held = self._session, list(self.output_names), dict(feeds)
        return lambda: session.run(names, held)


def target_state(name: str) -> TargetState:
    """Whether and why (not) ONNX Runtime's target can be used on this machine. Starts nothing."""
    target = TARGETS[name]
    if target.provider not in onnxruntime.get_available_providers():
        missing = f"needs {target.package}"
    elif target.needs_gpu and not machine_has_nvidia_gpu():
        missing = "needs an NVIDIA GPU and its driver"
    elif target.library and not _can_load(target.library):
        missing = f"needs {target.package}: {target.library} cannot be loaded"
    else:
        return TargetState(name, target.provider, True, f"onnxruntime {onnxruntime.__version__}")
    return TargetState(name, target.provider, False, missing)


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def check_feeds(feeds: Feeds, specs: Sequence[TensorSpec]) -> None:
    """InputError for the first input that is missing, unknown, or of the wrong rank, size or type."""
    names = [spec.name for spec in specs]
    for name in feeds:
        if name not in names:
            raise unknown_name("input", name, names)
    sizes: dict[str, int] = {}
    for spec in specs:
        if spec.name not in feeds:
            raise InputError(f"input {spec.name!r} is missing", expected=f"inputs {', '.join(names)}")
        value = np.asarray(feeds[spec.name])
        if spec.dtype and str(value.dtype) != spec.dtype:
            raise InputError(
                f"input {spec.name!r} is {value.dtype}",
                expected=spec.dtype,
                remedy=f"convert it with .astype({spec.dtype!r})",
            )
        if not _fits(value.shape, spec.shape, sizes):
            shape = _shape_text(spec.shape)
            raise InputError(f"input {spec.name!r} has shape {value.shape}", expected=f"shape {shape}")


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Let the calling thread run on these cores only, and give it its former ones back afterwards."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    if before == set(cores):  # already so, by an outer block
        yield
        return
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _check_available(target: str) -> None:
    if target not in TARGETS:
        raise unknown_name("ONNX Runtime target", target, TARGETS, remedy="`edgeprune list targets` shows all")
    if TARGETS[target].provider not in onnxruntime.get_available_providers():
        raise _provider_error(target, "this onnxruntime does not have it")


def _provider_error(target: str, what: str) -> InputError:
    wanted = TARGETS[target]
    return InputError(
        f"{wanted.provider} cannot be used: {what}",
        where=f"target {target}",
        expected=f"one of those present: {', '.join(onnxruntime.get_available_providers())}",
        remedy=f"install {wanted.package}, or choose another --target",
    )


def check_cores(cores: Sequence[int]) -> None:
    """InputError if this process cannot be pinned to these cores."""
    if not cores:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("this system cannot pin threads to cores", expected="Linux", remedy="leave the pinning out")
    usable = os.sched_getaffinity(0)
    if not set(cores) <= usable:
        raise InputError(
            f"cannot pin to cores {sorted(set(cores) - usable)}", expected=f"cores out of {sorted(usable)}"
        )


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
    if options.profiling_prefix:
        session.enable_profiling = True
        session.profile_file_prefix = options.profiling_prefix
    return session


def as_model(source: str | Path | bytes | ModelProto) -> ModelProto:
    """A checked copy of a model, wherever it lies; InputError as for `load_model`."""
    if isinstance(source, str | Path):
        return load_model(source, require_conv=False)
    if isinstance(source, bytes):
        return check_model(parse_model(source))
    copy = ModelProto()
    copy.CopyFrom(source)
    return check_model(copy)


def _spec(value: Any) -> TensorSpec:
    return TensorSpec(value.name, tuple(value.shape), _NUMPY_TYPES.get(value.type, ""))


def _fits(shape: tuple[int, ...], wanted: Sequence[int | str | None], sizes: dict[str, int]) -> bool:
    """Whether a shape fits; a named dimension has the same size everywhere (collected in `sizes`)."""
    if len(shape) != len(wanted):
        return False
    for size, dim in zip(shape, wanted, strict=True):
        expected = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
        if expected is not None and size != expected:
            return False
    return True


def _shape_text(shape: Sequence[int | str | None]) -> str:
    return "(" + ", ".join("?" if dim is None else str(dim) for dim in shape) + ")"


def _median_times(events: Sequence[Mapping[str, Any]], warmup: int) -> list[NodeTime]:
    """Each node's median milliseconds over the runs behind the warm-up, out of ONNX Runtime's trace."""
    return [NodeTime(*key, median(times) / 1e3) for key, times in _node_durations(events, warmup).items()]


def _node_durations(events: Sequence[Mapping[str, Any]], warmup: int) -> dict[tuple[str, str, str], list[float]]:
    """(node, operation, provider) -> its durations in microseconds, in the runs behind the warm-up."""
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")[warmup:]
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    suffix = "_kernel_time"
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(suffix) and event["ts"] >= starts[0]:
            args = event["args"]
            key = (event["name"].removesuffix(suffix), args["op_name"], args.get("provider", ""))
            found[key].append(event["dur"])
    return found
