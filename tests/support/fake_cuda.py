"""A pretended GPU and CUDA runtime: memory is the computer's, and queued work is done when somebody waits for it.

Whoever reads a result before waiting for it reads nothing, copies outside of what was allocated fail, and memory ends.
"""

# CUDA's own names are written as CUDA writes them.
# ruff: noqa: N801, N802, N803, N815
from __future__ import annotations

import ctypes
import enum
import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any

MS_A_COPY = 0.25


class FakeGpu:
    """The state of the pretended machine, to be set and looked at by tests."""

    def __init__(self, name: str = "Fake GPU", capability: tuple[int, int] = (9, 0), memory: int = 1 << 30) -> None:
        self.name, self.capability, self.memory = name, capability, memory
        self.count = 1
        self.driver = True
        self.failing: dict[str, str] = {}
        """CUDA function -> the error that it gives."""
        self.device: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.events: dict[int, float | None] = {}
        self.handles = itertools.count(100)
        self.clock_ms = 0.0
        self.reserved = 0
        """Bytes that engines hold for themselves."""

    @property
    def free(self) -> int:
        return self.memory - self.reserved - sum(ctypes.sizeof(block) for block in self.device.values())

    def holds(self, address: int, size: int, *, pinned: bool = False) -> bool:
        """Whether so many bytes from this address on were allocated."""
        blocks = self.pinned if pinned else self.device
        return address in blocks and ctypes.sizeof(blocks[address]) >= size


def cuda_module(gpu: FakeGpu) -> ModuleType:
    """What stands for `cuda.bindings.runtime`."""

    class cudaError_t(enum.IntEnum):
        cudaSuccess = 0
        cudaErrorInvalidValue = 1
        cudaErrorMemoryAllocation = 2
        cudaErrorInsufficientDriver = 35
        cudaErrorNoDevice = 100
        cudaErrorInvalidResourceHandle = 400
        cudaErrorNotReady = 600
        cudaErrorIllegalAddress = 700

    class cudaMemcpyKind(enum.IntEnum):
        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2

    class cudaDeviceProp:
        name = gpu.name.encode() + bytes(3)
        major, minor = gpu.capability

    def answer(function: str, *values: Any, fault: cudaError_t = cudaError_t.cudaSuccess) -> tuple[Any, ...]:
        error = fault if gpu.driver else cudaError_t.cudaErrorInsufficientDriver
        if function in gpu.failing:
            error = cudaError_t[gpu.failing[function]]
        return (error, *(None if error else value for value in values))

    def cudaGetDeviceCount() -> Any:
        missing = cudaError_t.cudaSuccess if gpu.count else cudaError_t.cudaErrorNoDevice
        return answer("cudaGetDeviceCount", gpu.count, fault=missing)

    def cudaGetDevice() -> Any:
        return answer("cudaGetDevice", 0)

    def cudaGetDeviceProperties(device: int) -> Any:
        return answer("cudaGetDeviceProperties", cudaDeviceProp())

    def cudaGetErrorString(error: Any) -> Any:
        words = {2: b"out of memory", 35: b"CUDA driver version is insufficient for CUDA runtime version"}
        return cudaError_t.cudaSuccess, words.get(int(error), cudaError_t(error).name.encode())

    def cudaMemGetInfo() -> Any:
        return answer("cudaMemGetInfo", gpu.free, gpu.memory)

    def allocated(function: str, blocks: dict[int, Any], size: int, room: int) -> Any:
        result = answer(function, 0, fault=cudaError_t(2 if size > room else 0))
        if result[0]:
            return result
        block = (ctypes.c_byte * size)()
        blocks[ctypes.addressof(block)] = block
        return result[0], ctypes.addressof(block)

    def cudaMalloc(size: int) -> Any:
        return allocated("cudaMalloc", gpu.device, size, gpu.free)

    def cudaMallocHost(size: int) -> Any:
        return allocated("cudaMallocHost", gpu.pinned, size, 1 << 40)

    def cudaFree(devPtr: int) -> Any:
        del gpu.device[devPtr]
        return answer("cudaFree")

    def cudaFreeHost(ptr: int) -> Any:
        del gpu.pinned[ptr]
        return answer("cudaFreeHost")

    def cudaMemcpyAsync(dst: int, src: int, count: int, kind: Any, stream: Any) -> Any:
        inwards = kind == cudaMemcpyKind.cudaMemcpyHostToDevice
        inside = gpu.holds(dst, count, pinned=not inwards) and gpu.holds(src, count, pinned=inwards)
        result = answer("cudaMemcpyAsync", fault=cudaError_t(0 if inside else 1))

        def copy() -> None:
            ctypes.memmove(dst, src, count)
            gpu.clock_ms += MS_A_COPY

        if not result[0]:
            gpu.streams[int(stream)].append(copy)
        return result

    def cudaStreamCreateWithFlags(flags: int) -> Any:
        result = answer("cudaStreamCreateWithFlags", next(gpu.handles))
        if not result[0]:
            gpu.streams[result[1]] = []
        return result

    def cudaStreamSynchronize(stream: Any) -> Any:
        result = answer("cudaStreamSynchronize")
        queue = gpu.streams[int(stream)]
        while queue:
            work = queue.pop(0)
            if not result[0]:
                work()
        return result

    def cudaStreamDestroy(stream: Any) -> Any:
        del gpu.streams[int(stream)]
        return answer("cudaStreamDestroy")

    def cudaEventCreate() -> Any:
        result = answer("cudaEventCreate", next(gpu.handles))
        if not result[0]:
            gpu.events[result[1]] = None
        return result

    def cudaEventRecord(event: Any, stream: Any) -> Any:
        gpu.events[event] = None
        gpu.streams[int(stream)].append(lambda: gpu.events.__setitem__(event, gpu.clock_ms))
        return answer("cudaEventRecord")

    def cudaEventElapsedTime(start: Any, end: Any) -> Any:
        first, last = gpu.events[start], gpu.events[end]
        if first is None or last is None:
            return answer("cudaEventElapsedTime", 0.0, fault=cudaError_t.cudaErrorNotReady)
        return answer("cudaEventElapsedTime", last - first)

    def cudaEventDestroy(event: Any) -> Any:
        del gpu.events[event]
        return answer("cudaEventDestroy")

    module = ModuleType("cuda.bindings.runtime")
    offered = {name: value for name, value in locals().items() if name.startswith("cuda")}
    vars(module).update(offered, cudaStreamNonBlocking=1)
    return module
