"""edgeprune's one-shot methods, asked for a share of the multiply-adds: the one place where benchmarks call them."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import edgeprune
from edgeprune.datasets.images import Dataset
from edgeprune.pruning.network import Network
from edgeprune.pruning.pruned import Pruned

Align = int | Literal["auto", "none"]
NAMES = ("gkp-cal", "tmi-gkp", "gconv", "fpgm", "sfp")
GROUPS = 8
RATES = tuple(number / 32 for number in range(2, 25))
"""That are tried for the methods that take no budget."""
FARTHEST = 0.25
"""How far from the asked share of the multiply-adds a plan may be that images are still looked at for."""


def pruned(
    network: Network, method: str, share: float, align: int | Literal["auto", "none"], images: Dataset
) -> Pruned:
    """The network pruned to about this share of its multiply-adds, with channels in such blocks.

    The methods that take no budget get the rate at which they come nearest; gkp-cal's plan has the multiply-adds of
    tmi-gkp's, which looks at no images. InputError as `edgeprune.prune` says.
    """
    prune = partial(edgeprune.prune, network.model, network.example_input(1), align=align)
    if method in ("gconv", "fpgm", "sfp"):
        return prune(method=method, budget={"macs": share})
    planned = partial(prune, method="tmi-gkp", groups=GROUPS, settings={"schemes": "spectral"})
    missed = {rate: _missed(planned(rate=rate), share) for rate in RATES}
    rate = min(missed, key=lambda rate: missed[rate])
    if method == "tmi-gkp" or missed[rate] > FARTHEST:
        return planned(rate=rate)
    return prune(method=method, groups=GROUPS, rate=rate, data=images)


def _missed(found: Pruned, share: float) -> float:
    return abs(math.log(found.macs.pruned / found.macs.dense / share))
