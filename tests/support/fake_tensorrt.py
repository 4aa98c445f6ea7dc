"""A pretended TensorRT 10 or 11 on a pretended GPU: engines hold the ONNX model, and ONNX Runtime computes it.

It refuses what the real one refuses: a plan of another GPU or version, a weakly typed network in version 10, shapes
outside of the optimization profile, the default stream, tensors without memory of the right size.
"""

from __future__ import annotations

import ctypes
import enum
import gc
import json
import weakref
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
from fake_cuda import FakeGpu
from onnx import ModelProto, TensorProto

from edgeprune.onnx_files.inputs import input_specs, output_specs
from edgeprune.onnx_files.shapes import concrete_types

MS_A_LAYER = 1.0
_NUMPY = {TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.INT64: "INT64", TensorProto.BOOL: "BOOL"}


class FakeState:
    """What TensorRT does in the tests' behalf, to be set and looked at; one for each module."""

    def __init__(self) -> None:
        self.builds: list[dict[str, Any]] = []
        self.unsupported: set[str] = set()
        """Operations that the parser refuses."""
        self.refused = False
        """Whether the next saved engine is not taken."""
        self.build_error = ""
        self.run_error = ""
        self.engine_bytes = 1000
        """That a context reserves on the GPU."""
        self.alive = 0
        """Engines and contexts that nobody has freed."""

    def track(self, thing: Any) -> None:
        self.alive += 1
        weakref.finalize(thing, self._freed)

    def _freed(self) -> None:
        self.alive -= 1

    def leaked(self) -> int:
        gc.collect()
        return self.alive


def tensorrt_module(gpu: FakeGpu, version: str) -> ModuleType:
    """What stands for the package `tensorrt`, with its `FakeState` as `state`."""
    state = FakeState()
    is_11 = int(version.partition(".")[0]) >= 11

    class DataType(enum.IntEnum):
        FLOAT, HALF, INT8, INT32, BOOL, UINT8, FP8, BF16, INT64 = range(9)

    class NetworkDefinitionCreationFlag(enum.IntEnum):
        STRONGLY_TYPED = 1

    class ProfilingVerbosity(enum.IntEnum):
        LAYER_NAMES_ONLY, NONE, DETAILED = range(3)

    class BuilderFlag(enum.IntEnum):
        TF32 = 7

    class TensorIOMode(enum.IntEnum):
        NONE, INPUT, OUTPUT = range(3)

    class LayerInformationFormat(enum.IntEnum):
        ONELINE, JSON = range(2)

    class ILogger:
        class Severity(enum.IntEnum):
            INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

        def __init__(self) -> None:
            self.started = True

    class IProfiler:
        def __init__(self) -> None:
            self.started = True

    class Dims:
        """A sequence without an iterator of its own, as in the bindings."""

        def __init__(self, shape: Any) -> None:
            self._sizes = [int(size) for size in shape]

        def __getitem__(self, axis: int) -> int:
            return self._sizes[axis]

        def __len__(self) -> int:
            return len(self._sizes)

    class IHostMemory(bytes):
        pass

    class ITensor:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.name, self.shape, self.dtype = args

    class INetworkDefinition:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            (self._typed,) = args
            self._model: ModelProto | None = None

        @property
        def num_inputs(self) -> int:
            return len(input_specs(self._model))

        def get_input(self, index: int) -> ITensor:
            spec = input_specs(self._model)[index]
            sizes = Dims(size if isinstance(size, int) else -1 for size in spec.shape)
            return ITensor(spec.name, sizes, DataType.FLOAT)

    class ParserError:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            (self._node,) = args

        def desc(self) -> str:
            return "Plugin not found, are the plugin name, version, and namespace correct?"

        def node_name(self) -> str:
            return str(self._node.name)

        def node_operator(self) -> str:
            return str(self._node.op_type)

    class OnnxParser:
        def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
            self._network, self._logger, self._errors = network, logger, []

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def parse(self, model: bytes, path: str | None = None) -> bool:
            parsed = ModelProto.FromString(model)
            self._errors = [ParserError(node) for node in parsed.graph.node if node.op_type in state.unsupported]
            self._network._model = parsed
            return not self._errors

        def get_error(self, index: int) -> ParserError:
            return self._errors[index]

    class ITimingCache:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            (self._data,) = args

        def serialize(self) -> IHostMemory:
            return IHostMemory(json.dumps(self._data).encode())

    class IOptimizationProfile:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._shapes: dict[str, list[list[int]]] = {}

        def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None:
            self._shapes[input] = [list(dims._sizes) for dims in (min, opt, max)]

    class IBuilderConfig:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
            self._flags = {BuilderFlag.TF32}
            self._cache: ITimingCache | None = None
            self._profiles: list[IOptimizationProfile] = []

        def clear_flag(self, flag: BuilderFlag) -> None:
            self._flags.discard(flag)

        def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
            try:
                return ITimingCache(json.loads(serialized_timing_cache or b'{"for": null, "nodes": []}'))
            except ValueError:
                return None

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            if cache._data["for"] not in (None, [gpu.name, version]) and not ignore_mismatch:
                return False
            self._cache = cache
            return True

        def get_timing_cache(self) -> ITimingCache | None:
            return self._cache

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            if not profile._shapes:
                return -1
            self._profiles.append(profile)
            return len(self._profiles) - 1

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            _check_start(logger)
            self._logger = logger

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            return INetworkDefinition(is_11 or bool(flags & 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED))

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
            assert network._typed, "weakly typed: FP32 layers may become FP16 in version 10, and version 11 has none"
            assert network._model is not None
            assert config._cache is not None
            shapes = config._profiles[0]._shapes if config._profiles else {}
            dynamic = [spec for spec in input_specs(network._model) if not isinstance(spec.shape[0], int)]
            if state.build_error or any(spec.name not in shapes for spec in dynamic):
                self._logger.log(ILogger.Severity.WARNING, "something of no interest")
                self._logger.log(ILogger.Severity.ERROR, state.build_error or "no optimization profile")
                return None
            nodes = [node.name for node in network._model.graph.node]
            known = set(config._cache._data["nodes"])
            config._cache._data = {"for": [gpu.name, version], "nodes": sorted({*nodes, *known})}
            plan = {
                "gpu": gpu.name,
                "version": version,
                "shapes": shapes,
                "detailed": config.profiling_verbosity == ProfilingVerbosity.DETAILED,
                "model": network._model.SerializeToString().hex(),
            }
            timed = sum(name not in known for name in nodes)
            types = {tensor.data_type for tensor in network._model.graph.initializer if len(tensor.dims) > 1}
            state.builds.append(
                {
                    "tf32": BuilderFlag.TF32 in config._flags,
                    "half": types == {TensorProto.FLOAT16},
                    "shapes": shapes,
                    "timed": timed,
                }
            )
            return IHostMemory(json.dumps(plan).encode())

    class EngineInspector:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            (self._engine,) = args

        def get_engine_information(self, format: LayerInformationFormat) -> str:
            assert format == LayerInformationFormat.JSON
            layers = self._engine._layers
            tensors = {"I/O Tensors": [{"Name": "x"}]} if is_11 else {"Bindings": ["x"]}
            detailed = self._engine._plan["detailed"]
            return json.dumps({"Layers": layers if detailed else [layer["Name"] for layer in layers], **tensors})

    class IExecutionContext:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            (self._engine,) = args
            self.profiler: IProfiler | None = None
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            gpu.reserved += state.engine_bytes
            weakref.finalize(self, setattr, gpu, "reserved", gpu.reserved - state.engine_bytes)
            state.track(self)

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            allowed = self._engine._plan["shapes"].get(name)
            fits = allowed is None or all(
                low <= size <= high for low, size, high in zip(allowed[0], shape, allowed[2], strict=True)
            )
            if not fits:
                self._engine._logger.log(ILogger.Severity.ERROR, "Set dimension is outside of the profile")
            self._shapes[name] = tuple(shape)
            return fits

        def get_tensor_shape(self, name: str) -> Dims:
            batch = next(iter(self._shapes.values()))[0]
            return Dims(self._shapes.get(name) or concrete_types(self._engine._model, batch)[name][0])

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert stream_handle in gpu.streams, "the default stream, or none"
            if state.run_error:
                self._engine._logger.log(ILogger.Severity.ERROR, state.run_error)
                return False
            if self.profiler is None:
                gpu.streams[stream_handle].append(self._compute)
                return True
            assert self.profiler.started, "the base class was not initialised"
            self._compute()
            for layer in self._engine._layers:
                self.profiler.report_layer_time(layer["Name"], MS_A_LAYER)
            return True

        def _compute(self) -> None:
            specs = {spec.name: spec for spec in input_specs(self._engine._model)}
            feeds = {name: self._array(name, self._shapes[name], spec.dtype) for name, spec in specs.items()}
            for name, value in self._engine._run(feeds).items():
                self._array(name, value.shape, str(value.dtype))[...] = value
            gpu.clock_ms += MS_A_LAYER * len(self._engine._layers)

        def _array(self, name: str, shape: tuple[int, ...], dtype: str) -> Any:
            """The tensor in the GPU's memory."""
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            assert gpu.holds(self._addresses[name], size), f"{name} has no memory"
            block = (ctypes.c_byte * size).from_address(self._addresses[name])
            return np.frombuffer(block, dtype).reshape(shape)

    class ICudaEngine:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._plan, self._logger = args
            self._model = ModelProto.FromString(bytes.fromhex(self._plan["model"]))
            self._session = onnxruntime.InferenceSession(self._model.SerializeToString())
            self._layers = _layers(self._model)
            self._types = {
                value.name: DataType[_NUMPY[value.type.tensor_type.elem_type]]
                for value in (*self._model.graph.input, *self._model.graph.output)
            }
            state.track(self)

        @property
        def num_io_tensors(self) -> int:
            return len(self._types)

        def get_tensor_name(self, index: int) -> str:
            return list(self._types)[index]

        def get_tensor_dtype(self, name: str) -> DataType:
            return self._types[name]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            inputs = [spec.name for spec in input_specs(self._model)]
            return TensorIOMode.INPUT if name in inputs else TensorIOMode.OUTPUT

        def create_engine_inspector(self) -> EngineInspector:
            return EngineInspector(self)

        def create_execution_context(self, strategy: Any = None) -> IExecutionContext | None:
            if state.engine_bytes > gpu.free:
                self._logger.log(ILogger.Severity.ERROR, "Error Code 2: OutOfMemory (Requested size was 9 bytes.)")
                return None
            return IExecutionContext(self)

        def _run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
            names = [spec.name for spec in output_specs(self._model)]
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            _check_start(logger)
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            try:
                plan = json.loads(serialized_engine)
            except ValueError:
                plan = {}
            refused, state.refused = state.refused, False
            if refused or [plan.get("gpu"), plan.get("version")] != [gpu.name, version]:
                self._logger.log(ILogger.Severity.ERROR, "Serialization assertion plan->header failed")
                return None
            return ICudaEngine(plan, self._logger)

    def _check_start(logger: ILogger) -> None:
        assert logger.started, "the base class was not initialised"
        if not gpu.driver:
            raise TypeError("pybind11::init(): factory function returned nullptr")

    module = ModuleType("tensorrt")
    vars(module).update({name: value for name, value in locals().items() if isinstance(value, type)})
    vars(module).update(__version__=version, state=state)
    return module


def _layers(model: ModelProto) -> list[dict[str, str]]:
    """As TensorRT lists them: a reordering in front, convolutions fused with what follows, casts as reorderings."""
    layers = [{"Name": "Reformatting CopyNode for Input Tensor 0 to first", "LayerType": "Reformat", "Metadata": ""}]
    for node in model.graph.node:
        if node.op_type == "Relu" and layers[-1]["LayerType"] == "CaskConvolution":
            layers[-1]["Name"] = f"__myl_Fused_{len(layers)}"
            layers[-1]["Metadata"] += f"\x1f[ONNX Layer: {node.name}]"
            continue
        kinds = {"Conv": "CaskConvolution", "Cast": "Reformat"}
        metadata = f"[ONNX Layer: {node.name}]"
        layers.append({"Name": node.name, "LayerType": kinds.get(node.op_type, "Kernel"), "Metadata": metadata})
    return layers
