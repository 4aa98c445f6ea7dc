"""Which tied layers are set free: those whose gain in importance is worth their Gather.

Under a share of the network's time, the layers that gain most for each element moved come first, as long as all Gathers
together stay within it. Priced, a layer is free where it keeps more of its importance for its time with its Gather
than tied without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeprune.devices.prices import DevicePrices
from edgeprune.methods.gconv.partitions import Links
from edgeprune.plans.gathers import PlannedGathers


@dataclass(frozen=True)
class Choice:
    """What it means for one layer to be tied or free. Costs are in multiply-adds at full rate."""

    tied: float
    """Share of its importance that it keeps when all layers are tied."""
    free: float
    """Share that it keeps when all layers are free."""
    elements: int
    """That its Gather moves a sample."""
    gather: float
    """What its Gather costs."""
    layer: float
    """What its convolution costs in its groups."""

    @property
    def pays(self) -> bool:
        """Whether it keeps more for its time with the Gather."""
        return self.free * self.layer > self.tied * (self.layer + self.gather)


@dataclass(frozen=True)
class Terms:
    """What Gathers may cost."""

    price: DevicePrices
    share: float | None
    """The most time that Gathers may take, as a share of the whole; None: as much as pays."""
    layers: float
    """What the layers of the network cost as planned, in multiply-adds at full rate a sample."""

    def cost(self, gathers: PlannedGathers) -> float:
        """Of all of them."""
        moved = (*gathers.inputs.values(), *gathers.outputs.values(), *gathers.paddings)
        return sum(map(self.price.gather, moved))

    def taken(self, cost: float) -> float:
        """The share of the time that Gathers of this cost take."""
        return cost / (self.layers + cost) if cost else 0.0

    def allows(self, cost: float) -> bool:
        """Whether Gathers of this cost may stand whatever is gained by them."""
        return self.taken(cost) <= (self.share or 0.0)

    def frees(self, choice: Choice, cost: float) -> bool:
        """Whether to set a layer free where Gathers of this cost stand already."""
        return choice.pays if self.share is None else self.allows(cost + choice.gather)


def freed_layers(links: Links, choices: Mapping[str, Choice], terms: Terms, cost: float) -> list[str]:
    """The layers to set free, the greatest gain for each element moved first.

    `cost`: of the Gathers that stand when all are tied.
    """

    def worth(name: str) -> float:
        choice = choices[name]
        return (choice.tied - choice.free) / max(choice.elements, 1)

    freed: list[str] = []
    for name in sorted(choices, key=worth):  # of equals the first layer
        choice, key = choices[name], links.reads[name]
        others = [other for other in links.layers[key] if links.writes[other] == key or other not in (*freed, name)]
        if choice.free > choice.tied and others and terms.frees(choice, cost):
            freed.append(name)
            cost += choice.gather
    return freed
