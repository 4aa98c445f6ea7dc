"""Causes of low efficiency: each rule's words, which of several is named, and what leaves nothing to explain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.devices.device_profile import load_profile
from edgeprune.devices.roofline import Roofline
from edgeprune.profiling.explaining.advice import REMEDIES
from edgeprune.profiling.explaining.causes import Kind, bound_share, explain, fitting_groups
from edgeprune.profiling.explaining.facts import LayerFacts, MachineFacts

FACTS = LayerFacts(
    groups=4,
    in_per_group=16,
    out_per_group=16,
    macs=10**8,
    executed_macs=10**8,
    bytes_moved=10**6,
    dense_ms=4.0,
    pruned_ms=2.0,
    gather_ms=0.0,
    reorder_ms=0.0,
    theoretical=4.0,
)
ROOFLINE = Roofline("a device", 1e11, 1e10)
"""1 ms for 10^8 multiply-adds, 0.1 ms for 10^6 bytes."""
MACHINE = MachineFacts(16, off_block="the runtime falls back to im2col", roofline=ROOFLINE, dispatch_ms=0.005)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"is_pruned": False, "theoretical": 1.0, "note": "first"}, "kept", "not pruned: first"),
        ({"is_pruned": False, "note": "stays dense: too narrow"}, "kept", "stays dense: too narrow"),
        ({"gather_ms": 1.0}, "gather", "gather takes 50% of the layer"),
        (
            {"gather_ms": 0.4, "reorder_ms": 0.6},
            "gather",
            "gather takes 20% of the layer, the reordering of data around it 30%",
        ),
        ({"reorder_ms": 0.9}, "reorder", "reordering data between layouts takes 45% of the layer"),
        (
            {"in_per_group": 8, "out_per_group": 8},
            "off-block",
            "8 channels a group in, 8 out: off the block of 16, the runtime falls back to im2col; "
            "2 groups or 16 in and 16 out would fit",
        ),
        (
            {"in_per_group": 36, "out_per_group": 8, "gather_ms": 0.4, "pruned_ms": 9.0},
            "off-block",
            "36 channels a group in, 8 out: off the block of 16, the runtime falls back to im2col; "
            "48 in and 16 out would fit",
        ),
        (
            {"executed_macs": 2 * 10**8},
            "zeros",
            "written as grouped, 2.0x the planned MACs: chosen as its fastest form",
        ),
        (
            {"dense_ms": 0.06, "pruned_ms": 0.03, "macs": 10**5, "executed_macs": 10**5, "bytes_moved": 10**3},
            "dispatch",
            "dispatch-bound: starting one operation takes a large part of 0.03 ms",
        ),
        ({"nodes": 200}, "dispatch", "dispatch-bound: starting 200 operations takes a large part of 2 ms"),
        ({"bytes_moved": 10**8}, "memory-bound", "memory-bound: too little work a byte (2.0 FLOPs)"),
        (
            {"groups": 1, "out_per_group": 12},
            "part-block",
            "12 filters on 16 channels: the fast kernels work on whole blocks of 16, which is 1.3x the work; "
            "16 filters would fit",
        ),
        (
            {"groups": 1, "in_per_group": 23, "out_per_group": 23},
            "part-block",
            "23 filters on 23 channels: the fast kernels work on whole blocks of 16, which is 1.9x the work; "
            "16 or 32 filters on 16 or 32 channels would fit",
        ),
        ({"provider": "A", "wanted_provider": "B"}, "fallback", "fallback: A ran it, not B"),
        ({"dense_ms": 6.5, "noise": 0.1}, "noise", "within its noise: its times vary by 10%"),
        ({"noise": 0.4, "pruned_ms": 3.0}, "noise", "too noisy to explain: its times vary by 40%"),
        (
            {"pruned_ms": 1.25},
            "compute-bound",
            "compute-bound: at 80% of the device's peak",
        ),
        (
            {"pruned_ms": 2.5, "products": 16},
            "kernel",
            "its kernel works at 40% of the device's bound: sums of 16 products are short for it",
        ),
    ],
)
def test_every_cause_has_its_words(changes: dict[str, Any], kind: str, words: str) -> None:
    cause = explain(replace(FACTS, **changes), MACHINE)
    assert cause is not None
    assert (cause.kind, cause.words) == (kind, words)


@pytest.mark.parametrize(
    "changes",
    [
        {"pruned_ms": 1.1},
        {"is_pruned": False, "theoretical": 1.0, "dense_ms": 1.0},
    ],
)
def test_a_layer_that_is_as_fast_as_promised_needs_no_cause(changes: dict[str, Any]) -> None:
    assert explain(replace(FACTS, **changes), MACHINE) is None


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"gather_ms": 2.0}, "gather"),
        ({"pruned_ms": 1.2}, "compute-bound"),
        ({"bytes_moved": 3 * 10**7}, "memory-bound"),
        ({"executed_macs": 2 * 10**8, "groups": 8, "in_per_group": 8}, "compute-bound"),
    ],
)
def test_without_a_baseline_it_is_told_what_bounds_a_layer(changes: dict[str, Any], kind: str) -> None:
    alone = replace(FACTS, dense_ms=None, theoretical=None, **{"pruned_ms": 4.0, **changes})
    cause = explain(alone, MACHINE)
    assert cause is not None
    assert cause.kind == kind
    assert explain(alone, replace(MACHINE, roofline=None)) is None


def test_several_threads_need_work_to_share() -> None:
    small = replace(FACTS, dense_ms=0.16, pruned_ms=0.08)
    cause = explain(small, replace(MACHINE, threads=2))
    assert cause is not None
    assert cause.words == "too little work for 2 threads (0.08 ms): waking them costs as much"
    alone = explain(small, MACHINE)
    assert alone is not None
    assert alone.kind != "threads"


def test_few_filters_a_group_leave_wide_kernels_idle() -> None:
    wide = replace(MACHINE, filter_rates={16: 0.75, 32: 0.9, 64: 1.0})
    cause = explain(FACTS, wide)
    assert cause is not None
    assert cause.words == "16 filters a group: the fast kernels work on 64 at a time, so part of them idles"
    for other in ({"out_per_group": 64}, {"in_per_group": 1, "out_per_group": 1}):
        rest = explain(replace(FACTS, **other), wide)
        assert rest is not None
        assert "filters a group" not in rest.words


def test_of_several_causes_the_one_that_takes_most_time_is_named() -> None:
    off_block = replace(FACTS, in_per_group=8, out_per_group=8)
    kinds = []
    for gather_ms in (0.2, 1.8):
        cause = explain(replace(off_block, gather_ms=gather_ms), MACHINE)
        assert cause is not None
        kinds.append(cause.kind)
    assert kinds == ["off-block", "gather"]


@pytest.mark.parametrize("changes", [{"in_per_group": 1, "out_per_group": 1}, {"groups": 1, "in_per_group": 3}])
def test_depthwise_and_first_layers_are_never_off_the_block(changes: dict[str, Any]) -> None:
    cause = explain(replace(FACTS, **changes), MACHINE)
    assert cause is None or "block" not in cause.kind


@pytest.mark.parametrize(("channels", "is_off"), [(54, True), (56, False)])
def test_depthwise_channels_in_no_multiple_of_four_lose_the_fast_kernels(channels: int, is_off: bool) -> None:
    facts = replace(FACTS, groups=channels, in_per_group=1, out_per_group=1, pruned_ms=9.0)
    cause = explain(facts, replace(MACHINE, layout_channels=4))
    assert cause is not None
    assert (cause.kind == "off-block") == is_off
    if is_off:
        assert "54 channels are no multiple of 4" in cause.words
        assert "52 or 56 would fit" in cause.words
    elsewhere = explain(facts, MACHINE)
    assert elsewhere is not None
    assert elsewhere.kind != "off-block", "other runtimes have depthwise kernels for any number"


def test_movements_that_are_merely_started_count_as_dispatch() -> None:
    few_bytes = replace(FACTS, pruned_ms=0.2, dense_ms=0.4, gather_ms=0.1, moves=16, nodes=9, macs=10**6)
    cause = explain(few_bytes, MACHINE)
    assert cause is not None
    assert (cause.kind, "25 operations" in cause.words) == ("dispatch", True)
    many_bytes = explain(replace(few_bytes, moves=2, nodes=1), MACHINE)
    assert many_bytes is not None
    assert many_bytes.kind == "gather"


def test_a_peak_from_a_data_sheet_bounds_earlier_than_a_measured_one() -> None:
    alone = replace(FACTS, dense_ms=None, theoretical=None, pruned_ms=1 / 0.45)
    kinds = [
        cause.kind
        for is_measured in (True, False)
        if (cause := explain(alone, replace(MACHINE, roofline=replace(ROOFLINE, is_measured=is_measured))))
    ]
    assert kinds == ["kernel", "compute-bound"]


def test_few_filters_cost_layers_without_groups_too() -> None:
    thin = replace(FACTS, groups=1, in_per_group=256, out_per_group=16, pruned_ms=2.5)
    cause = explain(thin, replace(MACHINE, filter_rates={16: 0.5, 32: 0.8, 64: 1.0}))
    assert cause is not None
    assert cause.words.startswith("16 filters: the fast kernels work on 64 at a time")


def test_an_unknown_block_and_roofline_leave_the_other_causes() -> None:
    unknown = MachineFacts(0)
    cause = explain(replace(FACTS, in_per_group=3, bytes_moved=10**5), unknown)
    assert cause is not None
    assert cause.kind == "kernel"
    cause = explain(replace(FACTS, bytes_moved=10**8), unknown)
    assert cause is not None
    assert cause.kind == "memory-bound"


@pytest.mark.parametrize(
    ("groups", "inner", "outer", "fits"), [(32, 8, 8, 16), (8, 8, 16, 4), (2, 8, 8, 0), (16, 4, 8, 4), (3, 5, 5, 0)]
)
def test_the_groups_that_would_fit_keep_the_channels(groups: int, inner: int, outer: int, fits: int) -> None:
    layer = replace(FACTS, groups=groups, in_per_group=inner, out_per_group=outer)
    assert fitting_groups(layer, 16) == fits
    if fits:
        assert groups * inner % (16 * fits) == groups * outer % (16 * fits) == 0


@given(
    st.builds(
        LayerFacts,
        groups=st.sampled_from([1, 2, 4, 32]),
        in_per_group=st.integers(1, 100),
        out_per_group=st.integers(1, 100),
        macs=st.integers(1, 10**9),
        executed_macs=st.just(10**9),
        bytes_moved=st.integers(1, 10**9),
        pruned_ms=st.floats(1e-3, 100),
        gather_ms=st.just(0.0),
        reorder_ms=st.floats(0, 1e-3),
        dense_ms=st.floats(1e-3, 100),
        theoretical=st.floats(1.01, 100),
        noise=st.floats(0, 3),
        nodes=st.integers(1, 100),
    ),
    st.sampled_from([MACHINE, MachineFacts(0), replace(MACHINE, threads=8), MachineFacts(8, filter_rates={1: 0.5})]),
)
def test_no_slow_layer_goes_unexplained(layer: LayerFacts, machine: MachineFacts) -> None:
    cause = explain(layer, machine)
    assert layer.efficiency is not None
    assert (cause is None) == (layer.efficiency >= 0.85)
    assert cause is None or (cause.words and 0 <= cause.share <= 1)


def test_every_kind_of_cause_comes_with_something_to_try_but_layers_that_were_kept() -> None:
    assert set(get_args(Kind)) == {"kept", *REMEDIES}


def test_the_roofline_is_that_of_the_threads_and_the_number_format() -> None:
    profile = load_profile("x86-avx512")
    whole, one = Roofline.of(profile, 64), Roofline.of(profile, 1)
    assert whole.macs_per_s == profile.macs_per_s == one.macs_per_s * profile.cores
    assert (
        one.bytes_per_s == profile.memory_bytes_per_s_of(1) < whole.bytes_per_s == profile.memory_gb_per_s.value * 1e9
    )
    gpu = load_profile("nvidia-t4")
    assert Roofline.of(gpu, 1, "fp16").macs_per_s == pytest.approx(gpu.peak_gflops_fp16.value * 1e9 / 2)  # type: ignore[union-attr]
    assert Roofline.of(profile, 64, "int8").macs_per_s == profile.macs_per_s, "nobody gave its rate"


def test_the_bound_is_the_longer_of_arithmetic_and_memory() -> None:
    assert ROOFLINE.bound_ms(10**8, 10**6) == pytest.approx(1.0)
    assert ROOFLINE.bound_ms(10**8, 10**8) == pytest.approx(10.0)
    assert bound_share(FACTS, ROOFLINE) == pytest.approx(0.5)
    assert bound_share(FACTS, None) is None
