"""The settings of LFPC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeprune.errors import InputError
from edgeprune.methods import setting

Criterion = Literal["l1", "l2", "gm"]


@dataclass(frozen=True)
class Settings:
    """The settings of LFPC; `paper` is what the paper uses on CIFAR-10."""

    criteria: tuple[Criterion, ...] = setting(
        ("l1", "l2", "gm"),
        "criteria to choose from: l1 and l2 keep filters of large norm, gm those far from the geometric median",
        paper="l1,l2,gm",
    )
    rates: tuple[float, ...] = setting(
        (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
        "with --budget: shares of filters to leave out that each layer chooses from",
        paper="rates are learned; which is in its supplement",
    )
    coupling: Literal["separate", "coupled"] = setting(
        "separate",
        "separate: a branch's last layer leaves filters out of the add; coupled: a residual stream gets thinner itself",
        paper="separate",
    )
    search_share: float = setting(
        0.5, "share of the epochs that search; the others train what was chosen", paper="600 epochs, then retraining"
    )
    weights: Literal["trained", "fixed"] = setting(
        "trained", "whether the weights are trained during the search, too", paper="fixed"
    )
    validation_share: float = setting(0.2, "share of the training images held out for the sampler", paper="0.5")
    validation_batch: int = setting(256, "held-out images a step", paper="256")
    every: int = setting(1, "one step of the sampler for so many training batches", paper="1")
    learning_rate: float = setting(0.02, "of the sampler's Adam; short searches need more", paper="0.001")
    weight_decay: float = setting(0.001, "of the sampler's Adam", paper="0.001")
    first_temperature: float = setting(
        5.0, "Gumbel-softmax temperature when the search begins; falls linearly", paper="5"
    )
    last_temperature: float = setting(0.1, "Gumbel-softmax temperature when the search ends", paper="0.1")
    computation_weight: float = setting(2.0, "weight of the computation loss", paper="2")
    tolerance: float = setting(0.05, "distance from the budget, as a share of it, that costs nothing")

    def check(self) -> None:
        """InputError for a value that means nothing."""
        checks = (
            ("criteria", bool(self.criteria) and len(set(self.criteria)) == len(self.criteria), "each at most once"),
            ("rates", bool(self.rates) and all(0 <= rate < 1 for rate in self.rates), "shares from 0 to below 1"),
            ("search_share", 0 < self.search_share <= 1, "a share above 0 and at most 1"),
            ("validation_share", 0 < self.validation_share < 1, "a share between 0 and 1, both excluded"),
            ("validation_batch", self.validation_batch >= 2, "an integer of 2 or more"),
            ("every", self.every >= 1, "an integer of 1 or more"),
            ("learning_rate", self.learning_rate > 0, "a positive number"),
            ("weight_decay", self.weight_decay >= 0, "0 or a positive number"),
            ("first_temperature", self.first_temperature > 0, "a positive number"),
            ("last_temperature", self.last_temperature > 0, "a positive number"),
            ("computation_weight", self.computation_weight >= 0, "0 or a positive number"),
            ("tolerance", self.tolerance >= 0, "0 or a positive number"),
        )
        for name, good, expected in checks:
            if not good:
                raise InputError(f"setting {name} is {getattr(self, name)!r}", expected=expected)
