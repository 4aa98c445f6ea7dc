import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.devices.shares import shares_of
from edgeprune.partitioning.planning import channels as ch

SETS = st.frozensets(st.integers(0, 30), max_size=20)


@given(one=SETS, other=SETS)
def test_they_are_sets(one, other):
    first, second = ch.of_numbers(one), ch.of_numbers(other)
    assert set(ch.numbers(first)) == one
    assert ch.size(first) == len(one)
    assert ch.union([first, second]) == ch.of_numbers(one | other)
    assert first & second == ch.of_numbers(one & other)
    assert ch.union(ch.run(*bounds) for bounds in ch.runs(first)) == first
    assert ch.without(first, second) == ch.of_numbers(one - other)
    assert list(ch.numbers(first)) == sorted(one)


def test_neighbours_are_one_run():
    assert list(ch.runs(ch.of_numbers([3, 1, 2, 7]))) == [(1, 4), (7, 8)]
    assert ch.shifted(ch.run(0, 2), 5) == ch.run(5, 7)
    assert ch.scaled(ch.run(1, 2), 12, 3) == ch.run(4, 8)
    assert ch.run(3, 3) == ch.NONE


@given(units=st.integers(1, 300), rates=st.lists(st.floats(1e-3, 1e12), min_size=1, max_size=9))
def test_shares_cover_every_unit_once_and_are_in_proportion(units, rates):
    ranges = shares_of(units, rates)
    assert [unit for start, stop in ranges for unit in range(start, stop)] == list(range(units))
    for (start, stop), rate in zip(ranges, rates, strict=True):
        assert abs((stop - start) - units * rate / sum(rates)) < 1 + 1e-6


@given(units=st.integers(1, 300), devices=st.integers(1, 12))
def test_equal_devices_get_equal_shares_but_for_one(units, devices):
    sizes = [stop - start for start, stop in shares_of(units, [1.0] * devices)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


@pytest.mark.parametrize(("rates", "sizes"), [([1, 0, 1], [2, 0, 2]), ([0, 1], [0, 4])])
def test_who_does_nothing_gets_nothing(rates, sizes):
    assert [stop - start for start, stop in shares_of(4, rates)] == sizes
