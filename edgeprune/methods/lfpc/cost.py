"""What a network costs as a differentiable function of how many filters each unit keeps, and the loss made of it.

The counts may be expectations: a layer costs k k |filters| |inputs| at each output position, and the expectation of the
product is taken as the product of the expectations, as if units were drawn independently of each other.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.graph import Layer
from edgeprune.methods.shared.alignment import counted_block, nearest_on_block
from edgeprune.methods.shared.budget_rate import shares_needed
from edgeprune.methods.shared.channel_choice import kept_count, kept_counts, plan_of, unit_rate
from edgeprune.methods.shared.units import Prunable, Unit

STEPS = 4096  # of the search for the factor that meets a budget


@dataclass(frozen=True)
class ExpectedCost:
    """Weights, or multiply-adds, of a network as a share of the dense one."""

    per_kernel: Tensor
    """(L,) what one kernel of each layer costs, as a share of the whole network."""
    filters: Tensor
    """(L, U) how many of the layer's filters go with one of the unit's."""
    inputs: Tensor
    """(L, U) how many of the layer's input channels go with one of the unit's filters."""
    whole: Tensor
    """(2, L) filters, and input channels that each of them reads, of the dense network."""
    sizes: Tensor
    """(U,) filters of each unit."""
    constant: float
    """What no layer's weights hold, as a share."""

    def __call__(self, kept: Tensor) -> Tensor:
        """The share of the dense network's cost when the units keep so many filters, (U,)."""
        gone = self.sizes - kept
        filters, inputs = self.whole[0] - self.filters @ gone, self.whole[1] - self.inputs @ gone
        return (self.per_kernel * filters * inputs).sum() + self.constant


def expected_macs(among: Prunable) -> ExpectedCost:
    """Multiply-adds: exactly what `planned_macs` counts, where the counts are whole numbers."""
    return _cost(among, lambda layer: layer.positions, 0, among.graph.macs)


def expected_params(among: Prunable) -> ExpectedCost:
    """Parameters, those of biases and BatchNorm taken as constant."""
    return _cost(among, lambda layer: 1, among.graph.other_params, among.graph.params)


def _cost(among: Prunable, weight: Callable[[Layer], int], other: int, total: int) -> ExpectedCost:
    layers, units = among.graph.layers, among.units
    filters, inputs = torch.zeros(2, len(layers), len(units))
    for place, unit in enumerate(units):
        sets = [name for name, _ in unit.sets]
        for row, layer in enumerate(layers):
            filters[row, place] = sets.count(layer.writes) + (unit.is_branch_end and layer.name == unit.name)
            inputs[row, place] = _inputs_of_a_place(unit, layer)
    return ExpectedCost(
        torch.tensor([_kernel_weights(layer) * weight(layer) / total for layer in layers]),
        filters,
        inputs,
        torch.tensor([[layer.out_channels, layer.in_channels // layer.groups] for layer in layers]).T.float(),
        torch.tensor([unit.size for unit in units]).float(),
        other / total,
    )


def _inputs_of_a_place(unit: Unit, layer: Layer) -> float:
    """How many input channels each filter of the layer loses with one place of the unit: none where whole groups go."""
    read = [channels[0] for name, channels in unit.sets if name == layer.reads]
    groups = {channel // (layer.in_channels // layer.groups) for channel in read}
    return len(read) / layer.groups if layer.groups == 1 or len(groups) > 1 else 0.0


def _kernel_weights(layer: Layer) -> int:
    return math.prod(layer.kernel_size) * layer.features_per_channel


@dataclass(frozen=True)
class ComputationLoss:
    """L_comp of (6.14): |log(expected cost / budget)|, and 0 within a tolerance on either side.

    The paper leaves its form to a supplement. This is how differentiable searches for channel counts put it: the
    logarithm makes the pull on each unit its share of the cost, whatever the size of the network.
    """

    costs: tuple[ExpectedCost, ...]
    budgets: tuple[float, ...]
    tolerance: float

    def __call__(self, kept: Tensor) -> Tensor:
        """The loss where the units keep so many filters, (U,); 0 where there is no budget."""
        if not self.costs:
            return torch.zeros(())
        ratios = [cost(kept) / budget for cost, budget in zip(self.costs, self.budgets, strict=True)]
        log_ratio = torch.stack(ratios).max().log()  # the budget that is hardest to hold
        return torch.where(log_ratio.abs() > math.log1p(self.tolerance), log_ratio.abs(), torch.zeros(()))


def computation_loss(among: Prunable, tolerance: float) -> ComputationLoss:
    """The computation loss for the request's budget."""
    wanted = among.request.budget
    terms = [(expected_macs, wanted.macs), (expected_params, wanted.params)]
    given = [(cost(among), share) for cost, share in terms if share is not None]
    return ComputationLoss(tuple(cost for cost, _ in given), tuple(share for _, share in given), tolerance)


def candidate_counts(among: Prunable, rates: Sequence[float]) -> Tensor:
    """(U, R) filters that each unit keeps at each rate that it may choose, on the request's block.

    Without a budget there is one rate, the request's. A unit whose rate --layer-rate sets has no other.
    """
    request = among.request
    if not request.budget.is_given:
        return torch.tensor([[count] for count in kept_counts(among)])
    unset = replace(request, rate=1.0)  # which no layer can have
    rows = []
    for unit in among.units:
        choosable = rates if unit_rate(unit, unset) == 1.0 else [unit_rate(unit, request)] * len(rates)
        counts = [kept_count(unit.size, rate) for rate in choosable]
        rows.append([nearest_on_block(count, unit.size, counted_block(request.align, unit.width)) for count in counts])
    return torch.tensor(rows)


def counts_for_budget(expected: Sequence[float], candidates: Tensor, among: Prunable) -> tuple[int, ...]:
    """As many filters for each unit as the budget allows, in proportion to the numbers that are expected.

    Each unit stays between its fewest and most `candidates` (U, R), which `check_reachable` has found to be few enough.
    """
    fewest, most = candidates.min(1).values.tolist(), candidates.max(1).values.tolist()
    limits = [*zip(expected, fewest, most, strict=True)]
    top = max(high / count for count, _, high in limits)

    def at(step: int) -> tuple[int, ...]:
        return tuple(min(max(round(step / STEPS * top * count), low), high) for count, low, high in limits)

    # The first step that is too much; the cost does not fall from step to step.
    too_much = bisect.bisect_left(range(STEPS + 1), True, key=lambda step: bool(_missed(at(step), among)))
    return at(max(too_much - 1, 0))


def check_reachable(among: Prunable, candidates: Tensor) -> None:
    """InputError if the highest rate of every unit does not meet the budget, or takes no filter of any."""
    block = among.request.align
    if candidates.min(1).values.tolist() == [unit.size for unit in among.units]:
        widest = max(unit.size for unit in among.units)
        raise InputError(
            f"the rates take no filter of any layer{f' in blocks of {block}' if block > 1 else ''}",
            expected=f"{1 / widest:.2g} or more: the widest layer that can be thinned has {widest} filters",
            remedy="a smaller --align, or --align none" if block > 1 else "",
        )
    missed = _missed(candidates.min(1).values.tolist(), among)
    for name, share in missed.items():
        raise InputError(
            f"--budget {name}={getattr(among.request.budget, name):g} cannot be met",
            expected=f"{name}={math.ceil(share * 1000) / 1000:g} or more, which the highest of the rates needs",
            remedy="higher --set rates=..., --include-first, --include-shortcuts and fewer --skip let more be left out"
            + (", and so does a smaller --align" if block > 1 else ""),
        )


def _missed(counts: Sequence[int], among: Prunable) -> dict[str, float]:
    """The parts of the budget that do not hold if the units keep so many filters, and what is needed instead."""
    plan = plan_of([tuple(range(count)) for count in counts], among, "lfpc", {})
    needed = shares_needed(plan, among.graph)
    return {name: needed[name] for name, share in among.request.budget.shares.items() if needed[name] > share}
