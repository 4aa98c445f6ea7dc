"""edgeprune's one-shot methods, asked for a share of the multiply-adds: the one place where benchmarks call them."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import edgeprune
from edgeprune.datasets.images import Dataset
from edgeprune.errors import InputError
from edgeprune.pruning.network import Network
from edgeprune.pruning.pruned import Pruned

Align = int | Literal["auto", "none"]
NAMES = ("gkp-cal", "tmi-gkp", "gconv", "fpgm", "sfp")
GROUPS = 8
RATES = tuple(number / 32 for number in range(2, 25))
"""That are tried for the methods that take no budget."""
FARTHEST = 0.15
"""A method that comes no nearer to the asked share of the multiply-adds than this has no result there."""


def pruned(network: Network, method: str, share: float, align: Align, images: Dataset) -> Pruned:
    """The network pruned to about this share of its multiply-adds, with channels in such blocks.

    The methods that take no budget get the rate at which they come nearest; gkp-cal's plan has the multiply-adds of
    tmi-gkp's, which looks at no images. InputError if none is near, and as `edgeprune.prune` says.
    """
    prune = partial(edgeprune.prune, network.model, network.example_input(1), align=align)
    if method in ("gconv", "fpgm", "sfp"):
        return prune(method=method, budget={"macs": share})
    planned = partial(prune, method="tmi-gkp", groups=GROUPS, settings={"schemes": "spectral"})
    left = {rate: _share(planned(rate=rate)) for rate in RATES}
    rate = min(left, key=lambda rate: abs(math.log(left[rate] / share)))
    check_share(left[rate], share)
    return planned(rate=rate) if method == "tmi-gkp" else prune(method=method, groups=GROUPS, rate=rate, data=images)


def check_share(found: float, asked: float) -> None:
    """InputError if one share of the multiply-adds is not near the other."""
    if abs(found / asked - 1) > FARTHEST:
        raise InputError(f"comes no nearer to {asked:g} of the multiply-adds than {found:.3f}")


def _share(found: Pruned) -> float:
    return found.macs.pruned / found.macs.dense
