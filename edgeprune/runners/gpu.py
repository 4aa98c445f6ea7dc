"""What every runner on an NVIDIA GPU says of the device, and of its memory when that is used up."""

from __future__ import annotations

from dataclasses import dataclass

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
