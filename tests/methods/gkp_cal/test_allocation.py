"""gkp-cal's program over all layers, against every choice that a small network has."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import networks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeprune.graph import Graph
from edgeprune.methods.base import PruneRequest
from edgeprune.methods.gkp_cal.allocation import Allocation, Allocator, Need
from edgeprune.methods.gkp_cal.budgeted import _weights, layer_macs, plan_for
from edgeprune.methods.gkp_cal.candidates import Candidates, InGroups, Width, may_go, readers_of
from edgeprune.methods.shared.alignment import Grouping
from edgeprune.methods.shared.units import Prunable, units
from edgeprune.plans.check import check_plan
from edgeprune.plans.costs import planned_macs, planned_weights
from edgeprune.plans.plan import LayerPlan
from edgeprune.tracing.trace import trace


class Chain(nn.Sequential):
    """Convolutions of which each reads one unit and writes the next."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 1),
            nn.ReLU(), nn.Conv2d(12, 6, 3), nn.Flatten(), nn.Linear(6 * 4, 3),
        )  # fmt: skip


class Branches(nn.Module):
    """Two residual branches, one of them inside the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.a, self.b = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 1)
        self.c, self.d, self.e = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.b(torch.relu(self.a(x)))
        y = torch.relu(self.c(x))
        y = torch.relu(y + self.d(y))
        return self.head(x + self.e(y))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "chain": Chain,
    "branches": Branches,
    "concatenated": networks.Concatenating,
    "depthwise": networks.Mobile,
}
GRAPHS: dict[str, Prunable] = {}


def among_of(name: str) -> Prunable:
    if name not in GRAPHS:
        graph = trace(NETWORKS[name]().eval(), torch.zeros(1, 3, 4, 4)).graph
        GRAPHS[name] = units(graph, PruneRequest(include_first=True), "coupled")
    return GRAPHS[name]


def candidates_of(among: Prunable, rng: np.random.Generator) -> Candidates:
    """Two narrower widths a unit, groups for one convolution, and all branches, at random costs."""
    found, graph = Candidates(), among.graph
    for number, unit in enumerate(among.units):
        if not readers_of(unit, graph):
            continue
        counts = sorted(rng.choice(np.arange(1, unit.size), 2, replace=False), reverse=True)
        kept = [tuple(sorted(rng.choice(unit.size, count, replace=False).tolist())) for count in counts]
        costs = np.cumsum(rng.random(2)).tolist()
        found.widths[number] = (Width(tuple(range(unit.size)), 0.0), *map(Width, kept, costs))
    plain = [x for x in graph.layers if x.kind == "conv" and x.groups == 1 and not x.in_channels % 2]
    layer = plain[rng.integers(len(plain))]
    rows, columns = np.arange(layer.out_channels).reshape(2, -1), np.arange(layer.in_channels).reshape(2, -1)
    halves = LayerPlan(layer.name, tuple(map(tuple, rows.tolist())), tuple(map(tuple, columns.tolist())))
    found.grouped[layer.name] = (InGroups(halves, float(rng.random()) / 2),)
    found.left_out |= {x.name: float(rng.random()) for x in graph.layers if may_go(x, graph, among.request)}
    return found


def every_choice(among: Prunable, candidates: Candidates) -> Iterator[Allocation]:
    """All that a plan can say; what is inside a branch that is left out counts once, at no cost."""
    graph, widths = among.graph, candidates.widths
    ends = list(candidates.left_out)
    for flags in itertools.product((False, True), repeat=len(ends)):
        gone = tuple(end for end, flag in zip(ends, flags, strict=True) if flag)
        layers = {name for end in gone for name in graph.layer(end).branch}
        inside = {number for number in widths if touched(among, number) <= layers}
        ranges = [[0] if number in inside else range(len(widths[number])) for number in widths]
        for places in itertools.product(*ranges):
            chosen = dict(zip(widths, places, strict=True))
            cost = sum(candidates.left_out[end] for end in gone)
            cost += sum(widths[number][place].cost for number, place in chosen.items())
            yield Allocation(chosen, {}, gone, cost, ())
            for name, (choice,) in candidates.grouped.items():
                around = [n for n in widths if name in touched(among, n)]
                if name not in layers and not any(chosen[n] for n in around):
                    yield Allocation(chosen, {name: choice.grouping}, gone, cost + choice.cost, ())


def touched(among: Prunable, number: int) -> set[str]:
    """The layers that write or read a unit."""
    unit, graph = among.units[number], among.graph
    names = {name for name, _ in (*unit.layers, *unit.followers)}
    return names | {name for coupled, _ in unit.sets for name in graph.coupled_set(coupled).consumers}


def macs_of(found: Allocation, among: Prunable, candidates: Candidates) -> int:
    return sum(planned_macs(plan_for(found, among, candidates), among.graph).values())


@pytest.mark.parametrize("name", ["chain", "branches", "concatenated"])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), share=st.floats(0.1, 0.95))
def test_the_choice_is_the_cheapest_of_all_that_hold(name: str, seed: int, share: float) -> None:
    among = among_of(name)
    candidates = candidates_of(among, np.random.default_rng(seed))
    limit = share * among.graph.macs
    found = Allocator(among, candidates).choose([Need(layer_macs, 0.0, limit)])
    hold = [one.cost for one in every_choice(among, candidates) if macs_of(one, among, candidates) <= limit]
    if found is None:
        assert not hold
        return
    assert found.cost == pytest.approx(min(hold), rel=2e-4, abs=1e-6)
    assert found.needs[0] == pytest.approx(macs_of(found, among, candidates), rel=1e-6)
    assert found.needs[0] <= limit * (1 + 1e-6)
    assert check_plan(plan_for(found, among, candidates), among.graph) == []


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", [1, 2])
def test_needs_are_those_of_the_plan_and_all_limits_hold(name: str, seed: int) -> None:
    among = among_of(name)
    graph: Graph = among.graph
    candidates = candidates_of(among, np.random.default_rng(seed))
    allocator = Allocator(among, candidates)
    other = float(graph.other_params)
    macs, weights = Need(layer_macs, 0.0, graph.macs), Need(_weights, other, graph.params)
    assert macs.dense(graph) == graph.macs
    assert weights.dense(graph) == graph.params
    for share in (0.9, 0.6):
        needs = [
            Need(layer_macs, 0.0, allocator.least(macs) * (1 - share) + share * graph.macs),
            Need(_weights, other, allocator.least(weights) * (1 - share) + share * graph.params),
        ]
        found = allocator.choose(needs)
        assert found is not None
        plan = plan_for(found, among, candidates)
        actual = sum(planned_macs(plan, graph).values()), sum(planned_weights(plan, graph).values()) + other
        assert found.needs == pytest.approx(actual, rel=1e-6)
        assert all(got <= need.limit * (1 + 1e-6) for got, need in zip(found.needs, needs, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_tight_limit_all_stays_and_the_least_can_be_had(name: str) -> None:
    among = among_of(name)
    candidates = candidates_of(among, np.random.default_rng(3))
    allocator = Allocator(among, candidates)
    free = allocator.choose([Need(layer_macs, 0.0, float(among.graph.macs))])
    assert free is not None
    assert (free.grouped, free.left_out, free.cost) == ({}, (), 0.0)
    assert not any(free.widths.values())
    least = allocator.least(Need(layer_macs, 0.0, 0.0))
    tight = allocator.choose([Need(layer_macs, 0.0, least * (1 + 1e-6))])
    assert tight is not None
    assert tight.needs[0] == pytest.approx(least, rel=1e-5)
    assert allocator.choose([Need(layer_macs, 0.0, least * 0.99)]) is None
    if name != "depthwise":
        assert least == pytest.approx(
            min(macs_of(one, among, candidates) for one in every_choice(among, candidates)), rel=1e-6
        )


def test_groups_are_taken_where_they_alone_are_cheap() -> None:
    among = among_of("chain")
    candidates = candidates_of(among, np.random.default_rng(0))
    (name, (choice,)), *_ = candidates.grouped.items()
    candidates.grouped[name] = (InGroups(choice.entry, 1e-6),)
    graph = among.graph
    saved = graph.layer(name).macs - layer_macs(
        graph.layer(name), graph.layer(name).in_channels, graph.layer(name).out_channels, choice.grouping
    )
    found = Allocator(among, candidates).choose([Need(layer_macs, 0.0, graph.macs - saved)])
    assert found is not None
    assert found.grouped == {name: Grouping(2, graph.layer(name).in_channels // 2)}
    assert not any(found.widths.values())
