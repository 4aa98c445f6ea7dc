"""ASFP, asymptotic soft filter pruning (paper 004, ch. 4): SFP at a rate that rises to its goal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeprune.errors import InputError
from edgeprune.methods import setting
from edgeprune.methods.base import MethodInput, MethodResult
from edgeprune.methods.shared.filter_criteria import by_norm
from edgeprune.methods.soft.asymptotic_rate import asymptotic_rate
from edgeprune.methods.soft.pruning import SoftPruning, SoftSettings, prune_once, soft_pruning
from edgeprune.methods.soft.run import SoftPruningRun

SUMMARY = "SFP whose rate rises with the epochs, fast at first, so that no epoch loses much; without training, SFP."
RATE = 0.4


@dataclass(frozen=True)
class Settings(SoftSettings):
    """The settings of ASFP."""

    norm: Literal["l2", "l1"] = setting("l2", "norm that a filter's importance is", paper="l2")
    first_rate: float = setting(0.0, "train: the rate at epoch 0, below 3/4 of the goal", paper="0")
    knee: float = setting(0.125, "train: share of the epochs after which 3/4 of the rate is reached", paper="1/8")


def prune(given: MethodInput, settings: Settings) -> MethodResult:
    """As SFP: the filters with the smallest norms, on the given weights."""
    return prune_once(given, _method(settings))


def train(given: MethodInput, settings: Settings, epochs: int) -> SoftPruningRun:
    """Zeroing at a rate that rises to its goal until the network settles.

    A layer whose own rate (--layer-rate) is too low to be risen to from `first_rate` has its rate from the beginning.
    InputError if `first_rate` is not below 3/4 of the request's rate, or `knee` no share of the epochs.
    """

    method = _method(settings)

    def schedule(goal: float, epoch: int) -> float:
        if settings.first_rate >= 0.75 * goal:
            return goal
        return asymptotic_rate(settings.first_rate, goal, method.soft_epochs(epochs), settings.knee)(epoch)

    run = SoftPruningRun(given, method, schedule, epochs)
    goal = run.hooks.among.request.rate
    if not 0 <= settings.first_rate < 0.75 * goal:
        raise InputError(
            f"setting first_rate is {settings.first_rate:g}",
            expected=f"0 or more, and less than 3/4 of the rate {goal:g}",
            remedy="--method sfp prunes at one rate from the first epoch on",
        )
    return run


def _method(settings: Settings) -> SoftPruning:
    if not 0 < settings.knee < 1:
        raise InputError(f"setting knee is {settings.knee:g}", expected="a share between 0 and 1, both excluded")
    return soft_pruning("asfp", settings, by_norm(settings.norm))
