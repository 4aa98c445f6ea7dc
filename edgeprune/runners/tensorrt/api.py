"""TensorRT 10 and 11 themselves, by the API that both have: build a network, load an engine, run it.

The one module that speaks TensorRT. Bytes, numbers, names and addresses go in and out, so that every name and
signature used here can be checked against the published bindings of both versions where no GPU is
(tests/runners/tensorrt/test_tensorrt_contract.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsFloat, TypeVar, cast

import tensorrt as trt

from edgeprune.errors import InputError
from edgeprune.runners.gpu import out_of_memory
from edgeprune.runners.tensorrt.batch_range import BatchRange

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")
VERSION: str = trt.__version__

_OUT_OF_MEMORY = re.compile(r"out.?of.?memory|insufficient memory", re.IGNORECASE)


class EngineRefusedError(InputError):
    """TensorRT does not take a saved engine: it is damaged, or for another GPU or version after all."""


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of an engine."""

    name: str
    dtype: str
    """numpy's name of its type; empty if numpy has none."""
    is_input: bool


class LayerTimes(trt.IProfiler):  # type: ignore[misc]  # without TensorRT its classes are unknown to mypy
    """Milliseconds of every layer, one number a run, in order of execution."""

    def __init__(self) -> None:
        trt.IProfiler.__init__(self)  # not super(): the bindings ask for the base class by name
        self.times: dict[str, list[float]] = {}

    def report_layer_time(self, layer_name: str, ms: SupportsFloat) -> None:
        """Called by TensorRT."""
        self.times.setdefault(layer_name, []).append(float(ms))


class _Log(trt.ILogger):  # type: ignore[misc]
    """Keeps what TensorRT complains of, for the errors that are raised here."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT."""
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            self.errors.append(msg)

    def failure(self, doing: str, *, expected: str, remedy: str, kind: type[InputError] = InputError) -> InputError:
        """The error for a step that TensorRT refused, in its own words."""
        memory = next((text for text in self.errors if _OUT_OF_MEMORY.search(text)), "")
        if memory:
            return out_of_memory(doing, memory)
        reason = self.errors[0] if self.errors else "it gives no reason"
        return kind(f"TensorRT {VERSION} failed while {doing}: {reason}", expected=expected, remedy=remedy)


_LOG = _Log()
"""One for the process: TensorRT keeps to the first that it is given, and it must outlive all that is made with it."""


def build_plan(model: bytes, batches: BatchRange, *, tf32: bool, timing_cache: bytes = b"") -> tuple[bytes, bytes]:
    """An ONNX model, weights inside, as (a serialized engine for this GPU, the timing cache for later builds).

    The network is strongly typed: each tensor has the type that the model gives it. `tf32` lets FP32 convolutions
    round their inputs to 10 bits of mantissa. Inputs with a dynamic first axis take any size of `batches`. A timing
    cache of another GPU or version is left aside. InputError, in TensorRT's words, if it does not take the model, or
    has not enough memory.
    """
    _LOG.errors.clear()
    try:
        builder = trt.Builder(_LOG)
    except TypeError as error:  # what the bindings make of a null pointer
        raise _cannot_start() from error
    # Version 11 knows no other kind of network, and ignores the flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, _LOG)
    if not parser.parse(model):
        raise _not_parsed(parser)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that layers tell which ONNX nodes they hold
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    _use_timing_cache(config, timing_cache)
    _set_batches(builder, network, config, batches)
    plan = _or_none(builder.build_serialized_network(network, config))
    if plan is None:
        raise _LOG.failure(
            "building an engine",
            expected="a network of operations that TensorRT has kernels for",
            remedy="try --target tensorrt, which leaves single operations to other providers",
        )
    timed = config.get_timing_cache().serialize()
    return bytes(cast("Buffer", plan)), bytes(cast("Buffer", timed))


class Engine:
    """A loaded engine. Use from one thread; close its contexts first."""

    def __init__(self, plan: bytes) -> None:
        """EngineRefusedError if the plan is not for this GPU and version; InputError if memory is used up."""
        _LOG.errors.clear()
        try:
            self._runtime = trt.Runtime(_LOG)
        except TypeError as error:
            raise _cannot_start() from error
        engine = _or_none(self._runtime.deserialize_cuda_engine(plan))
        if engine is None:
            raise _LOG.failure(
                "loading an engine",
                expected="an engine that was built on this GPU by this version",
                remedy="delete the file, so that it is built again",
                kind=EngineRefusedError,
            )
        self._engine = engine

    def tensors(self) -> tuple[EngineTensor, ...]:
        """Inputs and outputs in the engine's order."""
        names = [self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)]
        return tuple(
            EngineTensor(
                name,
                _dtype(self._engine.get_tensor_dtype(name)),
                self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            )
            for name in names
        )

    def layers_json(self) -> str:
        """What the engine's inspector tells of its layers."""
        inspector = self._engine.create_engine_inspector()
        information: str = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return information

    def context(self, times: LayerTimes | None = None) -> Context:
        """A place to run the engine in, with working memory of its own. With `times`, runs wait for their end and
        tell the time of each layer."""
        _LOG.errors.clear()
        context = _or_none(self._engine.create_execution_context())
        if context is None:
            raise _LOG.failure(
                "making room to run the model", expected="an engine that can run here", remedy="build it again"
            )
        return Context(context, times)

    def close(self) -> None:
        del self._engine, self._runtime


class Context:
    """A place to run an engine in. Give all inputs their shapes, then all tensors their memory, then run."""

    def __init__(self, context: trt.IExecutionContext, times: LayerTimes | None) -> None:
        self._context, self._times = context, times
        if times is not None:
            self._context.profiler = times

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """InputError if the engine was not built for it."""
        _LOG.errors.clear()
        if not self._context.set_input_shape(name, shape):
            raise _LOG.failure(
                f"giving input {name!r} the shape {shape}",
                expected="a shape that the engine was built for",
                remedy="build an engine for this batch size",
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an input or output, once the inputs have theirs. InputError if it depends on the inputs' values."""
        sizes = _sizes(self._context.get_tensor_shape(name))
        if min(sizes, default=0) < 0:
            raise InputError(
                f"the size of output {name!r} depends on the values of the inputs",
                expected="outputs whose shapes follow from those of the inputs",
                remedy="choose another --target",
            )
        return sizes

    def set_address(self, name: str, address: int) -> None:
        """Where a tensor lies in the GPU's memory."""
        _LOG.errors.clear()
        if not self._context.set_tensor_address(name, address):
            raise _LOG.failure(f"placing {name!r}", expected="an address on the GPU", remedy="build it again")

    def enqueue(self, stream: int) -> None:
        """Start one run, behind the work that is in this CUDA stream."""
        _LOG.errors.clear()
        if not self._context.execute_async_v3(stream):
            raise _LOG.failure("running the model", expected="a run without errors", remedy="build it again")

    def close(self) -> None:
        del self._context


def _or_none(result: T) -> T | None:
    """A result that may be None: the bindings do not say which ones may."""
    return result


def _use_timing_cache(config: trt.IBuilderConfig, data: bytes) -> None:
    cache = _or_none(config.create_timing_cache(data))
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _set_batches(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, batches: BatchRange
) -> None:
    """Give the batch sizes to every input whose first axis is dynamic. A network without such wants no profile."""
    profile = builder.create_optimization_profile()
    dynamic = False
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        first, *others = _sizes(tensor.shape) or (1,)
        if first < 0:
            least, best, most = (trt.Dims([size, *others]) for size in (batches.least, batches.best, batches.most))
            profile.set_shape(tensor.name, least, best, most)
            dynamic = True
    if dynamic and config.add_optimization_profile(profile) < 0:
        raise _LOG.failure(
            f"setting batch size {batches}", expected="a batch as the only dynamic axis", remedy="export it again"
        )


def _sizes(dims: trt.Dims) -> tuple[int, ...]:
    return tuple(dims[axis] for axis in range(len(dims)))


def _dtype(kind: trt.DataType) -> str:
    names = {
        trt.DataType.FLOAT: "float32",
        trt.DataType.HALF: "float16",
        trt.DataType.INT8: "int8",
        trt.DataType.UINT8: "uint8",
        trt.DataType.INT32: "int32",
        trt.DataType.INT64: "int64",
        trt.DataType.BOOL: "bool",
    }
    return names.get(kind, "")


def _not_parsed(parser: trt.OnnxParser) -> InputError:
    if not parser.num_errors:
        return _LOG.failure("reading the model", expected="an ONNX model", remedy="export it again")
    error: trt.ParserError = parser.get_error(0)
    node = f" at node {error.node_name()!r} ({error.node_operator()})" if error.node_name() else ""
    return InputError(
        f"TensorRT {VERSION} cannot take the model{node}: {error.desc()}",
        expected="operations that TensorRT has",
        remedy="try --target tensorrt, which leaves single operations to other providers",
    )


def _cannot_start() -> InputError:
    return _LOG.failure(
        "starting",
        expected="an NVIDIA driver that this TensorRT works with",
        remedy="update NVIDIA's driver, or install an older TensorRT",
    )
