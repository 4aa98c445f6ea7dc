"""Selections: one direction, composition, inversion, Gathers between layouts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.plans.permutation import Selection, gather_between


@st.composite
def permutations(draw: st.DrawFn, size: int | None = None) -> Selection:
    channels = size or draw(st.integers(1, 12))
    return Selection.permutation(draw(st.permutations(range(channels))))


@st.composite
def layouts_and_selections(draw: st.DrawFn) -> tuple[Selection, Selection]:
    held = draw(permutations())
    wanted = draw(st.lists(st.integers(0, held.source - 1), max_size=20))
    return held, Selection(tuple(wanted), held.source)


def test_a_selection_takes_x_at_its_indices() -> None:
    x = np.array([10, 11, 12])
    assert x[Selection((2, 0, 0, 1), 3).array()].tolist() == [12, 10, 10, 11]


@given(permutations())
def test_a_permutation_and_its_inverse_cancel(p: Selection) -> None:
    assert p.then(p.inverse()).is_identity
    assert p.inverse().then(p).is_identity


@given(st.integers(1, 10).flatmap(lambda n: st.tuples(permutations(n), permutations(n))))
def test_composition_is_application_in_order(pair: tuple[Selection, Selection]) -> None:
    first, second = pair
    x = np.arange(100, 100 + first.source)
    assert (x[first.array()][second.array()] == x[first.then(second).array()]).all()


@given(layouts_and_selections())
def test_a_gather_turns_the_held_layout_into_the_wanted_sequence(pair: tuple[Selection, Selection]) -> None:
    held, wanted = pair
    original = np.arange(held.source) * 7
    tensor = original[held.array()]
    assert (tensor[gather_between(held, wanted).array()] == original[wanted.array()]).all()


@given(permutations(), st.integers(1, 4))
def test_blocks_move_together(p: Selection, block: int) -> None:
    x = np.arange(p.source * block).reshape(p.source, block)
    assert (x[p.array()].ravel() == x.ravel()[p.repeated_blocks(block).array()]).all()


def test_wrong_indices_are_refused() -> None:
    with pytest.raises(ValueError, match="must lie in"):
        Selection((0, 3), 3)
    with pytest.raises(ValueError, match="repeated"):
        Selection.permutation((0, 0))
    with pytest.raises(ValueError, match="inverse"):
        Selection((0, 0), 2).inverse()
    with pytest.raises(ValueError, match="compose"):
        Selection.identity(3).then(Selection.identity(4))
