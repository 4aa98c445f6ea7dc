"""The choice of channel layouts."""

from __future__ import annotations

from edgeprune.plans.layout import (
    Demand,
    LayoutProblem,
    Padding,
    choose_layouts,
    in_layout,
    needs_gather,
    padded_sources,
)
from edgeprune.plans.permutation import Selection

ODD_EVEN = ((1, 3), (0, 2))


def test_a_set_takes_the_layout_that_its_grouped_producer_writes() -> None:
    layouts = choose_layouts(LayoutProblem({"s": 4}, frozenset(), [Demand("s", ODD_EVEN, 10)]))
    assert layouts["s"].index == (1, 3, 0, 2)


def test_a_pinned_set_keeps_its_order() -> None:
    layouts = choose_layouts(LayoutProblem({"s": 4}, frozenset({"s"}), [Demand("s", ODD_EVEN, 10)]))
    assert layouts["s"].is_identity


def test_the_heavier_of_two_demands_decides() -> None:
    light, heavy = Demand("s", ((0, 1), (2, 3)), 10), Demand("s", ODD_EVEN, 11)
    layout = choose_layouts(LayoutProblem({"s": 4}, frozenset(), [light, heavy]))["s"]
    assert needs_gather(light, layout)
    assert not needs_gather(heavy, layout)


def test_overlapping_reads_never_decide_a_layout() -> None:
    layouts = choose_layouts(LayoutProblem({"s": 4}, frozenset(), [Demand("s", ((0, 1, 2), (1, 2, 3)), 10)]))
    assert layouts["s"].is_identity


def test_a_concatenation_holds_its_parts_layouts_one_after_another() -> None:
    problem = LayoutProblem(
        {"a": 4, "b": 2, "cat": 6}, frozenset(), [Demand("a", ODD_EVEN, 1), Demand("b", ((1,), (0,)), 1)],
        concatenations={"cat": ("a", "b")},
    )  # fmt: skip
    assert choose_layouts(problem)["cat"].index == (1, 3, 0, 2, 5, 4)


def test_the_order_inside_a_group_follows_the_tensor() -> None:
    layout = Selection.permutation((3, 1, 2, 0))
    assert in_layout(((1, 3), (0, 2)), layout) == ((3, 1), (2, 0))
    assert not needs_gather(Demand("s", ((1, 3), (0, 2)), 1), layout)


def test_zero_channels_are_found_where_the_source_has_none() -> None:
    padding = Padding("a", "b", lead=1, trail=1, elements=1)
    source, target = Selection.permutation((1, 0)), Selection.permutation((0, 2, 1, 3))
    # target channel 0 is a zero, 2 is source channel 1 (at position 0), 1 is source channel 0 (at position 1)
    assert padded_sources(padding, source, target) == (None, 0, 1, None)
