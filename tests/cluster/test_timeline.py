"""When which device did what: clocks that are set by the messages themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.cluster.timeline import MOST_KEPT, Trace, Traces, measured_timeline, median_trace
from edgeprune.cluster.transport.messages import Attempt, Mark

START = 10**12
"""Microseconds: a clock that has run for days."""
PAIR = frozenset({"host", "pi"})


def exchange(ahead: int, there: int, back: int, computes: int = 500) -> Trace:
    """The host sends x at 0, the worker computes from its arrival on, y goes back; its clock is `ahead` of the
    host's."""
    came, made = START + there, START + there + computes
    host = (
        Mark("sent", 1, START, START, "x", "pi"),
        Mark("came", 2, made + back, made + back, "y", "pi"),
    )
    pi = (
        Mark("came", 1, came + ahead, came + ahead, "x", "host"),
        Mark("computed", 1, came + ahead, made + ahead),
        Mark("sent", 2, made + ahead, made + ahead, "y", "host"),
    )
    return Trace((there + computes + back) / 1e3, {"host": host, "pi": pi})


@given(st.integers(-(10**11), 10**11), st.integers(0, 5000), st.integers(0, 5000))
def test_the_clocks_difference_is_found_within_what_is_told(ahead: int, there: int, back: int) -> None:
    found = measured_timeline(exchange(ahead, there, back), "host")
    (computed,) = (span for span in found.spans if span.kind == "compute")
    assert computed.end_ms - computed.start_ms == pytest.approx(0.5)
    assert found.clocks_within_ms == pytest.approx((there + back) / 2e3, abs=1e-4)
    assert abs(computed.start_ms - there / 1e3) <= found.clocks_within_ms + 1e-4
    moves = {span.tensor: span for span in found.spans if span.kind == "transfer"}
    assert {(m.device, m.to) for m in moves.values()} == {("host", "pi"), ("pi", "host")}
    assert moves["x"].start_ms == 0.0
    assert moves["y"].end_ms == pytest.approx((there + 500 + back) / 1e3, abs=1e-4)
    assert all(span.end_ms >= span.start_ms for span in found.spans)


def test_equal_ways_give_the_exact_times() -> None:
    found = measured_timeline(exchange(123_456, 300, 300), "host")
    assert [(s.kind, s.device, s.start_ms, s.end_ms) for s in found.spans] == [
        ("transfer", "host", 0.0, 0.3),
        ("compute", "pi", 0.3, 0.8),
        ("transfer", "pi", 0.8, 1.1),
    ]


def test_a_clock_is_set_along_a_chain_of_devices() -> None:
    """The second worker never speaks with the host but through the first one."""
    at = START
    marks = {
        "host": [Mark("sent", 1, at, at, "a", "one"), Mark("came", 4, at + 800, at + 800, "d", "one")],
        "one": [
            Mark("came", 1, at + 5100, at + 5100, "a", "host"), Mark("sent", 2, at + 5200, at + 5200, "b", "two"),
            Mark("came", 3, at + 5600, at + 5600, "c", "two"), Mark("sent", 4, at + 5700, at + 5700, "d", "host"),
        ],
        "two": [
            Mark("came", 2, at - 9700, at - 9700, "b", "one"), Mark("computed", 2, at - 9700, at - 9500),
            Mark("sent", 3, at - 9500, at - 9500, "c", "one"),
        ],
    }  # fmt: skip
    found = measured_timeline(Trace(0.8, marks), "host")
    (computed,) = (span for span in found.spans if span.kind == "compute")
    assert (computed.start_ms, computed.end_ms) == (0.3, 0.5)
    assert found.clocks_within_ms == pytest.approx(0.2)


def test_a_device_that_only_receives_is_set_by_what_it_received() -> None:
    trace = exchange(7_000, 300, 300)
    only = {"host": trace.marks["host"][:1], "pi": trace.marks["pi"][:2]}
    found = measured_timeline(Trace(1.0, only), "host")
    assert found.clocks_within_ms is None
    assert [(s.kind, s.start_ms) for s in found.spans] == [("transfer", 0.0), ("compute", 0.0)]


def test_a_request_is_told_once_all_devices_have_told() -> None:
    traces, attempt = Traces(PAIR), Attempt("ab", 1, 1)
    whole = exchange(0, 1, 1)
    traces.note(attempt, "pi", whole.marks["pi"])
    traces.note(Attempt("ab", 1, 2), "host", whole.marks["host"], 3.0)  # another attempt
    traces.note(attempt, "stranger", whole.marks["host"], 9.0)
    assert not traces.complete
    traces.note(attempt, "host", whole.marks["host"], 2.5)
    assert [trace.latency_ms for trace in traces.complete.values()] == [2.5]


def test_what_is_kept_is_bounded() -> None:
    traces, whole = Traces(PAIR), exchange(0, 1, 1)
    for request in range(3 * MOST_KEPT):
        traces.note(Attempt("ab", request, 1), "host", whole.marks["host"], 1.0)  # the worker died
        traces.note(Attempt("ab", request, 2), "host", whole.marks["host"], 1.0)
        traces.note(Attempt("ab", request, 2), "pi", whole.marks["pi"])
    assert len(traces.complete) == MOST_KEPT
    assert len(traces._open) <= MOST_KEPT
    assert len(traces._latency_ms) <= MOST_KEPT
    assert next(reversed(traces.complete)) == (3 * MOST_KEPT - 1, 2)


def test_the_median_is_one_of_them() -> None:
    some = [Trace(ms, {}) for ms in (5.0, 1.0, 3.0)]
    assert median_trace(some) is some[2]
    assert median_trace([]) is None
