"""SFP, soft filter pruning (paper 004, ch. 3): the filters with the smallest norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeprune.methods import setting
from edgeprune.methods.base import MethodInput, MethodResult
from edgeprune.methods.shared.filter_criteria import by_norm
from edgeprune.methods.soft.pruning import SoftPruning, SoftSettings, prune_once, soft_pruning
from edgeprune.methods.soft.run import SoftPruningRun

SUMMARY = "Leaves out the filters with the smallest norms; while training, zeroed filters may grow back every epoch."
RATE = 0.3


@dataclass(frozen=True)
class Settings(SoftSettings):
    """The settings of SFP."""

    norm: Literal["l2", "l1"] = setting("l2", "norm that a filter's importance is", paper="l2")


def prune(given: MethodInput, settings: Settings) -> MethodResult:
    """The filters with the smallest norms, on the given weights."""
    return prune_once(given, _method(settings))


def train(given: MethodInput, settings: Settings, epochs: int) -> SoftPruningRun:
    """Zeroing at the same rate after every epoch."""
    return SoftPruningRun(given, _method(settings), lambda goal, epoch: goal, epochs)


def _method(settings: Settings) -> SoftPruning:
    return soft_pruning("sfp", settings, by_norm(settings.norm))
