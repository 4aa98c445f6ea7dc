"""Counts of channels on blocks: multiples, within what was asked, and nothing given away."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.devices.prices import DevicePrices
from edgeprune.methods.shared.alignment import (
    AskedGrouping,
    Grouping,
    Part,
    aligned_groupings,
    aligned_groups,
    asked_macs,
    counts_on_blocks,
    grouping_note,
    kept_importance,
    macs_of,
    nearest_on_block,
)


@st.composite
def convolutions(draw: st.DrawFn) -> AskedGrouping:
    groups = draw(st.sampled_from([2, 3, 4, 8, 16]))
    in_channels, filters = draw(st.integers(2, 160)), groups * draw(st.integers(1, 40))
    kept = draw(st.integers(1, in_channels - 1))
    squares = np.random.default_rng(draw(st.integers(0, 9))).random(in_channels)
    kernel_macs = draw(st.integers(1, 9)) * draw(st.integers(1, 1024))
    return AskedGrouping(in_channels, filters, kernel_macs, Grouping(groups, kept), kept_importance(squares))


networks = st.lists(convolutions(), min_size=1, max_size=8).map(
    lambda layers: {f"layer{number}": layer for number, layer in enumerate(layers)}
)
blocks = st.sampled_from([1, 2, 4, 5, 8, 16])


def floor_of(layer: AskedGrouping, block: int) -> int:
    """The fewest input channels that a group may be left: a quarter of what was asked, a block at least."""
    down = max(layer.asked.kept // block * block, block)
    return min(down, math.ceil(math.ceil(layer.asked.kept / 4) / block) * block)


@given(networks, blocks)
def test_groups_and_kernels_are_on_the_block_or_the_layer_is_dense(
    layers: dict[str, AskedGrouping], block: int
) -> None:
    taken = aligned_groupings(layers, block)
    assert list(taken) == list(layers)
    for name, layer in layers.items():
        groups, kept = taken[name]
        if groups == 1:
            assert kept == layer.in_channels
            continue
        assert 2 <= groups <= layer.asked.groups
        assert layer.out_channels % (groups * block) == 0
        assert kept % block == 0
        assert floor_of(layer, block) <= kept < layer.in_channels
        assert kept < max(layer.asked.kept, 1) + block, "never rounded up by a block or more"
        more = [g for g in range(groups + 1, layer.asked.groups + 1) if layer.out_channels % (g * block) == 0]
        assert not more, "no more groups than needed are given up"


@given(networks, blocks)
def test_the_multiply_adds_asked_are_held_where_that_can_be(layers: dict[str, AskedGrouping], block: int) -> None:
    taken = aligned_groupings(layers, block)
    least = {}
    for name, layer in layers.items():
        stuck = aligned_groups(layer, block) == 1 or layer.in_channels <= block
        least[name] = Grouping(1, layer.in_channels) if stuck else Grouping(2, floor_of(layer, block))
    if macs_of(layers, least) <= asked_macs(layers):
        assert macs_of(layers, taken) <= asked_macs(layers)
    else:
        assert macs_of(layers, taken) == macs_of(layers, least)


@given(networks, blocks)
def test_nothing_that_could_be_rounded_up_is_left(layers: dict[str, AskedGrouping], block: int) -> None:
    taken = aligned_groupings(layers, block)
    spare = asked_macs(layers) - macs_of(layers, taken)
    for name, layer in layers.items():
        down, up = (max(block, rounded(layer.asked.kept / block) * block) for rounded in (math.floor, math.ceil))
        nearer = layer.in_channels - layer.asked.kept < layer.asked.kept - down
        top = up if up < layer.in_channels else (layer.in_channels if nearer else down)
        if taken[name].groups > 1 and taken[name].kept < top:
            step = min(taken[name].kept + block, layer.in_channels) - taken[name].kept
            assert step * layer.channel_macs > spare


@given(networks)
def test_block_one_gives_exactly_what_was_asked(layers: dict[str, AskedGrouping]) -> None:
    assert aligned_groupings(layers, 1) == {name: layer.asked for name, layer in layers.items()}


@given(networks, blocks)
def test_what_is_on_the_block_already_stays(layers: dict[str, AskedGrouping], block: int) -> None:
    fitting = {
        name: layer
        for name, layer in layers.items()
        if layer.out_channels % (layer.asked.groups * block) == 0 and layer.asked.kept % block == 0
    }
    assert aligned_groupings(fitting, block) == {name: layer.asked for name, layer in fitting.items()}
    for layer in fitting.values():
        assert grouping_note(layer, layer.asked, block) == ""


@given(networks, blocks)
def test_the_same_layers_give_the_same_groupings(layers: dict[str, AskedGrouping], block: int) -> None:
    assert aligned_groupings(layers, block) == aligned_groupings(dict(layers), block)


def layer(channels: int, filters: int, kept: int, importance: list[float] | None = None) -> AskedGrouping:
    squares = np.ones(channels) if importance is None else np.array(importance)
    return AskedGrouping(channels, filters, 9 * 64, Grouping(8, kept), kept_importance(squares))


def test_a_narrow_layer_gets_fewer_groups_and_the_narrowest_stays_dense() -> None:
    layers = {"narrow": layer(16, 16, 9), "middle": layer(32, 32, 18), "wide": layer(64, 64, 36)}
    taken = aligned_groupings(layers, 16)
    assert taken == {"narrow": (1, 16), "middle": (2, 16), "wide": (4, 32)}
    assert grouping_note(layers["narrow"], taken["narrow"], 16).endswith(
        "16 filters make no 2 to 8 groups of whole blocks"
    )
    assert grouping_note(layers["wide"], taken["wide"], 16) == "aligned to blocks of 16: asked were 8 groups of 36"
    assert aligned_groupings(layers, 8) == {"narrow": (2, 8), "middle": (4, 24), "wide": (8, 32)}


NARROW_GROUPS_LOSE = DevicePrices("a device", 0.0, 0.0, {8: 0.38, 16: 0.64, 32: 0.88, 64: 0.9})


@given(networks, blocks)
def test_with_prices_no_number_of_groups_on_the_block_would_be_faster(
    layers: dict[str, AskedGrouping], block: int
) -> None:
    for name, (groups, kept) in aligned_groupings(layers, block, NARROW_GROUPS_LOSE).items():
        layer, most = layers[name], aligned_groups(layers[name], block)
        assert groups <= most
        if groups > 1:
            fitting = [g for g in range(2, most + 1) if layer.out_channels % (g * block) == 0]
            times = {g: NARROW_GROUPS_LOSE.convolution(1000 * kept, layer.out_channels // g) for g in fitting}
            assert times[groups] == min(times.values())


def test_eight_filters_a_group_give_way_to_fewer_groups_where_they_lose() -> None:
    layers = {"narrow": layer(16, 16, 9), "middle": layer(32, 32, 18), "wide": layer(64, 64, 36)}
    taken = aligned_groupings(layers, 8, NARROW_GROUPS_LOSE)
    assert taken["wide"].groups == 2
    note = grouping_note(layers["wide"], taken["wide"], 8, NARROW_GROUPS_LOSE)
    assert "asked were 8 groups of 36, but groups of 32 filters are faster on a device" in note
    slow = DevicePrices("a device", 0.0, 0.0, {8: 0.3, 64: 0.9})
    taken = aligned_groupings(layers, 8, slow)
    assert taken["wide"] == (1, 64)
    note = grouping_note(layers["wide"], taken["wide"], 8, slow)
    assert note.endswith("but no groups of whole blocks are faster than the dense layer on a device")


def test_where_all_widths_run_alike_prices_change_nothing_unless_gathering_costs() -> None:
    layers = {f"of{n}": layer(n, n, 9 * n // 16) for n in (32, 64, 128)}
    assert aligned_groupings(layers, 8, DevicePrices("level", 0.0)) == aligned_groupings(layers, 8)
    moved = {name: dataclasses.replace(each, input_positions=64) for name, each in layers.items()}
    assert {taken.groups for taken in aligned_groupings(moved, 8, DevicePrices("dear", 1e6)).values()} == {1}


def test_layers_that_stay_dense_are_paid_for_by_others_down_to_a_quarter() -> None:
    layers = {f"narrow{n}": layer(16, 16, 9) for n in range(9)} | {"wide": layer(128, 128, 80)}
    taken = aligned_groupings(layers, 16)
    assert taken["wide"] == (8, 64)
    assert "lowered since other layers stay dense" in grouping_note(layers["wide"], taken["wide"], 16)
    many = {f"narrow{n}": layer(16, 16, 9) for n in range(90)} | {"wide": layer(128, 128, 80)}
    assert aligned_groupings(many, 16)["wide"] == (8, 32)
    assert macs_of(many, aligned_groupings(many, 16)) > asked_macs(many)


def test_the_layer_whose_importance_is_spread_is_rounded_up() -> None:
    even, peaked = [1.0] * 64, [100.0] * 32 + [0.001] * 32
    layers = {"peaked": layer(64, 64, 40, peaked), "even": layer(64, 64, 40, even)}
    assert aligned_groupings(layers, 16) == {"peaked": (4, 32), "even": (4, 48)}
    assert aligned_groupings({"a": layers["peaked"], "b": layers["even"]}, 32) == {"a": (2, 32), "b": (2, 32)}


def test_a_layer_of_which_little_goes_may_stay_dense_at_the_cost_of_another() -> None:
    layers = {"a": layer(32, 64, 28), "b": layer(64, 64, 52)}
    assert aligned_groupings(layers, 16) == {"a": (1, 32), "b": (4, 48)}
    note = grouping_note(layers["a"], Grouping(1, 32), 16)
    assert note == "aligned to blocks of 16: asked were 8 groups of 28, rounded up to all 32 input channels"


@given(st.integers(1, 300), st.data(), blocks)
def test_the_nearest_count_on_a_block(size: int, data: st.DataObject, block: int) -> None:
    count = data.draw(st.integers(1, size))
    found = nearest_on_block(count, size, block)
    if size <= block or count == size:
        assert found == size
    else:
        multiples = [*range(block, size + 1, block), size]
        assert found in multiples
        assert abs(found - count) <= block


@given(st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=50))
def test_importance_rises_from_nothing_to_all_and_slower_and_slower(squares: list[float]) -> None:
    shares = kept_importance(np.array(squares))
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(1)
    gains = np.diff(shares)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(gains))


def test_a_least_count_of_its_own_is_held() -> None:
    part = Part(64, 40, kept_importance(np.ones(64)), 1.0, least=32)
    assert counts_on_blocks([part], 8, lambda counts: counts[0] <= 10) == (32,)
    assert counts_on_blocks([part], 8, lambda counts: counts[0] <= 50) == (40,)
