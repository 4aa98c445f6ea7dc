"""How many channels the units of a network keep on a target's blocks: `alignment` for the methods that thin layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import InputError
from edgeprune.methods.base import Weights
from edgeprune.methods.shared.alignment import Part, counts_on_blocks, kept_importance, over_asked_note
from edgeprune.methods.shared.budget_rate import shares_needed
from edgeprune.methods.shared.channel_choice import kept_counts, plan_of, unit_scores
from edgeprune.methods.shared.units import Prunable
from edgeprune.plans.plan import Plan


def aligned(among: Prunable, weights: Weights) -> Prunable:
    """The units with counts on the request's block, at the multiply-adds asked for; as they are where that is 1.

    Each unit keeps a multiple of the block, or all; one that has no more than a block stays whole. The counts hold the
    request's budget, or need no more multiply-adds than those of its rate, where that can be: `alignment_notes` tells.
    InputError if a budget cannot be met.
    """
    if among.request.align == 1:
        return among
    asked = kept_counts(among)
    kept = aligned_counts(among, asked, weights)
    needed, limits = shares_needed(_plan(kept, among), among.graph), among.request.budget.shares
    for name, share in limits.items():
        if needed[name] > share:
            raise InputError(
                f"--budget {name}={share:g} cannot be met in blocks of {among.request.align} channels",
                expected=f"{name}={math.ceil(needed[name] * 1000) / 1000:g} or more",
                remedy="a smaller --align or none; --include-first, --include-shortcuts, fewer --skip and --set "
                "coupling=coupled let more be thinned",
            )
    return dataclasses.replace(among, asked=asked, kept=kept)


def aligned_counts(
    among: Prunable, asked: Sequence[int], weights: Mapping[str, NDArray[Any]], least: Sequence[int] = ()
) -> tuple[int, ...]:
    """How many filters of each unit stay on the block where so many were asked for, within what the request allows.

    `least`: on the block, too; by default a quarter of what was asked.
    """
    graph, budget = among.graph, among.request.budget
    needed = shares_needed(_plan(asked, among), graph)
    limits = budget.shares or {"macs": needed["macs"]}
    lengths = {
        name: np.square(weights[name].astype(np.float64)).reshape(len(weights[name]), -1).sum(1)
        for name in among.choosing
    }  # (filters,) a layer
    parts = []
    for number, unit in enumerate(among.units):
        fewer = [max(count - (place == number), 1) for place, count in enumerate(asked)]
        price = needed["macs"] - shares_needed(_plan(fewer, among), graph)["macs"]
        importance = kept_importance(unit_scores(unit, lengths))
        parts.append(Part(unit.size, asked[number], importance, price, least[number] if least else 0, unit.width))

    def holds(counts: tuple[int, ...]) -> bool:
        shares = shares_needed(_plan(counts, among), graph)
        return all(shares[name] <= share for name, share in limits.items())

    return counts_on_blocks(parts, among.request.align, holds)


def alignment_notes(among: Prunable) -> tuple[str, ...]:
    """A sentence if the blocks need more multiply-adds than the rate asked for."""
    if not among.kept or among.request.budget.is_given:
        return ()
    asked, needed = (shares_needed(_plan(counts, among), among.graph)["macs"] for counts in (among.asked, among.kept))
    return (over_asked_note(among.request.align, needed, asked),) if needed > asked else ()


def no_filter_goes(among: Prunable) -> InputError:
    """The error for a rate, or for blocks, that leave every unit whole."""
    rate, widest, block = among.request.rate, max(unit.size for unit in among.units), among.request.align
    if among.kept and any(count < unit.size for count, unit in zip(among.asked, among.units, strict=True)):
        return InputError(
            f"--rate {rate:g} takes no filter of any layer in blocks of {block}",
            expected=f"layers of more than {block} filters: the widest that can be thinned has {widest}",
            remedy="a smaller --align, or --align none",
        )
    return InputError(
        f"--rate {rate:g} takes no filter of any layer",
        expected=f"{1 / widest:.2g} or more: the widest layer that can be thinned has {widest} filters",
    )


def _plan(counts: Sequence[int], among: Prunable) -> Plan:
    """As costly as any plan with these counts: which filters stay does not matter."""
    return plan_of([tuple(range(count)) for count in counts], dataclasses.replace(among, asked=(), kept=()), "", {})
