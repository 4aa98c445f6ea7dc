"""What a method may ask of calibration images, and of a clock: the moments of layers, trials of changed ones, times."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeprune.devices.device_profile import DeviceProfile
from edgeprune.graph import Layer
from edgeprune.plans.plan import Plan


@dataclass(frozen=True)
class Moments:
    """What a layer reads and shall give, over all calibration images and positions: all that least squares needs."""

    covariance: NDArray[np.float64]
    """(columns, columns) of the columns that it reads, C_in * k * k each, about their mean."""
    cross: NDArray[np.float64]
    """(filters, columns) of the outputs wanted with these columns, about their means."""
    read: NDArray[np.float64]
    """(columns,) mean."""
    wanted: NDArray[np.float64]
    """(filters,) mean of the outputs wanted."""
    count: int
    """Of columns."""


@dataclass(frozen=True)
class Refitted:
    """A layer as it is from now on."""

    weight: NDArray[np.float64]
    """(C_out, C_in, *kernel), zeros where nothing is read."""
    shift: NDArray[np.float64]
    """(C_out,) what its output lacks of the mean that is wanted."""


Refit = Callable[[Layer, Moments], Refitted]


class OnImages(Protocol):
    """A network on calibration images, whose labels no one reads."""

    def look(self, names: Collection[str], see: Callable[[Layer, Moments], None]) -> None:
        """Show what the layers of these names read and give in the dense network, in forward order."""
        ...

    def refit(self, names: Collection[str], refit: Refit, *, left_out: Collection[str] = ()) -> None:
        """Go over the layers of these names in forward order and replace each by what is decided for it, on what it
        reads with those before it replaced; the method's result is carried out on the network that this gives.

        `left_out`: the ends of branches that give nothing.
        """
        ...

    def divergence(self, changed: Mapping[str, Refitted], *, left_out: Collection[str] = ()) -> float:
        """How far the outputs are from the dense network's if these layers alone are changed, or give nothing."""
        ...


class Clock(Protocol):
    """How long a network takes where it shall run, measured there or estimated."""

    @property
    def layer_ms(self) -> Mapping[str, float]:
        """Of each layer of the dense network."""
        ...

    @property
    def dense_ms(self) -> float:
        """Of the dense network."""
        ...

    @property
    def profile(self) -> DeviceProfile:
        """Whose rates tell how times change with the channels."""
        ...

    def pruned_ms(self, plan: Plan) -> float:
        """Of the network under a plan."""
        ...
