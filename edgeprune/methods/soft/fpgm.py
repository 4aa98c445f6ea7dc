"""FPGM (paper 004, ch. 5): the filters nearest to the geometric median, which the others can stand in for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeprune.methods import setting
from edgeprune.methods.base import MethodInput, MethodResult
from edgeprune.methods.shared.filter_criteria import by_distance
from edgeprune.methods.soft.pruning import SoftPruning, SoftSettings, prune_once, soft_pruning
from edgeprune.methods.soft.run import SoftPruningRun

SUMMARY = "Leaves out the filters nearest to the geometric median of their layer; soft while training, as SFP."
RATE = 0.4


@dataclass(frozen=True)
class Settings(SoftSettings):
    """The settings of FPGM."""

    distance: Literal["l2", "l1", "cosine"] = setting("l2", "distance between two filters", paper="l2")


def prune(given: MethodInput, settings: Settings) -> MethodResult:
    """The filters with the smallest sums of distances to the others, on the given weights."""
    return prune_once(given, _method(settings))


def train(given: MethodInput, settings: Settings, epochs: int) -> SoftPruningRun:
    """Zeroing at the same rate after every epoch."""
    return SoftPruningRun(given, _method(settings), lambda goal, epoch: goal, epochs)


def _method(settings: Settings) -> SoftPruning:
    return soft_pruning("fpgm", settings, by_distance(settings.distance))
