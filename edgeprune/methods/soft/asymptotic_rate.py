"""The rate of asymptotic soft filter pruning: it rises fast at first and slower and slower towards its goal."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.optimize import brentq


@dataclass(frozen=True)
class AsymptoticRate:
    """rate(epoch) = a exp(-k epoch) + b (paper 004, eq. 4.7)."""

    first: float
    """P_min: the rate at epoch 0."""
    goal: float
    """P: the rate at the last epoch."""
    epochs: int
    k: float
    """A epoch."""

    @property
    def a(self) -> float:
        """first - goal over 1 - exp(-k epochs)."""
        return (self.goal - self.first) / math.expm1(-self.k * self.epochs)

    @property
    def b(self) -> float:
        return self.first - self.a

    def __call__(self, epoch: float) -> float:
        """a exp(-k epoch) + b, written so that nothing cancels where the curve is nearly straight."""
        return self.first + (self.goal - self.first) * _risen(self.k * self.epochs, epoch / self.epochs)


def asymptotic_rate(first: float, goal: float, epochs: int, knee: float) -> AsymptoticRate:
    """The curve through (0, first), (knee * epochs, 3/4 goal) and (epochs, goal); 0 <= first < 3/4 goal, 0 < knee < 1.

    With t = k epochs, the middle point asks that (1 - exp(-t knee)) / (1 - exp(-t)) be (3/4 goal - first) / (goal -
    first). That quotient rises with t from 0 to 1, so that there is exactly one t.
    """
    wanted = (0.75 * goal - first) / (goal - first)
    low, high = -1.0, 1.0
    while _risen(low, knee) > wanted:
        low *= 2
    while _risen(high, knee) < wanted:
        high *= 2
    t = brentq(lambda t: _risen(t, knee) - wanted, low, high, xtol=1e-14, rtol=1e-14)
    return AsymptoticRate(first, goal, epochs, t / epochs)


def _risen(t: float, share: float) -> float:
    """(1 - exp(-t share)) / (1 - exp(-t)): how much of its way a curve has risen at `share` of the epochs."""
    if t == 0:
        return share
    if t < 0:  # the same fraction, multiplied by exp(t): nothing overflows
        return math.exp((1 - share) * t) * math.expm1(share * t) / math.expm1(t)
    return math.expm1(-t * share) / math.expm1(-t)
