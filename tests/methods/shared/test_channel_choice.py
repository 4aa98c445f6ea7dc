"""Which filters may be left out, and the plan that follows from a choice."""

from __future__ import annotations

from collections.abc import Callable

import networks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeprune.errors import InputError
from edgeprune.graph import Graph
from edgeprune.methods.base import PruneRequest
from edgeprune.methods.budget import Budget
from edgeprune.methods.shared.budget_rate import rate_for_budget, within_budget
from edgeprune.methods.shared.channel_choice import highest, kept_count, kept_counts, plan_of, unit_rate, unit_scores
from edgeprune.methods.shared.units import Coupling, Numbers, Prunable, prunable
from edgeprune.plans.check import check_plan
from edgeprune.plans.costs import planned_macs, planned_params
from edgeprune.plans.kept_channels import KeptChannels
from edgeprune.plans.plan import Plan, load_plan
from edgeprune.rewriting.rewrite import rewrite
from edgeprune.tracing.trace import trace
from edgeprune.zoo import build

ALL = PruneRequest(include_first=True, include_shortcuts=True)


def graph_of(model: nn.Module, size: int = 16) -> Graph:
    return trace(model.eval(), torch.zeros(1, 3, size, size)).graph


@pytest.fixture(scope="module")
def resnet20() -> Graph:
    return graph_of(build("resnet20").model, 32)


def random_choice(among: Prunable, rate: float, seed: int = 0) -> list[Numbers]:
    rng = np.random.default_rng(seed)
    return [highest(rng.random(unit.size), kept_count(unit.size, rate)) for unit in among.units]


def first_ones(among: Prunable) -> Callable[[float], Plan]:
    """rate -> the plan that keeps the first filters."""
    return lambda rate: plan_of([tuple(range(kept_count(u.size, rate))) for u in among.units], among, "first", {})


def test_separate_residual_streams_stay_whole_and_the_ends_of_branches_leave_out_their_own_filters() -> None:
    graph = graph_of(networks.Residual())
    among = prunable(graph, PruneRequest(), "separate")
    units = {unit.name: unit for unit in among.units}
    assert list(units) == ["a", "b", "c", "d", "e"]
    assert [name for name, unit in units.items() if unit.is_branch_end] == ["b", "d", "e"]
    assert "residual stream" in among.reasons["stem"]
    assert "--include-shortcuts" in among.reasons["project"]
    assert among.reasons["head"] == "its channels cannot change: the network's output"


def test_a_separate_plan_follows_equation_4_8(resnet20: Graph) -> None:
    among = prunable(resnet20, PruneRequest(), "separate")
    plan = plan_of(random_choice(among, 0.5), among, "random", {})
    assert check_plan(plan, resnet20) == []
    kept = KeptChannels(plan, resnet20)
    for layer in resnet20.layers[1:-1]:
        assert len(kept.filters(layer).index) == layer.out_channels // 2
        inner = layer.name.endswith("conv1")
        assert kept.sets[layer.writes].is_all != inner, "streams stay whole, what is inside a block does not"
    # conv1 reads the whole stream and writes half; conv2 reads half and writes half: 1/2 and 1/4 of the multiply-adds.
    macs = planned_macs(plan, resnet20)
    assert macs["layer1.1.conv1"] == resnet20.layer("layer1.1.conv1").macs // 2
    assert macs["layer1.1.conv2"] == resnet20.layer("layer1.1.conv2").macs // 4


def test_coupled_streams_lose_the_same_channels_in_all_layers_and_through_zero_padding(resnet20: Graph) -> None:
    among = prunable(resnet20, PruneRequest(), "coupled")
    assert not any(unit.is_branch_end for unit in among.units)
    plan = plan_of(random_choice(among, 0.5), among, "random", {})
    assert check_plan(plan, resnet20) == []
    assert not any(entry.kept_filters for entry in plan.layers)
    kept = KeptChannels(plan, resnet20)
    assert len(resnet20.paddings) == 2
    for padding in resnet20.paddings:
        source, target = kept.sets[padding.source], kept.sets[padding.target]
        middle = [c - padding.lead for c in target.index if padding.lead <= c < padding.lead + source.channels]
        assert middle == list(source.index)
        assert len(target.index) == target.channels // 2


class Twice(nn.Module):
    """A concatenation of a tensor with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(torch.relu(self.stem(x)))
        return self.head(self.norm(torch.cat([x, x], 1))).mean((2, 3))


@pytest.mark.parametrize("coupling", ["separate", "coupled"])
@pytest.mark.parametrize(
    "factory",
    [networks.Residual, networks.Concatenating, networks.Mobile, networks.Shuffled, networks.Bare, Twice],
)
def test_every_choice_gives_a_plan_that_can_be_carried_out(factory: type[nn.Module], coupling: Coupling) -> None:
    model = factory().eval()
    graph = graph_of(model)
    for request, rate, seed in ((PruneRequest(), 0.3, 0), (ALL, 0.6, 1), (ALL, 0.99, 2)):
        among = prunable(graph, request, coupling)
        plan = plan_of(random_choice(among, rate, seed), among, "random", {})
        assert check_plan(plan, graph) == []
        pruned = rewrite(model, plan, graph)
        images = torch.zeros(2, 3, 16, 16)
        assert pruned(images).shape == model(images).shape
        assert sum(p.numel() for p in pruned.parameters()) == planned_params(plan, graph)


def test_every_layer_is_in_a_unit_or_has_a_reason() -> None:
    for factory in (networks.Residual, networks.Concatenating, networks.Mobile, networks.Shuffled, networks.Bare):
        graph = graph_of(factory())
        for coupling in ("separate", "coupled"):
            among = prunable(graph, PruneRequest(), coupling)
            inside = {name for unit in among.units for name, _ in (*unit.layers, *unit.followers)}
            assert inside | set(among.reasons) == {layer.name for layer in graph.layers}
            assert inside.isdisjoint(among.reasons)
            assert all(among.reasons.values())


def test_why_a_rate_takes_no_filter_is_told_as_it_is() -> None:
    class Groups(nn.Module):
        """Behind groups whose outputs stay, all channels of each group are in step."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mid = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3, groups=1)
            self.many, self.tail = nn.Conv2d(12, 24, 3, groups=12), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.tail(torch.pixel_shuffle(self.many(self.mid(self.stem(x))), 2)).mean((2, 3))

    graph = graph_of(Groups())
    among = prunable(graph, PruneRequest(rate=0.4, include_first=True), "coupled")
    plan = plan_of([tuple(range(kept_count(u.size, 0.4))) for u in among.units], among, "first", {})
    notes = {entry.name: entry.note for entry in plan.layers}
    assert notes["mid"] == "its 12 filters are in step: none can go without all others"


class Excited(nn.Module):
    """Squeeze and excitation by linear layers: the channels that they multiply may go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.tail = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 4, 1)
        self.down, self.up = nn.Linear(16, 4), nn.Linear(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.stem(x))
        scale = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))
        return self.tail(x * scale[:, :, None, None]).mean((2, 3))


def test_linear_layers_go_with_the_convolutions_that_they_scale_and_else_stay() -> None:
    among = prunable(graph_of(Excited()), PruneRequest(), "separate")
    unit = next(unit for unit in among.units if unit.name == "conv")
    assert [name for name, _ in unit.layers] == ["conv", "up"]
    assert among.reasons["down"] == "linear layers keep their outputs"


def test_depthwise_convolutions_follow_and_do_not_choose() -> None:
    among = prunable(graph_of(networks.Mobile()), PruneRequest(), "separate")
    unit = next(unit for unit in among.units if unit.name == "mid.0")
    assert [name for name, _ in unit.layers] == ["mid.0", "excite"]
    assert [name for name, _ in unit.followers] == ["depthwise.0"]


def test_what_is_skipped_stays_with_all_that_is_coupled_to_it() -> None:
    graph = graph_of(networks.Residual())
    among = prunable(graph, PruneRequest(skip=("e",)), "coupled")
    assert among.reasons["e"] == "skipped by request"
    assert "e of its coupled set stays: skipped by request" in among.reasons["project"]
    separate = prunable(graph, PruneRequest(skip=("a", "d"), include_shortcuts=True), "separate")
    assert [unit.name for unit in separate.units] == ["b", "c", "e", "project"]
    with pytest.raises(InputError, match="matches no layer"):
        prunable(graph, PruneRequest(skip=("nothing",)), "coupled")


def test_the_first_convolution_waits_to_be_asked_where_it_alone_writes_its_channels() -> None:
    graph = graph_of(networks.Concatenating())
    assert "--include-first" in prunable(graph, PruneRequest(), "separate").reasons["stem"]
    assert prunable(graph, ALL, "separate").units[0].name == "stem"


def test_a_network_without_anything_to_thin_is_refused_with_the_reasons() -> None:
    with pytest.raises(InputError, match="none of the network's 3 layers can lose filters .*moody"):
        prunable(graph_of(networks.Branching()), PruneRequest(), "separate")


def test_scores_of_a_unit_are_sums_over_its_layers_at_its_filters() -> None:
    graph = graph_of(networks.Residual())
    among = prunable(graph, PruneRequest(), "coupled")
    scores = {layer.name: np.arange(layer.out_channels, dtype=np.float64) for layer in graph.layers}
    stem = next(unit for unit in among.units if unit.name == "stem")  # channels 8..23 of d's set are the stem's
    assert [name for name, _ in stem.layers] == ["stem", "b", "d"]
    assert unit_scores(stem, scores).tolist() == [3 * i + 8 for i in range(16)]
    own = next(unit for unit in among.units if unit.name == "d")
    assert own.layers[0][1] == (*range(8), *range(24, 32))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.data())
def test_the_highest_scores_stay_and_of_equal_ones_the_first(scores: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(scores)))
    expected = sorted(sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:count])
    assert list(highest(np.array(scores, dtype=np.float64), count)) == expected


@given(st.integers(1, 600), st.integers(0, 99))
def test_so_many_filters_stay_as_exact_arithmetic_says(size: int, percent: int) -> None:
    assert kept_count(size, percent / 100) == max(1, size - percent * size // 100)


def test_a_unit_takes_the_lowest_of_its_layers_rates() -> None:
    among = prunable(graph_of(networks.Residual()), PruneRequest(rate=0.5, layer_rates=(("b", 0.0),)), "coupled")
    assert [unit_rate(unit, among.request) for unit in among.units] == [0.0, 0.5, 0.5, 0.5, 0.5]


def test_a_layer_that_loses_nothing_says_so_and_is_not_named_as_thinned() -> None:
    graph = graph_of(networks.Residual())
    among = prunable(graph, PruneRequest(rate=0.5, layer_rates=(("a", 0.0), ("b", 0.01))), "separate")
    plan = plan_of([tuple(range(kept_count(u.size, unit_rate(u, among.request)))) for u in among.units], among, "x", {})
    notes = {entry.name: entry.note for entry in plan.layers}
    assert notes["a"] == "rate 0 takes none of its 16 filters"
    assert notes["b"] == "rate 0.01 takes none of its 16 filters"
    assert notes["c"] == ""
    assert [entry.name for entry in plan.sets] == ["c"]


def test_a_plan_survives_its_file(tmp_path, resnet20: Graph) -> None:
    for coupling in ("separate", "coupled"):
        among = prunable(resnet20, PruneRequest(), coupling)
        plan = plan_of(random_choice(among, 0.4), among, "random", {"coupling": coupling})
        path = tmp_path / f"{coupling}.json"
        path.write_bytes(plan.to_readable_json())
        assert load_plan(path) == plan


@settings(deadline=None, max_examples=15)
@given(st.floats(0.1, 0.99), st.sampled_from(["macs", "params"]), st.sampled_from(["separate", "coupled"]))
def test_the_smallest_rate_within_a_budget_is_found(share: float, what: str, coupling: Coupling) -> None:
    graph = graph_of(networks.Residual())
    among = prunable(graph, PruneRequest(), coupling)
    plan_at = first_ones(among)

    def needed(rate: float) -> float:
        if what == "macs":
            return sum(planned_macs(plan_at(rate), graph).values()) / graph.macs
        return planned_params(plan_at(rate), graph) / graph.params

    every_rate = sorted({gone / size for size in (16, 32) for gone in range(size)})
    fitting = [rate for rate in every_rate if needed(rate) <= share]
    budget = Budget(**{what: share})
    if fitting:
        assert rate_for_budget(plan_at, among, budget) == fitting[0]
    else:
        with pytest.raises(InputError, match=f"--budget {what}=.* cannot be met; expected {what}="):
            rate_for_budget(plan_at, among, budget)


def test_within_a_budget_the_rates_of_layers_stay(resnet20: Graph) -> None:
    request = PruneRequest(budget=Budget(macs=0.6), layer_rates=(("layer1.*", 0.0), ("layer2.0.conv1", 0.5)))
    among = within_budget(prunable(resnet20, request, "separate"))
    counts = dict(zip((unit.name for unit in among.units), kept_counts(among), strict=True))
    assert (counts["layer1.0.conv1"], counts["layer2.0.conv1"]) == (16, 16)
    plan = plan_of([tuple(range(count)) for count in counts.values()], among, "test", {})
    assert 0.55 < sum(planned_macs(plan, resnet20).values()) / resnet20.macs <= 0.6


def test_a_budget_of_both_kinds_is_held_in_both(resnet20: Graph) -> None:
    among = prunable(resnet20, PruneRequest(), "separate")
    plan_at = first_ones(among)
    budget = Budget(macs=0.6, params=0.7)
    rate = rate_for_budget(plan_at, among, budget)
    plan = plan_at(rate)
    assert sum(planned_macs(plan, resnet20).values()) <= 0.6 * resnet20.macs
    assert planned_params(plan, resnet20) <= 0.7 * resnet20.params
