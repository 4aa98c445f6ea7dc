"""GConv's search for a group configuration: equation (9), Algorithm 1.

From one group everywhere, one layer at a time goes to its next larger number of groups until the budget holds: the
layer whose step costs least. A step's cost is the importance that it loses (`step`, the paper's), or that importance
for each multiply-add that the step saves (`per-mac`), or for each parameter where the budget limits those alone. The
paper notes that its own cost prefers layers that lose little and save little. It also drives a layer that has begun to
step as far as it goes: in 2 groups about half of the importance is lost, and each further step loses half of the last.

The cost of (layer, groups) is what `Divider` loses when all layers that can have that many groups do, so layers that
share their filters' division are rated with the shared one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edgeprune.errors import InputError
from edgeprune.graph import Graph, Layer
from edgeprune.methods.budget import Budget
from edgeprune.methods.gconv.divider import Divider, Divisions
from edgeprune.plans.method_record import MethodRecord, RecordCurve, RecordTable

SearchCost = Literal["step", "per-mac"]
Heal = Callable[[Divisions], Divider]
"""Prunes the network as decided so far, fine-tunes it, and gives a divider that sees the healed weights."""
TITLE = "Path of the group configuration search"


@dataclass(frozen=True)
class Step:
    """One step of the search, and the network after it."""

    layer: str
    groups: int
    macs: int
    params: int
    recovered: float
    """Share of the importance of all layers that may be grouped that is kept, by the weights as they then are."""


@dataclass(frozen=True)
class Terms:
    """What the search may do."""

    graph: Graph
    budget: Budget
    candidates: Mapping[str, tuple[int, ...]]
    """Layer -> the numbers of groups that it may have, ascending, 2 or more each."""
    cost: SearchCost = "per-mac"
    heal_every: int = 0
    """Steps between two healings; 0 for none."""


@dataclass(frozen=True)
class Found:
    """The configuration that the search ends with."""

    configuration: dict[str, int]
    path: tuple[Step, ...]
    divider: Divider
    """With the weights as healed last."""
    held: Divisions
    """The divisions that those weights were healed under."""


class Costs:
    """Multiply-adds and parameters of a network under a configuration that changes step by step."""

    def __init__(self, graph: Graph, budget: Budget) -> None:
        self.budget, self.graph = budget, graph
        self.macs, self.params = graph.macs, graph.params

    def step(self, layer: Layer, before: int, after: int) -> None:
        self.macs -= layer.macs // before - layer.macs // after
        self.params -= layer.weight_count // before - layer.weight_count // after

    def holds(self) -> bool:
        """Whether the network is within the budget."""
        limits = ((self.budget.macs, self.macs, self.graph.macs), (self.budget.params, self.params, self.graph.params))
        return all(share is None or now <= share * dense for share, now, dense in limits)


def check_reachable(terms: Terms) -> None:
    """InputError with the nearest that can be reached if the budget cannot be met."""
    costs = Costs(terms.graph, terms.budget)
    for name, candidates in terms.candidates.items():
        costs.step(terms.graph.layer(name), 1, candidates[-1])
    if costs.holds():
        return
    wanted = {"macs": terms.budget.macs, "params": terms.budget.params}
    asked = ",".join(f"{name}={share:g}" for name, share in wanted.items() if share is not None)
    # Rounded up, so that what the message says can be asked for.
    macs, params = (
        math.ceil(1e3 * left / dense) / 1e3
        for left, dense in ((costs.macs, terms.graph.macs), (costs.params, terms.graph.params))
    )
    raise InputError(
        f"--budget {asked} cannot be met: with the most groups everywhere, {macs:.3f} of the multiply-adds and "
        f"{params:.3f} of the parameters are left",
        remedy="ask for no less than that, raise --set max_groups=..., or allow more layers (--skip, --include-first, "
        "--include-shortcuts)",
    )


def search(divider: Divider, terms: Terms, heal: Heal | None = None) -> Found:
    """The configuration within the budget, and the path to it; InputError if there is none.

    With `heal`, the network is pruned and fine-tuned after every `terms.heal_every` steps, and costs are those of the
    healed weights from then on: a layer keeps the division that it was healed under until it steps on.
    """
    check_reachable(terms)
    costs = Costs(terms.graph, terms.budget)
    now: dict[str, int] = dict.fromkeys(terms.candidates, 1)
    path: list[Step] = []
    held: Divisions = {}
    lost = _lost(divider, terms.candidates, held)
    total = sum(divider.totals().values())
    while not costs.holds():
        name, groups = min(
            _next_steps(now, terms.candidates),
            key=lambda step: _step_cost(terms, step, now[step[0]], lost),  # of equals the first layer
        )
        costs.step(terms.graph.layer(name), now[name], groups)
        now[name] = groups
        recovered = 1 - sum(lost[layer, count] for layer, count in now.items()) / total if total else 1.0
        path.append(Step(name, groups, costs.macs, costs.params, recovered))
        if heal is not None and terms.heal_every and len(path) % terms.heal_every == 0 and not costs.holds():
            held = divider.divide(_grouped(now), held)
            divider = heal(held)
            lost = _lost(divider, terms.candidates, held)
            total = sum(divider.totals().values())
    return Found(_grouped(now), tuple(path), divider, held)


def record(path: Sequence[Step], graph: Graph) -> MethodRecord:
    """The path as a table and a curve."""
    rows = tuple(
        (number, step.layer, step.groups, step.macs / graph.macs, step.params / graph.params, step.recovered)
        for number, step in enumerate(path, 1)
    )
    columns = ("step", "layer", "groups", "MACs left", "parameters left", "importance kept")
    text = (
        f"{len(path)} steps, each to the next larger number of groups of the layer where that costs least. MACs and "
        "parameters are shares of the dense network's; importance is a share of that of all layers that may be grouped."
    )
    curve = RecordCurve(
        TITLE,
        "MACs left, share of the dense network's",
        "importance kept",
        tuple(step.macs / graph.macs for step in path),
        tuple(step.recovered for step in path),
        tuple(f"{step.layer}: {step.groups} groups" for step in path),
    )
    return MethodRecord((RecordTable(TITLE, columns, rows, text),), (curve,))


def _lost(divider: Divider, candidates: Mapping[str, tuple[int, ...]], held: Divisions) -> dict[tuple[str, int], float]:
    """(layer, groups) -> the importance that it loses there; nothing at one group."""
    totals = divider.totals()
    lost = {(layer, 1): 0.0 for layer in candidates}
    for groups in sorted({count for counts in candidates.values() for count in counts}):
        divisions = divider.divide({layer: groups for layer, counts in candidates.items() if groups in counts}, held)
        lost |= {(layer, groups): totals[layer] - kept for layer, kept in divider.kept(divisions).items()}
    return lost


def _next_steps(now: Mapping[str, int], candidates: Mapping[str, tuple[int, ...]]) -> Iterable[tuple[str, int]]:
    for layer, counts in candidates.items():
        larger = [groups for groups in counts if groups > now[layer]]
        if larger:
            yield layer, larger[0]


def _step_cost(terms: Terms, step: tuple[str, int], before: int, lost: Mapping[tuple[str, int], float]) -> float:
    name, groups = step
    cost = lost[name, groups] - lost[name, before]
    if terms.cost == "step":
        return cost
    layer = terms.graph.layer(name)
    size = layer.weight_count if terms.budget.macs is None else layer.macs
    return cost / (size // before - size // groups)


def _grouped(now: Mapping[str, int]) -> dict[str, int]:
    return {layer: groups for layer, groups in now.items() if groups > 1}
