"""What this machine's processor and GPU are, read from the system; nothing heavy is imported for it."""

from __future__ import annotations

import importlib.util
import platform
from functools import cache
from pathlib import Path


def this_machine_block() -> int:
    """FP32 channel block of this machine's processor: 16 with AVX-512, 8 with AVX2, else 4 (NEON, SSE)."""
    flags = _cpu_flags()
    if "avx512f" in flags:
        return 16
    return 8 if "avx2" in flags else 4


def default_profile_name() -> str:
    """The shipped profile nearest to this machine: its board if it is known, else its vector instructions."""
    if platform.machine().lower() in ("x86_64", "amd64", "i686", "x86"):
        return "x86-avx512" if this_machine_block() == 16 else "x86-avx2"
    board = _board()
    known = {"Raspberry Pi 5": "raspberry-pi-5", "RK3588": "rk3588", "Raspberry Pi": "raspberry-pi-4"}
    named = next((profile for text, profile in known.items() if text.lower() in board.lower()), None)
    # Arm cores with FP16 arithmetic are of the Raspberry Pi 5's generation.
    return named or ("raspberry-pi-5" if "asimdhp" in _cpu_flags() else "raspberry-pi-4")


NVIDIA_DRIVER = (
    Path("/proc/driver/nvidia/version"),
    Path("/dev/nvhost-gpu"),  # a Jetson
    Path("/usr/lib/wsl/lib/libcuda.so.1"),  # Linux inside Windows, which lends its driver
)
"""What there is of the driver, one of them on each kind of machine."""


def machine_has_nvidia_gpu() -> bool:
    """Whether an NVIDIA driver is loaded (without loading any library of it)."""
    return any(path.exists() for path in NVIDIA_DRIVER)


def machine_has_half_arithmetic() -> bool:
    """Whether this machine's processor computes in FP16: Arm since the Raspberry Pi 5, some newer Xeons."""
    return not _cpu_flags().isdisjoint({"asimdhp", "avx512_fp16", "amx_fp16"})


def machine_may_saturate() -> bool:
    """Whether this machine's processor adds products of bytes in 16 bits, as x86 does that has no VNNI."""
    return "avx2" in _cpu_flags() and _cpu_flags().isdisjoint({"avx512_vnni", "avx_vnni"})


def is_importable(module: str) -> bool:
    """Whether a Python package is installed, without importing it."""
    return importlib.util.find_spec(module) is not None


@cache
def _cpu_flags() -> frozenset[str]:
    """Instruction set extensions of the first core; empty where /proc/cpuinfo does not exist."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return frozenset()
    for line in path.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _board() -> str:
    """The board's name in the device tree, such as `Raspberry Pi 5 Model B Rev 1.0`; empty elsewhere."""
    paths = (Path("/proc/device-tree/model"), Path("/proc/device-tree/compatible"))
    return " ".join(path.read_text(errors="replace").replace("\0", " ") for path in paths if path.exists())
