"""edgeprune's one-shot methods, asked for a share of the dense network: the one place where benchmarks call them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import edgeprune
from edgeprune.datasets.images import Dataset
from edgeprune.errors import InputError
from edgeprune.pruning.healed import healed as healed_on
from edgeprune.pruning.network import Network
from edgeprune.pruning.options import DataOptions, Heal
from edgeprune.pruning.pruned import Pruned

Align = int | Literal["auto", "none"]
By = Literal["macs", "latency"]
NAMES = ("gkp-cal", "tmi-gkp", "gconv", "fpgm", "sfp")
TIMED = ("gkp-cal",)
"""The methods that can be asked for a share of the latency."""
GROUPS = 8
RATES = tuple(number / 32 for number in range(2, 25))
"""That are tried for the method that takes no budget."""
FARTHEST = 0.15
"""A method that comes no nearer to the asked share of the multiply-adds than this has no result there."""


@dataclass(frozen=True)
class Wanted:
    """What a method is asked for."""

    method: str
    share: float
    """Of the dense network's multiply-adds, or of its latency."""
    by: By = "macs"
    align: Align = "none"


def pruned(network: Network, wanted: Wanted, images: Dataset) -> Pruned:
    """The network pruned to about this share, not healed; gkp-cal alone looks at the images.

    tmi-gkp, which takes no budget, gets the rate at which it comes nearest. InputError if that is not near, and as
    `edgeprune.prune` says.
    """
    prune = partial(
        edgeprune.prune, network.model, network.example_input(1), method=wanted.method, align=wanted.align, heal="none"
    )
    if wanted.method != "tmi-gkp":
        return prune(budget={wanted.by: wanted.share}, data=images if wanted.method == "gkp-cal" else None)
    planned = partial(prune, groups=GROUPS, settings={"schemes": "spectral"})
    left = {rate: _share(planned(rate=rate)) for rate in RATES}
    rate = min(left, key=lambda rate: abs(math.log(left[rate] / wanted.share)))
    check_share(left[rate], wanted.share)
    return planned(rate=rate)


def healed(pruned: Pruned, images: Dataset, heal: Heal) -> Pruned:
    """The network distilled on the images, whatever the method that pruned it; InputError if it cannot be."""
    looked = dataclasses.replace(pruned, calibration_images=len(images))  # auto heals after methods that look alone
    found = healed_on(looked, DataOptions(heal=heal), images)
    if found.healing is None:
        raise InputError("cannot be healed")
    return found


def check_share(found: float, asked: float) -> None:
    """InputError if one share of the multiply-adds is not near the other."""
    if abs(found / asked - 1) > FARTHEST:
        raise InputError(f"comes no nearer to {asked:g} of the multiply-adds than {found:.3f}")


def _share(found: Pruned) -> float:
    return found.macs.pruned / found.macs.dense
