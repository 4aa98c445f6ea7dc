"""Owners of channels on several devices, and what groups may read then."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.devices.prices import DevicePrices, Exchange
from edgeprune.graph import CoupledSet, Graph, Layer, ZeroPadding
from edgeprune.methods.shared.alignment import Grouping
from edgeprune.methods.shared.placement import Places, place, sized_assignment
from edgeprune.methods.shared.reach import Groups, reach_of


def conv(name: str, reads: str, writes: str, channels: tuple[int, int], positions: int = 16) -> Layer:
    return Layer(name, "conv", *channels, (3, 3), 1, positions, reads, writes, input_positions=positions)


def graph_of(*layers: Layer, sets: dict[str, int], paddings: tuple[ZeroPadding, ...] = (), **more: object) -> Graph:
    coupled = tuple(
        CoupledSet(
            name,
            channels,
            tuple(layer.name for layer in layers if layer.writes == name),
            tuple(layer.name for layer in layers if layer.reads == name),
            parts=more.get("parts", {}).get(name, ()),  # type: ignore[union-attr]
            ordered="for a test" if name in more.get("ordered", ()) else "",  # type: ignore[operator]
        )
        for name, channels in sets.items()
    )
    return Graph(layers, coupled, (3, 8, 8), paddings=paddings)


def random_importance(graph: Graph, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {layer.name: rng.random((layer.out_channels, layer.in_channels)) for layer in graph.layers}


STREAM = graph_of(
    conv("a", "s", "m", (8, 8)), conv("b", "m", "s", (8, 8)), conv("c", "s", "n", (8, 12)), conv("d", "n", "s", (12, 8)),
    sets={"s": 8, "m": 8, "n": 12},
)  # fmt: skip


@given(data=st.data(), items=st.integers(1, 6), places=st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_sized_assignment_is_the_cheapest_of_its_sizes(data: st.DataObject, items: int, places: int) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, items), min_size=places - 1, max_size=places - 1)))
    sizes = np.diff([0, *cuts, items]).tolist()
    cost = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(items, places))
    labels = sized_assignment(cost, sizes)
    assert np.bincount(labels, minlength=places).tolist() == sizes
    slots = np.repeat(np.arange(places), sizes)
    best = min(cost[np.arange(items), slots[list(order)]].sum() for order in permutations(range(items)))
    assert cost[np.arange(items), labels].sum() == pytest.approx(best)


@given(seed=st.integers(0, 999), shares=st.sampled_from([(1.0, 1.0), (3.0, 1.0), (1.0, 1.0, 2.0)]))
@settings(deadline=None, max_examples=20)
def test_every_channel_has_one_owner_in_proportion_and_no_single_set_could_gain(
    seed: int, shares: tuple[float, ...]
) -> None:
    problem = Places(STREAM, random_importance(STREAM, seed), dict.fromkeys("abcd", 4), shares)
    found = place(problem, seed)
    for name, owners in found.owners.items():
        assert np.bincount(owners, minlength=len(shares)).tolist() == problem.sizes(name)
        assert problem.stays({**found.owners, name: problem.assigned(name, problem.gain(name, found.owners))}) <= (
            problem.stays(found.owners) * (1 + 1e-12)
        )
    again = place(problem, seed)
    assert all((again.owners[name] == owners).all() for name, owners in found.owners.items())
    for layer in STREAM.layers:  # the filters of all layers that write a stream are where the stream's channels are
        assert (found.filters(layer) == found.owners[layer.writes]).all()


def test_kernels_in_blocks_are_found_whatever_the_order_of_channels() -> None:
    """A network that is two networks side by side, shuffled, is taken apart again."""
    rng = np.random.default_rng(3)
    side = {name: rng.permutation(np.arange(count) % 2) for name, count in (("s", 8), ("m", 8), ("n", 12))}
    importance = {
        layer.name: (side[layer.writes][:, None] == side[layer.reads][None]).astype(float) for layer in STREAM.layers
    }
    problem = Places(STREAM, importance, dict.fromkeys("abcd", 4), (1.0, 1.0))
    assert problem.stays(place(problem, 0).owners) == pytest.approx(len(STREAM.layers))


@given(seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_zero_channel_shortcuts_keep_channels_where_they_are(seed: int) -> None:
    padding = ZeroPadding("s", "t", 4, 4, 4)
    graph = graph_of(
        conv("a", "s", "s", (8, 8)), conv("b", "s", "t", (8, 16)), conv("c", "t", "t", (16, 16)),
        sets={"s": 8, "t": 16}, paddings=(padding,),
    )  # fmt: skip
    found = place(Places(graph, random_importance(graph, seed), dict.fromkeys("abc", 4), (1.0, 1.0)), seed)
    assert (found.owners["t"][4:12] == found.owners["s"]).all()


def test_concatenations_hold_what_they_join_and_fixed_orders_neighbours() -> None:
    graph = graph_of(
        conv("a", "input", "p", (3, 8)), conv("b", "p", "q", (8, 4)), conv("c", "p+q", "r", (12, 8)),
        sets={"input": 3, "p": 8, "q": 4, "p+q": 12, "r": 8}, parts={"p+q": ("p", "q")}, ordered=("r",),
    )  # fmt: skip
    found = place(Places(graph, random_importance(graph, 1), dict.fromkeys("abc", 4), (1.0, 1.0)), 0)
    assert "input" not in found.owners, "every device gets it"
    assert found.owners["p+q"].tolist() == [*found.owners["p"], *found.owners["q"]]
    assert found.owners["r"].tolist() == [0] * 4 + [1] * 4


def test_blocks_of_channels_stay_together() -> None:
    blocks = np.asarray([0, 1, 2, 3, 3, 2, 1, 0])
    problem = Places(STREAM, random_importance(STREAM, 5), dict.fromkeys("abcd", 4), (1.0, 1.0), {"s": blocks})
    owners = place(problem, 0).owners["s"]
    assert all(len(set(owners[blocks == block].tolist())) == 1 for block in range(4))


# -- reach -------------------------------------------------------------------------------------------------------------
LAYER = conv("a", "s", "m", (8, 8))


def groups_of(seed: int) -> Groups:
    importance = np.random.default_rng(seed).random((4, 8))
    return Groups(importance, np.asarray([0, 0, 1, 1]), np.asarray([0, 1] * 4))


def prices(per_element: float, start: float = 0.0) -> DevicePrices:
    return DevicePrices("a device", 0.0).over(Exchange((1.0, 1.0), per_element, start))


@given(seed=st.integers(0, 999), keep=st.integers(1, 7))
@settings(deadline=None, max_examples=40)
def test_what_costs_nothing_is_read_and_what_costs_all_is_not(seed: int, keep: int) -> None:
    groups, asked = groups_of(seed), Grouping(4, keep)
    free, dear = (reach_of(groups, LAYER, asked, 1, prices(price)) for price in (0.0, 1e12))
    assert free.keep == keep
    assert groups.kept(free.allowed, keep) == pytest.approx(groups.kept(np.ones((4, 8), bool), keep))
    assert (dear.allowed == groups.own()).all()
    assert dear.keep == min(keep, 4), "what a device holds is all that there is to read"


@given(seed=st.integers(0, 999), start=st.sampled_from([0.0, 50.0]))
@settings(deadline=None, max_examples=40)
def test_dearer_exchange_is_never_more_exchange(seed: int, start: float) -> None:
    groups, got = groups_of(seed), []
    for price in (0.0, 0.1, 1.0, 3.0, 10.0, 100.0):
        reach = reach_of(groups, LAYER, Grouping(4, 3), 1, prices(price, start * price))
        got.append(int((reach.allowed & ~groups.own()).sum()))
        assert (reach.allowed >= groups.own()).all()
        assert all((reach.allowed[one] == reach.allowed[one + 1]).all() for one in (0, 2)), "a device gets it once"
    assert got == sorted(got, reverse=True)


def test_what_all_devices_hold_costs_nothing() -> None:
    groups = Groups(np.ones((4, 8)), np.asarray([0, 0, 1, 1]), None)
    reach = reach_of(groups, LAYER, Grouping(4, 6), 1, prices(1e12))
    assert reach.keep == 6
    assert reach.allowed.all()


def test_fewer_kept_channels_are_on_the_block() -> None:
    groups = Groups(np.ones((4, 12)), np.asarray([0, 0, 1, 1]), np.asarray([0, 1] * 6))
    layer = conv("a", "s", "m", (12, 8))
    assert reach_of(groups, layer, Grouping(4, 8), 4, prices(1e12)).keep == 4
