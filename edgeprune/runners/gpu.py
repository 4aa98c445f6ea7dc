"""What every runner on an NVIDIA GPU says of the device, and of its memory when that is used up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from edgeprune.errors import InputError


@dataclass(frozen=True)
class Gpu:
    """One GPU, as its driver states it."""

    name: str
    compute_capability: str
    """Such as `9.0`."""


def out_of_memory(doing: str, detail: str) -> InputError:
    """The error for a GPU that has no room left for what was being done."""
    return InputError(
        f"the GPU is out of memory while {doing}: {detail}",
        expected="enough free memory on the GPU",
        remedy="choose a smaller --batch-size, or end other programs that use the GPU",
    )


_TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"
"""Environment variable of NVIDIA's libraries: at 0 none of them uses TF32, whatever a program asks for."""


def forbid_tf32() -> None:
    """Keep all of NVIDIA's libraries in this process from using TF32; for good, since they read it once."""
    os.environ[_TF32_OVERRIDE] = "0"


def check_tf32(where: str) -> None:
    """InputError if TF32 is asked for where the environment forbids it: it would be measured as FP32, silently."""
    if os.environ.get(_TF32_OVERRIDE) == "0":
        raise InputError(
            f"{_TF32_OVERRIDE}=0 keeps NVIDIA's libraries from using TF32",
            where=where,
            remedy=f"unset {_TF32_OVERRIDE}, or choose --precision fp32",
        )


def median_ms(copy: Callable[[], object], times: int) -> float:
    """Median milliseconds of a copy by this computer's clock, after one that does not count. `copy` waits for its end.

    InputError for no times.
    """
    if times < 1:
        raise InputError(f"--iterations {times} is out of range", expected="1 or more")
    copy()
    taken = []
    for _ in range(times):
        begun = time.perf_counter()
        copy()
        taken.append(time.perf_counter() - begun)
    return median(taken) * 1e3
