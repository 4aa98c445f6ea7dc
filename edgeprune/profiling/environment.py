"""Facts of the machine that decide about a measurement. Read from the system; nothing heavy is imported for it."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

from edgeprune.profiling.result import Environment

# The extensions that convolution kernels are written for.
_TELLING_FLAGS = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "neon",
    "asimd",
    "asimddp",
    "asimdhp",
    "fphp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
)
_PACKAGES = (
    "edgeprune",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "openvino",
    "ai-edge-litert",
    "ncnn",
    "tensorrt",
    "onnx",
    "torch",
    "numpy",
)
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_STATUS = Path("/proc/self/status")
_NVIDIA = Path("/proc/driver/nvidia/gpus")


def current_environment(threads: int) -> Environment:
    """This machine, now; `threads` is what the measurement will use."""
    info = _cpu_info()
    return Environment(
        cpu=info.get("model name") or info.get("Model") or platform.processor() or platform.machine(),
        cores=usable_cores(),
        threads=threads,
        runtime_versions=runtime_versions(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        flags=_flags(info),
        memory_gb=round(psutil.virtual_memory().total / 1e9, 1),
        governor=_GOVERNOR.read_text().strip() if _GOVERNOR.exists() else "",
        load_average=load_average(),
        gpu=_gpu(),
    )


def usable_core_numbers() -> tuple[int, ...]:
    """Cores that this process may use, numbered from 0."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(usable_core_numbers())


def crowding(threads: int, cores: int) -> tuple[str, ...]:
    """A sentence where threads have to share cores."""
    return (f"{threads} threads share {cores} core{'s' if cores > 1 else ''}",) if threads > cores else ()


def peak_memory_mb() -> float | None:
    """Largest resident memory that this process ever had, in 10^6 bytes; None where the system does not tell.

    Not from `getrusage`: where a process was started from another one, that begins with the other's.
    """
    if _STATUS.exists():
        lines = _STATUS.read_text().splitlines()
        return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), None)
    memory = psutil.Process().memory_info()
    peak = getattr(memory, "peak_wset", None)  # Windows
    return None if peak is None else peak / 1e6


def load_average() -> float | None:
    """Runnable programs, mean of the last minute; None where the system does not count them."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def runtime_versions() -> dict[str, str]:
    """Versions of Python and of the packages that run models, those that are installed."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _flags(info: dict[str, str]) -> tuple[str, ...]:
    present = set((info.get("flags") or info.get("Features") or "").split())
    return tuple(flag for flag in _TELLING_FLAGS if flag in present)


def _cpu_info() -> dict[str, str]:
    """What /proc/cpuinfo says of the first core and of the board; empty where there is no such file."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    info: dict[str, str] = {}
    for line in path.read_text(errors="replace").splitlines():
        key, separator, value = line.partition(":")
        if separator:
            info.setdefault(key.strip(), value.strip())
    return info


def _gpu() -> str:
    """The first NVIDIA GPU's name, as its driver states it; empty if there is none."""
    files = sorted(_NVIDIA.glob("*/information")) if _NVIDIA.is_dir() else []
    lines = files[0].read_text(errors="replace").splitlines() if files else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model")), "")
