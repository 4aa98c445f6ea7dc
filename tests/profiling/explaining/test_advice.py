"""What to try: the causes of a network's layers added up, the largest gain first."""

from __future__ import annotations

from typing import Any

import pytest

from edgeprune.profiling.explaining.advice import FORMS, WITHOUT_BATCH, advice
from edgeprune.profiling.result import Latency, LayerResult, Result

LATENCY = Latency(1.0, 1.0, 1.0, 1.0, 1.0, 10, 0.0, (1.0, 1.0))


def layer(name: str, dense_ms: float | None, pruned_ms: float, kind: str = "", **more: Any) -> LayerResult:
    theoretical = None if dense_ms is None else more.pop("theoretical", 2.0)
    return LayerResult(
        name, "Conv", "grouped", 2, 8, 8, 100, 50, 50, dense_ms, pruned_ms,
        theoretical_speedup=theoretical, cause_kind=kind, **more,
    )  # fmt: skip


def result(*layers: LayerResult, other: float = 0.0, dense: Latency | None = LATENCY) -> Result:
    return Result(
        "cpu", "a provider", 1, 1, dense, LATENCY, 1, 1, 2.0, 1.5, 1.5, None, 0.75,
        layers=layers, pruned_other_ms=other,
    )  # fmt: skip


def test_the_largest_gain_comes_first_and_small_ones_are_left_out() -> None:
    found = advice(
        result(
            layer("a", 2.0, 3.0, "off-block"),
            layer("b", 2.0, 2.0, "off-block"),
            layer("c", 4.0, 9.0, "gather"),
            layer("d", 2.0, 1.01, "dispatch"),
        )
    )
    assert len(found) == 2
    assert "where Gathers take time: c (up to" in found[0]
    assert "up to 47%" in found[0]
    assert found[1].startswith("prune with --align auto, or into fewer --groups")
    assert ": a, b (" in found[1]
    assert "up to 20%" in found[1]


def test_many_layers_are_counted_and_the_slowest_named() -> None:
    layers = [layer(f"layer{number}", 1.0, 1.0 + number, "kernel") for number in range(6)]
    (found,) = advice(result(*layers))
    assert "layer5, layer4, layer3 and 3 more layers (" in found


@pytest.mark.parametrize("kind", FORMS)
def test_tuning_is_advised_only_where_it_could_find_other_forms(kind: str) -> None:
    (found,) = advice(result(layer("a", 2.0, 3.0, kind)), may_tune=True)
    assert "(edgeprune tune), or " in found
    (found,) = advice(result(layer("a", 2.0, 3.0, kind)), may_tune=False)
    assert "tune" not in found


def test_parts_that_were_never_pruned_are_told_where_they_are_large() -> None:
    kept = layer("first", 3.0, 3.0, "kept", theoretical=1.0)
    (found,) = advice(result(kept, layer("second", 2.0, 1.0)))
    assert found == "prune what stayed as it was, too: first (75% of the network's time)"
    (found,) = advice(result(layer("second", 2.0, 1.0), other=1.0))
    assert "activations, additions and pooling take 50% of the network's time" in found
    assert advice(result(kept, layer("second", 8.0, 4.0), layer("third", 16.0, 8.0))) == ()


def test_without_a_baseline_the_devices_bound_is_the_gain() -> None:
    (found,) = advice(result(layer("fc", None, 4.0, "memory-bound", bound_ms=1.0), dense=None))
    assert "where layers wait for memory: fc (" in found
    assert "up to 75%" in found
    assert advice(result(layer("conv", None, 2.0, "compute-bound", bound_ms=1.0), dense=None)) == ()


def test_layers_without_times_leave_nothing_to_advise() -> None:
    assert advice(result()) == ()


@pytest.mark.parametrize("kind", WITHOUT_BATCH)
def test_a_network_that_takes_one_sample_a_run_is_not_advised_to_take_more(kind: str) -> None:
    (found,) = advice(result(layer("a", 2.0, 3.0, kind)))
    assert "larger batches" in found
    (found,) = advice(result(layer("a", 2.0, 3.0, kind)), may_batch=False)
    assert "batches" not in found
