"""gkp-cal within budgets: what the plan needs, what cannot be had, and time by a clock that tells the same each time."""

from __future__ import annotations

import re
from collections.abc import Mapping

import networks
import pytest
import torch

from edgeprune.datasets.images import Dataset
from edgeprune.deployment.clock import EstimatedClock
from edgeprune.devices.device_profile import DeviceProfile, load_profile
from edgeprune.errors import InputError
from edgeprune.graph import Graph
from edgeprune.methods import amounts
from edgeprune.methods.base import PruneRequest
from edgeprune.methods.budget import Budget
from edgeprune.methods.gkp_cal.budgeted import CLOSE, ROUNDS
from edgeprune.plans.costs import planned_macs
from edgeprune.plans.plan import LayerPlan, Plan
from edgeprune.pruning.network import Network, load_network
from edgeprune.pruning.options import NetworkSource, PruneOptions
from edgeprune.pruning.pruned import Pruned, prune_network
from edgeprune.tracing.trace import trace

DEVICE = "raspberry-pi-5"


class PlannedClock:
    """Times that follow a plan's multiply-adds, but not as estimates do: a fifth stays whatever goes."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self.asked = graph, 0
        self.profile: DeviceProfile = load_profile(DEVICE)
        self.layer_ms: Mapping[str, float] = {layer.name: layer.macs / 1e5 for layer in graph.layers}
        self.dense_ms = 1.1 * sum(self.layer_ms.values())

    def pruned_ms(self, plan: Plan) -> float:
        self.asked += 1
        left = sum(planned_macs(plan, self._graph).values()) / self._graph.macs
        return self.dense_ms * (0.2 + 0.8 * left)


@pytest.fixture(scope="module")
def network() -> Network:
    found = load_network(NetworkSource("resnet8-w16", random_init=True, input_size=(3, 16, 16)))
    networks.settled(found.model)
    return found


def images() -> Dataset:
    pixels = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Dataset("noise", pixels, torch.zeros(24, dtype=torch.int64), (), (0.0,) * 3, (1.0,) * 3)


def pruned(network: Network, budget: str, **how: object) -> Pruned:
    options = PruneOptions("gkp-cal", PruneRequest(budget=Budget.parse(budget), align=4))
    return prune_network(network, options, seen=images(), **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", ["macs=0.5", "params=0.4", "macs=0.6,params=0.5"])
def test_the_plan_holds_its_budget(network: Network, budget: str) -> None:
    found = pruned(network, budget)
    limits = Budget.parse(budget).shares
    needed = {"macs": found.macs, "params": found.params}
    shares = {name: needed[name].pruned / needed[name].dense for name in limits}
    assert all(shares[name] <= limit + 1e-9 for name, limit in limits.items())
    assert any(shares[name] > 0.75 * limit for name, limit in limits.items()), "no more goes than has to"


@pytest.mark.parametrize("name", ["macs", "params"])
def test_what_cannot_be_met_is_told_with_the_nearest_that_can_be_had(network: Network, name: str) -> None:
    with pytest.raises(InputError, match="cannot be met") as refused:
        pruned(network, f"{name}=0.001")
    nearest = re.search(rf"{name}=([0-9.]+) or more", str(refused.value))
    assert nearest is not None
    found = pruned(network, f"{name}={nearest[1]}")
    count = getattr(found, name)
    assert count.pruned / count.dense <= float(nearest[1]) + 1e-9


def test_a_share_of_the_latency_is_held_by_the_clock(network: Network) -> None:
    clocks = []

    def make_clock(network: Network, graph: Graph, options: PruneOptions) -> PlannedClock:
        clocks.append(PlannedClock(graph))
        return clocks[-1]

    found = pruned(network, "latency=0.6", make_clock=make_clock)
    (clock,) = clocks
    assert clock.asked <= ROUNDS
    share = clock.pruned_ms(found.plan) / clock.dense_ms
    assert 0.6 * (1 - 4 * CLOSE) <= share <= 0.6 * (1 + CLOSE)
    assert found.plan.settings["budget"] == {"latency": 0.6}


def test_estimated_times_fall_with_what_a_plan_leaves_out(network: Network) -> None:
    graph = trace(network.model, network.example_input(1)).graph
    clock = EstimatedClock(network, graph, load_profile(DEVICE))
    assert set(clock.layer_ms) == {layer.name for layer in graph.layers}
    assert all(ms > 0 for ms in clock.layer_ms.values())
    assert sum(clock.layer_ms.values()) <= clock.dense_ms
    nothing = Plan("by hand", {}, 0, tuple(LayerPlan(layer.name) for layer in graph.layers))
    assert clock.pruned_ms(nothing) == pytest.approx(clock.dense_ms, rel=0.05)
    assert clock.pruned_ms(networks.random_thin_plan(graph, 0.5, 0, merge=False)) < clock.dense_ms


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("latency-ms=8", "names no device"),
        ("latency-ms=8@", "names no device"),
        ("latency-ms=soon@raspberry-pi-5", "has no milliseconds"),
        ("latency-ms=0@raspberry-pi-5", "out of range"),
        ("latency-ms=inf@raspberry-pi-5", "out of range"),
        ("energy=0.5", "unknown budget"),
        ("macs", "has no share"),
        ("macs=half", "has no share"),
        ("macs=1", "out of range"),
        ("latency=nan", "out of range"),
        ("macs=0.5,macs=0.4", "names macs twice"),
        ("latency=0.5,latency-ms=8@raspberry-pi-5", "both latency and latency-ms"),
    ],
)
def test_budgets_that_say_nothing(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Budget.parse(text)


def test_budgets_are_read_and_recorded() -> None:
    budget = Budget.parse(" macs=0.5 , latency-ms=8@raspberry-pi-5")
    assert budget == Budget(macs=0.5, latency_ms=8.0, profile="raspberry-pi-5")
    assert Budget.of(budget.settings) == budget
    assert budget.is_timed
    assert not Budget.parse("").is_given


@pytest.mark.parametrize("method", ["fpgm", "sfp", "tmi-gkp", "csgd"])
@pytest.mark.parametrize("budget", ["latency=0.5", "latency-ms=8@raspberry-pi-5"])
def test_other_methods_keep_no_budget_of_time(method: str, budget: str) -> None:
    name = budget.partition("=")[0]
    with pytest.raises(InputError, match=f"looks for no --budget {name}.*--method gkp-cal"):
        amounts(method, None, None, (), Budget.parse(budget))
    assert amounts("gkp-cal", None, None, (), Budget.parse(budget))
