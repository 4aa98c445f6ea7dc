"""The CUDA runtime as far as a runner needs it: the device, memory on both sides of the bus, a stream, and its clock.

By NVIDIA's own bindings (cuda-bindings): small, kept up with each CUDA release, linked to no library but the driver's,
and each function's signature is checked by its compiler, where a wrong argument type in ctypes corrupts memory.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray

from edgeprune.errors import InputError
from edgeprune.runners.gpu import Gpu, out_of_memory


def this_gpu() -> Gpu:
    """The GPU that CUDA uses; InputError if there is no driver, or no GPU."""
    error, _ = cudart.cudaGetDeviceCount()
    if error != cudart.cudaError_t.cudaSuccess:
        raise InputError(
            f"no NVIDIA GPU can be used: {_text(error)}",
            expected="an NVIDIA GPU and its driver, as nvidia-smi shows them",
            remedy="install or update NVIDIA's driver, or pip install cuda-bindings of the driver's CUDA version",
        )
    device = _value(cudart.cudaGetDevice(), "asking for the device")
    properties = _value(cudart.cudaGetDeviceProperties(device), "asking for the device")
    name = properties.name.partition(b"\0")[0].decode(errors="replace")
    return Gpu(name, f"{properties.major}.{properties.minor}")


class Stream:
    """A queue of work for the GPU. Not CUDA's default one, in which TensorRT would wait for the whole device."""

    def __init__(self) -> None:
        self._stream = _value(
            cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking), "making a stream of work for the GPU"
        )

    @property
    def handle(self) -> int:
        return int(self._stream)

    def wait(self) -> None:
        """Until all work is done; InputError if any of it failed."""
        _value(cudart.cudaStreamSynchronize(self._stream), "running the model")

    def close(self) -> None:
        if self._stream is not None:
            cudart.cudaStreamDestroy(self._stream)
            self._stream = None


class Marks:
    """Points in a stream's work; the time between two of them is read when the stream is idle again."""

    def __init__(self, count: int) -> None:
        self._events: list[Any] = []
        try:
            for _ in range(count):
                self._events.append(_value(cudart.cudaEventCreate(), "making a clock on the GPU"))
        except InputError:
            self.close()
            raise

    def set(self, number: int, stream: Stream) -> None:
        _value(cudart.cudaEventRecord(self._events[number], stream.handle), "reading the GPU's clock")

    def between_ms(self, first: int, last: int) -> float:
        events = self._events[first], self._events[last]
        return float(_value(cudart.cudaEventElapsedTime(*events), "reading the GPU's clock"))

    def close(self) -> None:
        for event in self._events:
            cudart.cudaEventDestroy(event)
        self._events = []


class TensorBuffer:
    """One tensor on both sides: `host` in pinned memory, which the GPU copies from and to at full speed, and
    `address` in the GPU's memory. `host` must not be used after `close`."""

    def __init__(self, shape: Sequence[int], dtype: str) -> None:
        """InputError if one of the two memories is used up."""
        kind = np.dtype(dtype)
        count = math.prod(shape)
        self._bytes = max(count * kind.itemsize, 1)
        doing = f"making room for a tensor of {self._bytes / 1e6:.1f} MB"
        self._pinned = int(_value(cudart.cudaMallocHost(self._bytes), f"{doing} in pinned memory"))
        try:
            self.address = int(_value(cudart.cudaMalloc(self._bytes), doing))
        except InputError:
            cudart.cudaFreeHost(self._pinned)
            raise
        memory = np.ctypeslib.as_array((ctypes.c_byte * self._bytes).from_address(self._pinned))
        self.host: NDArray[np.generic] = memory[: count * kind.itemsize].view(kind).reshape(tuple(shape))

    def copy_in(self, stream: Stream) -> None:
        """Queue the copy from `host` to the GPU."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        copied = cudart.cudaMemcpyAsync(self.address, self._pinned, self._bytes, kind, stream.handle)
        _value(copied, "copying to the GPU")

    def copy_out(self, stream: Stream) -> None:
        """Queue the copy from the GPU to `host`."""
        kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        copied = cudart.cudaMemcpyAsync(self._pinned, self.address, self._bytes, kind, stream.handle)
        _value(copied, "copying from the GPU")

    def close(self) -> None:
        if self._bytes:
            cudart.cudaFree(self.address)
            cudart.cudaFreeHost(self._pinned)
            self._bytes = 0


def _value(result: tuple[Any, ...], doing: str) -> Any:
    """What a CUDA function returned behind its error code; InputError if that is one."""
    error, *values = result
    if error == cudart.cudaError_t.cudaErrorMemoryAllocation:
        raise out_of_memory(doing, _free_memory())
    if error != cudart.cudaError_t.cudaSuccess:
        raise InputError(
            f"CUDA failed while {doing}: {_text(error)}",
            expected="a working NVIDIA driver and GPU",
            remedy="look at nvidia-smi and the system's log, or choose another --target",
        )
    return values[0] if values else None


def _free_memory() -> str:
    error, free, total = cudart.cudaMemGetInfo()
    if error != cudart.cudaError_t.cudaSuccess:
        return _text(error)
    return f"{free / 1e6:.0f} of {total / 1e6:.0f} MB are free"


def _text(error: Any) -> str:
    _, text = cudart.cudaGetErrorString(error)
    return str(text.decode(errors="replace"))
