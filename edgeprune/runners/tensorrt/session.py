"""A TensorRT engine that is ready to run: found on disk or built, with its memory, stream and clock on the GPU.

Imports TensorRT and CUDA, so it is imported only once both are known to be there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from edgeprune.errors import InputError
from edgeprune.io import progress
from edgeprune.io.arrays import Array, Feeds
from edgeprune.onnx_files.model import parse_model
from edgeprune.precision.half import to_half
from edgeprune.runners.gpu import Gpu
from edgeprune.runners.tensorrt.api import (
    VERSION,
    Context,
    Engine,
    EngineRefusedError,
    EngineTensor,
    LayerTimes,
    build_plan,
)
from edgeprune.runners.tensorrt.batch_range import BatchRange
from edgeprune.runners.tensorrt.cuda_memory import Marks, Stream, TensorBuffer
from edgeprune.runners.tensorrt.engine_files import EngineFacts, EngineFiles, load_timing_cache, save_timing_cache
from edgeprune.runners.tensorrt.layers import EngineLayers


class StageTimes(NamedTuple):
    """Milliseconds of one run by the GPU's own clock."""

    copy_in_ms: float
    compute_ms: float
    copy_out_ms: float


@dataclass(frozen=True)
class EngineSource:
    """What engines are built from, and where they are kept."""

    name: str
    model: bytes
    """The ONNX model with its weights, whatever the precision."""
    op_types: Mapping[str, str]
    """The model's nodes -> what they do."""
    precision: str
    gpu: Gpu
    files: EngineFiles | None


def open_session(source: EngineSource, batches: BatchRange) -> EngineSession:
    """With the saved engine if there is one for just this, else with a new one, which is saved. InputError if
    TensorRT does not take the model, or memory is used up."""
    gpu, digest = source.gpu, hashlib.sha256(source.model).hexdigest()
    facts = EngineFacts(gpu.name, gpu.compute_capability, VERSION, source.precision, batches, digest)
    saved = source.files.load(source.name, facts) if source.files else None
    if saved is not None:
        try:
            return EngineSession(Engine(saved), batches, source.op_types)
        except EngineRefusedError as error:
            progress.note(f"{error.what}: building it again")
    return EngineSession(Engine(_build(source, facts)), batches, source.op_types)


class EngineSession:
    """An engine with a stream, a clock, and memory for its tensors. Use from one thread."""

    def __init__(self, engine: Engine, batches: BatchRange, op_types: Mapping[str, str]) -> None:
        self.batches = batches
        self._engine, self._op_types = engine, op_types
        self._tensors = engine.tensors()
        self._inputs = [tensor.name for tensor in self._tensors if tensor.is_input]
        self._outputs = [tensor.name for tensor in self._tensors if not tensor.is_input]
        self._buffers: dict[str, TensorBuffer] = {}
        with ExitStack() as made:  # whatever is made is freed again where the next thing cannot be made
            made.callback(engine.close)
            self._context = engine.context()
            made.callback(self._context.close)
            self._stream = Stream()
            made.callback(self._stream.close)
            self._marks = Marks(4)
            made.callback(self._marks.close)
            made.callback(self._free_buffers)
            self._made = made.pop_all()

    @cached_property
    def layers(self) -> EngineLayers:
        """What the engine's layers are in the model."""
        return EngineLayers.of(self._op_types, self._engine.layers_json())

    def put(self, feeds: Feeds) -> None:
        """Copy the inputs to the GPU, and make room for the outputs."""
        shapes = {name: feeds[name].shape for name in self._inputs}
        if shapes != {name: self._buffers[name].host.shape for name in self._inputs if name in self._buffers}:
            self._make_room(shapes)
        for name in self._inputs:
            self._buffers[name].host[...] = feeds[name]
            self._buffers[name].copy_in(self._stream)
        self._stream.wait()

    def run(self) -> dict[str, Array]:
        """The outputs for the inputs that are on the GPU."""
        self._context.enqueue(self._stream.handle)
        for name in self._outputs:
            self._buffers[name].copy_out(self._stream)
        self._stream.wait()
        return {name: self._buffers[name].host.copy() for name in self._outputs}

    def compute(self) -> None:
        """A run without any copy."""
        self._context.enqueue(self._stream.handle)
        self._stream.wait()

    def timed_run(self) -> StageTimes:
        """A run with the copies of all inputs and outputs, the stages timed apart."""
        stream, marks = self._stream, self._marks
        marks.set(0, stream)
        for name in self._inputs:
            self._buffers[name].copy_in(stream)
        marks.set(1, stream)
        self._context.enqueue(stream.handle)
        marks.set(2, stream)
        for name in self._outputs:
            self._buffers[name].copy_out(stream)
        marks.set(3, stream)
        stream.wait()
        return StageTimes(*(marks.between_ms(first, first + 1) for first in range(3)))

    def layer_times(self, iterations: int, warmup: int) -> dict[str, list[float]]:
        """Layer of the engine -> its milliseconds in each of `iterations` runs, in order of execution."""
        recorder = LayerTimes()
        context = self._engine.context(recorder)
        try:
            self._bind(context)
            for number in range(warmup + iterations):
                if number == warmup:
                    recorder.times.clear()
                context.enqueue(self._stream.handle)
                self._stream.wait()
        finally:
            context.close()
        return recorder.times

    def close(self) -> None:
        self._made.close()

    def _make_room(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Buffers for inputs of these shapes and for the outputs that follow from them."""
        self._free_buffers()
        for name, shape in shapes.items():
            self._context.set_shape(name, shape)
        try:
            for tensor in self._tensors:
                self._buffers[tensor.name] = TensorBuffer(self._context.shape(tensor.name), _dtype(tensor))
            self._bind(self._context)
        except InputError:
            self._free_buffers()
            raise

    def _bind(self, context: Context) -> None:
        for name in self._inputs:
            context.set_shape(name, self._buffers[name].host.shape)
        for name, buffer in self._buffers.items():
            context.set_address(name, buffer.address)

    def _free_buffers(self) -> None:
        while self._buffers:
            self._buffers.popitem()[1].close()


def _build(source: EngineSource, facts: EngineFacts) -> bytes:
    progress.note(
        f"building an engine of {source.name} by TensorRT {facts.tensorrt} for {facts.gpu}, {facts.precision}, "
        f"batch size {facts.batches}: this can take minutes"
    )
    model = source.model
    if source.precision == "fp16":
        model = to_half(parse_model(model)).SerializeToString()
    known = load_timing_cache()
    plan, timed = build_plan(model, facts.batches, tf32=source.precision == "tf32", timing_cache=known)
    save_timing_cache(timed)
    if source.files:
        source.files.save(source.name, facts, plan)
    return plan


def _dtype(tensor: EngineTensor) -> str:
    if not tensor.dtype:
        raise InputError(f"{tensor.name!r} has a type that numpy lacks", expected="FP32, FP16, integers or booleans")
    return tensor.dtype
