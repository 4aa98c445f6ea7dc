"""How many bits the weights of INT8 take."""

from __future__ import annotations

from typing import Literal, get_args

from edgeprune.devices.this_machine import machine_may_saturate

WeightBits = Literal["auto", "7", "8"]
WEIGHT_BITS: tuple[WeightBits, ...] = get_args(WeightBits)


def weight_bits(asked: WeightBits, *, symmetric: bool = False) -> int:
    """7 or 8. Left alone, 7 where this machine's processor adds products of two bytes in 16 bits, which a sum of two
    overflows: the numbers would be cut without a word. Symmetric activations are for GPUs, which add in 32."""
    if asked != "auto":
        return int(asked)
    return 7 if machine_may_saturate() and not symmetric else 8
