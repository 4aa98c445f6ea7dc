"""The parts of LFPC: the sampler of criteria, the numbers by which channels are multiplied, the expected cost."""

from __future__ import annotations

import dataclasses
import math

import networks
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeprune.datasets.images import Dataset
from edgeprune.errors import InputError
from edgeprune.methods.base import PruneRequest
from edgeprune.methods.budget import Budget
from edgeprune.methods.lfpc.cost import (
    candidate_counts,
    check_reachable,
    computation_loss,
    counts_for_budget,
    expected_macs,
    expected_params,
)
from edgeprune.methods.lfpc.sampler import CriteriaSampler, gumbel_softmax
from edgeprune.methods.lfpc.scales import ChannelScales
from edgeprune.methods.lfpc.validation import ValidationBatches, split_off
from edgeprune.methods.shared.channel_choice import plan_of
from edgeprune.methods.shared.units import Prunable, prunable
from edgeprune.plans.costs import planned_macs, planned_params
from edgeprune.rewriting.rewrite import rewrite
from edgeprune.tracing.trace import trace


def units_of(model: nn.Module, coupling: str = "separate", **request: object) -> Prunable:
    graph = trace(model, torch.zeros(1, 3, 16, 16)).graph
    return prunable(graph, PruneRequest(**request), coupling)  # type: ignore[arg-type]


def built(network: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return network()


def sampler_with(scores: list[Tensor], counts: list[list[int]]) -> CriteriaSampler:
    sampler = CriteriaSampler([each.shape[1] for each in scores], torch.tensor(counts), len(scores[0]))
    sampler.rank(scores)
    return sampler.double()


# -- the sampler -------------------------------------------------------------------------------------------------------
def test_aligned_output_is_the_sum_of_three_pruned_convolutions_put_back_in_their_places() -> None:
    """(6.11), (6.12) in float64."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(9, 4, 3, 3, generator=generator, dtype=torch.float64)
    images = torch.randn(2, 4, 6, 6, generator=generator, dtype=torch.float64)
    scores = torch.rand(3, 9, generator=generator, dtype=torch.float64)
    probability = torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64)
    sampler = sampler_with([scores], [[5]])

    expected = torch.zeros(2, 9, 6, 6, dtype=torch.float64)
    for criterion in range(3):
        keepid = scores[criterion].topk(5).indices
        expected[:, keepid] += probability[0, criterion] * F.conv2d(images, weight[keepid], padding=1)
    scale = sampler.aligned(probability, torch.ones(1, 1, dtype=torch.float64))
    torch.testing.assert_close(F.conv2d(images, weight, padding=1) * scale[:, None, None], expected)


def test_rates_are_mixed_like_criteria() -> None:
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    criteria = torch.tensor([[0.75, 0.25]]).double()
    rates = torch.tensor([[0.5, 0.5]]).double()  # keep 4, or 1
    scale = sampler_with([scores], [[4, 1]]).aligned(criteria, rates)
    assert scale.tolist() == pytest.approx([0.5 + 0.375, 0.5, 0.5, 0.5 + 0.125])


def test_units_do_not_mix() -> None:
    first, second = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    sampler = sampler_with([first, second], [[1], [2]])
    one = torch.ones(2, 1).double()
    assert sampler.aligned(one, one).tolist() == [1, 0, 0, 1, 1]
    assert sampler.chosen([1, 2]) == ((0,), (1, 2))


def test_gradients_match_finite_differences() -> None:
    """Of a loss through the Gumbel noise, the aligned sum and the expected counts, by criteria and rates."""
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(3, 6, generator=generator), torch.rand(3, 4, generator=generator)]
    sampler = sampler_with(scores, [[6, 4, 2], [4, 3, 1]])
    target = torch.rand(10, generator=generator).double()

    def loss(criteria: Tensor, rates: Tensor) -> Tensor:
        drawn = torch.Generator().manual_seed(7)
        scale = sampler.aligned(gumbel_softmax(criteria, 0.7, drawn), gumbel_softmax(rates, 0.7, drawn))
        return ((scale - target) ** 2).sum() + ((rates.softmax(1) * sampler.counts).sum(1)).prod().log()

    logits = [torch.randn(2, 3, generator=generator).double().requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(loss, logits)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 10.0), st.integers(0, 2**31))
def test_samples_are_probabilities(temperature: float, seed: int) -> None:
    sample = gumbel_softmax(torch.randn(5, 3), temperature, torch.Generator().manual_seed(seed))
    assert torch.isfinite(sample).all()
    assert (sample >= 0).all()
    torch.testing.assert_close(sample.sum(1), torch.ones(5))


def test_cold_samples_are_one_hot_and_follow_the_probabilities() -> None:
    """At tau -> 0 a sample is one of the categorical distribution (6.8)."""
    logits = torch.tensor([0.6, 0.3, 0.1]).log().repeat(20_000, 1)
    sample = gumbel_softmax(logits, 0.001, torch.Generator().manual_seed(0))
    assert (sample.max(1).values > 0.99).float().mean() > 0.98
    torch.testing.assert_close(sample.mean(0), torch.tensor([0.6, 0.3, 0.1]), atol=0.015, rtol=0)


def test_entropy_is_a_share_of_the_greatest() -> None:
    sampler = sampler_with([torch.rand(3, 4)], [[2]])
    assert sampler.entropy() == pytest.approx(1.0)
    sampler.criteria.data[0, 1] = 50.0
    assert sampler.entropy() == pytest.approx(0.0, abs=1e-9)
    assert sampler_with([torch.rand(1, 4)], [[2]]).entropy() == 0.0


def test_masks_and_choices_are_each_others_inverse() -> None:
    sampler = sampler_with([torch.rand(2, 5), torch.rand(2, 3)], [[2], [1]])
    choice = sampler.chosen([2, 1])
    assert sampler.from_mask(sampler.as_mask(choice)) == choice


# -- the numbers in the network ------------------------------------------------------------------------------------------
NETWORKS = [networks.Residual, networks.Concatenating, networks.Mobile, networks.Bare]


@pytest.mark.parametrize("coupling", ["separate", "coupled"])
@pytest.mark.parametrize("network", NETWORKS)
def test_zeros_and_ones_compute_what_is_left_when_channels_are_cut(network: type[nn.Module], coupling: str) -> None:
    model = networks.settled(built(network)).double()
    among = units_of(model.float(), coupling)
    model.double()
    draw = torch.Generator().manual_seed(1)
    choice = [
        tuple(sorted(torch.randperm(unit.size, generator=draw)[: max(1, unit.size // 2)].tolist()))
        for unit in among.units
    ]
    plan = plan_of(choice, among, "lfpc", {})
    images = torch.randn(2, *among.graph.input_shape, generator=draw, dtype=torch.float64)
    expected = rewrite(model, plan, among.graph)(images)

    scales = ChannelScales(model, among)
    sizes = [unit.size for unit in among.units]
    sampler = CriteriaSampler(sizes, torch.tensor([[size] for size in sizes]), 1)
    scales.set(sampler.as_mask(choice).double())
    keys = list(model.state_dict())
    torch.testing.assert_close(model(images), expected)
    scales.remove()
    assert list(model.state_dict()) == keys
    assert not torch.allclose(model(images), expected)


@pytest.mark.parametrize("network", [networks.Residual, networks.Concatenating])
def test_numbers_between_zero_and_one_matter_although_a_batch_norm_follows(network: type[nn.Module]) -> None:
    """In training mode a BatchNorm undoes a factor in front of it; the numbers must not be lost in it."""
    model = networks.settled(built(network)).train()
    among = units_of(model)
    scales = ChannelScales(model, among)
    images = torch.randn(4, *among.graph.input_shape)
    whole = model(images)
    first = 0
    for unit in among.units:
        values = torch.ones(sum(unit.size for unit in among.units))
        values[first : first + unit.size] = torch.linspace(0.3, 0.9, unit.size)
        scales.set(values)
        assert (model(images) - whole).abs().max() > 1e-2 * whole.abs().max(), unit.name
        first += unit.size


# -- the cost ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("coupling", ["separate", "coupled"])
@pytest.mark.parametrize("network", NETWORKS)
def test_expected_cost_is_the_plans_where_counts_are_whole(network: type[nn.Module], coupling: str) -> None:
    among = units_of(built(network), coupling)
    draw = torch.Generator().manual_seed(0)
    counts = [1 + int(torch.randint(unit.size, (), generator=draw)) for unit in among.units]
    plan = plan_of([tuple(range(count)) for count in counts], among, "lfpc", {})
    kept, graph = torch.tensor(counts).float(), among.graph
    macs = sum(planned_macs(plan, graph).values()) / graph.macs
    assert float(expected_macs(among)(kept)) == pytest.approx(macs, rel=1e-5)
    params = planned_params(plan, graph) / graph.params
    assert float(expected_params(among)(kept)) == pytest.approx(params, abs=0.05)  # BatchNorm's and biases not counted


def test_computation_loss_pulls_from_both_sides_and_rests_near_the_budget() -> None:
    among = units_of(networks.Residual(), include_first=True, budget=Budget(macs=0.5))
    loss, macs = computation_loss(among, 0.05), expected_macs(among)
    sizes = torch.tensor([unit.size for unit in among.units]).float()

    def at(share: float) -> tuple[float, float, float]:
        kept = (sizes * share).requires_grad_()
        value = loss(kept)
        (slope,) = torch.autograd.grad(value, kept)
        return float(macs(kept.detach())), float(value.detach()), float(slope.sum())

    cost, value, slope = at(1.0)
    assert (cost, value) == pytest.approx((1.0, math.log(2.0)), rel=1e-5)
    assert slope > 0
    cost, value, slope = at(0.2)
    assert cost < 0.4
    assert value > 0.2
    assert slope < 0
    share = next(s / 1000 for s in range(1000) if float(macs(sizes * s / 1000)) > 0.5)
    assert at(share)[1:] == (0.0, 0.0)


def test_without_a_budget_rates_are_the_requests_and_cost_is_no_matter() -> None:
    among = units_of(networks.Residual(), rate=0.5, layer_rates=(("a", 0.25),))
    counts = candidate_counts(among, (0.0, 0.7))
    assert {unit.name: row.tolist() for unit, row in zip(among.units, counts, strict=True)}["a"] == [12]
    assert all(2 * row == unit.size for unit, (row,) in zip(among.units, counts, strict=True) if unit.name != "a")
    assert float(computation_loss(among, 0.05)(counts[:, 0].float())) == 0.0


def test_a_layer_with_its_own_rate_has_no_other() -> None:
    among = units_of(networks.Residual(), layer_rates=(("a", 0.25),), budget=Budget(macs=0.7))
    counts = candidate_counts(among, (0.0, 0.5))
    rows = {unit.name: row.tolist() for unit, row in zip(among.units, counts, strict=True)}
    assert rows.pop("a") == [12, 12]
    assert all(most == 2 * least for most, least in rows.values())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.3, 1.0), min_size=20, max_size=20), st.floats(0.35, 0.95))
def test_final_counts_hold_the_budget_and_use_it(shares: list[float], macs: float) -> None:
    among = _residual(macs)
    candidates = candidate_counts(among, (0.0, 0.7))
    expected = [share * unit.size for share, unit in zip(shares, among.units, strict=False)]
    counts = counts_for_budget(expected, candidates, among)
    needed = float(expected_macs(among)(torch.tensor(counts).float()))
    assert macs - 0.12 < needed <= macs + 1e-6  # a filter of each unit at most is too few
    assert all(low <= n <= high for n, (high, low) in zip(counts, candidates.tolist(), strict=True))


def _residual(macs: float) -> Prunable:
    if not _CACHE:
        _CACHE.append(units_of(networks.Residual(), coupling="coupled", include_first=True, include_shortcuts=True))
    (among,) = _CACHE
    return dataclasses.replace(among, request=dataclasses.replace(among.request, budget=Budget(macs=macs)))


_CACHE: list[Prunable] = []


def test_a_budget_out_of_reach_is_refused_before_training() -> None:
    among = units_of(networks.Residual(), budget=Budget(macs=0.1))
    with pytest.raises(InputError, match=r"--budget macs=0.1 cannot be met.*which the highest of the rates needs"):
        check_reachable(among, candidate_counts(among, (0.0, 0.5)))


# -- held-out images -----------------------------------------------------------------------------------------------------
def numbered(count: int) -> Dataset:
    """Images that hold their own number."""
    images = torch.arange(count).float().reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return Dataset("numbered", images, torch.arange(count), (), (0.0,), (1.0,))


def test_images_are_held_out_once_and_the_same_for_a_seed() -> None:
    train, held = split_off(numbered(20), 0.25, seed=5)
    assert (len(train), len(held)) == (15, 5)
    assert sorted([*train.labels.tolist(), *held.labels.tolist()]) == list(range(20))
    assert split_off(numbered(20), 0.25, seed=5)[1].labels.tolist() == held.labels.tolist()
    assert split_off(numbered(20), 0.25, seed=6)[1].labels.tolist() != held.labels.tolist()


def test_too_few_images_to_hold_out_are_refused() -> None:
    with pytest.raises(InputError, match="validation_share 0.1 of 12 images"):
        split_off(numbered(12), 0.1, seed=0)


def test_every_held_out_image_is_seen_before_any_is_seen_again() -> None:
    batches = ValidationBatches(numbered(7), 3, seed=0)
    drawn = [batches.draw()[1].tolist() for _ in range(4)]
    assert len({*drawn[0], *drawn[1]}) == 6
    assert len({*drawn[2], *drawn[3]}) == 6
    assert len(ValidationBatches(numbered(4), 256, seed=0).draw()[1]) == 4


def test_validation_batches_continue_where_their_state_was_taken() -> None:
    first, second = (ValidationBatches(numbered(11), 4, seed=0) for _ in range(2))
    first.draw()
    second.restore(first.state())
    for _ in range(5):
        images, labels = first.draw()
        others, same = second.draw()
        assert labels.tolist() == same.tolist()
        assert images.equal(others)
