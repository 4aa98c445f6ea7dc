"""TMI-GKP, gkp-cal and GConv for several devices: what crosses, what does not, and that networks stay what they are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import msgspec
import networks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.datasets.images import Dataset
from edgeprune.devices.prices import DevicePrices, Exchange
from edgeprune.devices.shares import shares_of
from edgeprune.errors import InputError
from edgeprune.graph import Graph
from edgeprune.methods.base import MethodInput, PruneRequest
from edgeprune.methods.budget import Budget
from edgeprune.methods.gconv import method as gconv
from edgeprune.methods.gkp_cal import method as gkp_cal
from edgeprune.methods.gkp_cal.elimination import solved, without
from edgeprune.methods.shared.placement import place_layers
from edgeprune.methods.shared.reach import exchanged
from edgeprune.methods.tmi_gkp import method as tmi_gkp
from edgeprune.plans.check import check_plan
from edgeprune.plans.plan import LayerPlan, Plan
from edgeprune.pruning.layerwise import Calibration
from edgeprune.pruning.network import layer_weights
from edgeprune.rewriting.fold import fold
from edgeprune.rewriting.rewrite import rewrite
from edgeprune.tracing.trace import trace

EXAMPLE = torch.zeros(1, 3, 16, 16)
TWO = (1.0, 1.0)
FREE, DEAR = 1e-12, 1e12


@functools.cache
def residual() -> tuple[networks.Residual, Graph]:
    torch.manual_seed(0)
    model = networks.settled(networks.Residual())
    return model, trace(model, EXAMPLE).graph


def prices(per_element: float, shares: tuple[float, ...] = TWO) -> DevicePrices:
    return DevicePrices("a device", 0.0).over(Exchange(shares, per_element, 0.0))


def given_for(price: float | None, shares: tuple[float, ...] = TWO, **asked: object) -> MethodInput:
    model, graph = residual()
    mixing = None if price is None else prices(price, shares)
    request = PruneRequest(**{"groups": 4, "rate": 0.5, "mixing_price": mixing, **asked})  # type: ignore[arg-type]
    return MethodInput(graph, layer_weights(model), request)


def by_tmi_gkp(price: float | None, shares: tuple[float, ...] = TWO, **asked: object) -> Plan:
    return tmi_gkp.prune(given_for(price, shares, **asked), tmi_gkp.Settings(scheme="kpca")).plan


def by_gkp_cal(price: float | None, shares: tuple[float, ...] = TWO, **asked: object) -> Plan:
    model, _ = residual()
    pixels = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    data = Dataset("noise", pixels, torch.zeros(24, dtype=torch.int64), (), (0.0,) * 3, (1.0,) * 3)
    given_ = dataclasses.replace(given_for(price, shares, **asked), images=Calibration(model, data))
    return gkp_cal.prune(given_, gkp_cal.Settings()).plan


METHODS = {"tmi-gkp": by_tmi_gkp, "gkp-cal": by_gkp_cal}


def crossing(plan: Plan, shares: tuple[float, ...] = TWO) -> dict[str, int]:
    """Layer -> channels that its devices read from each other, told from the plan alone: who has a channel's group, in
    all layers that write it, holds it."""
    _, graph = residual()
    holders: dict[str, np.ndarray] = {}
    for entry in plan.grouped().values():
        own = np.full(graph.layer(entry.name).out_channels, -1)
        for device, group in devices_of(entry, shares, entry.filters):
            own[list(group)] = device
        other = holders.setdefault(graph.layer(entry.name).writes, own)
        assert (other == own).all(), "one owner for each channel of an addition"
    found = {}
    for entry in plan.grouped().values():
        held = holders.get(graph.layer(entry.name).reads)
        if held is not None:
            read = {(device, c) for device, group in devices_of(entry, shares, entry.inputs) for c in group}
            found[entry.name] = sum(held[c] != device for device, c in read)
    return found


def devices_of(
    entry: LayerPlan, shares: tuple[float, ...], groups: tuple[tuple[int, ...], ...]
) -> Iterable[tuple[int, tuple[int, ...]]]:
    for device, (start, stop) in enumerate(shares_of(entry.groups, shares)):
        yield from ((device, group) for group in groups[start:stop])


@pytest.mark.parametrize("method", METHODS)
def test_without_devices_and_with_exchange_for_nothing_plans_are_the_methods_own(method: str) -> None:
    plan = METHODS[method](None)
    assert "devices" not in plan.settings
    free = METHODS[method](FREE)
    assert {e.name: (e.groups, e.kept) for e in free.layers} == {e.name: (e.groups, e.kept) for e in plan.layers}
    assert METHODS[method](FREE) == free, "the same on every run"


@pytest.mark.parametrize("shares", [TWO, (3.0, 1.0), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("rate", [0.5, 0.25])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_crosses_at_any_price_and_what_crosses_falls_with_it(
    method: str, rate: float, shares: tuple[float, ...]
) -> None:
    _, graph = residual()
    dear, free = (METHODS[method](price, shares, rate=rate) for price in (DEAR, FREE))
    assert check_plan(dear, graph) == check_plan(free, graph) == []
    assert set(crossing(dear, shares).values()) == {0}
    assert sum(crossing(free, shares).values()) > 0
    asked = {entry.name: entry.kept for entry in free.grouped().values()}
    for entry in dear.grouped().values():
        assert entry.asked_kept in (0, asked[entry.name])
        assert (entry.kept < asked[entry.name]) == bool(entry.asked_kept)
        assert ("that a device holds" in entry.note) == bool(entry.asked_kept)


@settings(max_examples=10, deadline=None)
@given(price=st.floats(0.01, 100.0), shares=st.sampled_from([TWO, (3.0, 1.0)]))
def test_plans_are_sound_at_every_price_and_compute_what_they_did(price: float, shares: tuple[float, ...]) -> None:
    model, graph = residual()
    plan = by_tmi_gkp(price, shares)
    assert check_plan(plan, graph) == []
    rewritten = rewrite(model, plan, graph).double().eval()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        expected, got = rewritten(x), fold(rewritten, x).module(x)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_what_is_told_of_the_exchange_is_what_the_plan_reads() -> None:
    _, graph = residual()
    for price in (FREE, 1.0, DEAR):
        given_ = given_for(price)
        plan = tmi_gkp.prune(given_, tmi_gkp.Settings(scheme="kpca"))
        blocks: dict[str, np.ndarray] = {}
        for entry in plan.plan.grouped().values():
            labels = np.empty(graph.layer(entry.name).out_channels, dtype=np.int64)
            for number, group in enumerate(sorted(entry.filters)):
                labels[list(group)] = number
            blocks.setdefault(graph.layer(entry.name).writes, labels)
        placement = place_layers(given_, dict.fromkeys(plan.plan.grouped(), 4), blocks)
        told = exchanged(plan.plan.layers, graph, placement)
        counted = {name: count * graph.layer(name).input_positions for name, count in crossing(plan.plan).items()}
        assert {name: told[name] for name in counted} == counted
        assert any("what another device holds" in note for note in plan.notes)


def test_the_plan_tells_its_devices() -> None:
    plan = by_tmi_gkp(2.0, (3.0, 1.0))
    told = {"shares": [3.0, 1.0], "macs_per_element": 2.0, "macs_per_start": 0.0}
    assert plan.settings["devices"]["exchange"] == told
    assert msgspec.json.decode(plan.to_json(), type=Plan) == plan


def test_a_budget_is_not_for_devices() -> None:
    with pytest.raises(InputError, match="--for-devices: gkp-cal puts no layers on devices in a --budget"):
        by_gkp_cal(1.0, budget=Budget(0.5))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), gone=st.sets(st.integers(0, 4), max_size=4))
def test_a_problem_without_some_channels_is_that_of_the_others(seed: int, gone: set[int]) -> None:
    rng, size = np.random.default_rng(seed), 3
    u, y = rng.normal(size=(15, 60)), rng.normal(size=(2, 60))
    covariance, cross, nothing = u @ u.T, y @ u.T, np.zeros((2, 15))
    weights, inverse = solved(covariance, cross, nothing, 0.0)
    left, left_inverse, rise = without(weights, inverse, size, sorted(gone))
    stays = np.asarray([column for column in range(15) if column // size not in gone])
    expected, expected_inverse = solved(covariance[np.ix_(stays, stays)], cross[:, stays], nothing[:, stays], 0.0)
    np.testing.assert_allclose(left, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(left_inverse, expected_inverse, rtol=1e-6, atol=1e-9)
    errors = (np.square(y - w @ v).sum() for w, v in ((expected, u[stays]), (weights, u)))
    fewer, all_ = errors
    assert rise == pytest.approx(fewer - all_, rel=1e-6, abs=1e-9)


def test_gconv_mixes_the_channels_of_one_device_without_exchange() -> None:
    tied = gconv.prune(given_for(None), gconv.Settings(gather_share=0.0))
    dear = gconv.prune(given_for(DEAR), gconv.Settings())
    assert sum(dear.recovery.values()) > sum(tied.recovery.values())
    assert set(crossing(dear.plan).values()) == {0}
    assert any("without exchange" in note for note in dear.notes)
