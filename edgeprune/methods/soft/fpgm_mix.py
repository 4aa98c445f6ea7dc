"""FPGM-mix (paper 004, ch. 5): most filters go by their norm, the others by the geometric median of what is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeprune.errors import InputError
from edgeprune.methods import setting
from edgeprune.methods.base import MethodInput, MethodResult
from edgeprune.methods.shared.filter_criteria import by_both
from edgeprune.methods.soft.pruning import SoftPruning, SoftSettings, prune_once, soft_pruning
from edgeprune.methods.soft.run import SoftPruningRun

SUMMARY = "Leaves out filters with the smallest norms, then some nearest to the geometric median of what is left."
RATE = 0.4


@dataclass(frozen=True)
class Settings(SoftSettings):
    """The settings of FPGM-mix."""

    norm: Literal["l2", "l1"] = setting("l2", "norm that chooses first", paper="l2")
    distance: Literal["l2", "l1", "cosine"] = setting("l2", "distance between two filters", paper="l2")
    norm_share: float = setting(
        0.75, "share of the filters to go that the norm chooses", paper="3/4: 30% of the filters, and 10% by distance"
    )


def prune(given: MethodInput, settings: Settings) -> MethodResult:
    """First the smallest norms, then the smallest sums of distances, on the given weights."""
    return prune_once(given, _method(settings))


def train(given: MethodInput, settings: Settings, epochs: int) -> SoftPruningRun:
    """Zeroing at the same rate after every epoch."""
    return SoftPruningRun(given, _method(settings), lambda goal, epoch: goal, epochs)


def _method(settings: Settings) -> SoftPruning:
    if not 0 <= settings.norm_share <= 1:
        raise InputError(f"setting norm_share is {settings.norm_share:g}", expected="a share from 0 to 1")
    return soft_pruning("fpgm-mix", settings, by_both(settings.norm, settings.distance, settings.norm_share))
