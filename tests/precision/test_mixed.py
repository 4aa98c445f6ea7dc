"""The search for layers that stay in FP32."""

from __future__ import annotations

import pytest

from edgeprune.precision.mixed import Mixed, fewest_in_fp32

SENSITIVITY = {f"layer{number}": float(number % 7) for number in range(50)}
RANKED = sorted(SENSITIVITY, key=lambda name: -SENSITIVITY[name])


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 7, 31, 49, 50])
def test_the_fewest_of_the_most_sensitive_layers_are_found_with_few_measurements(needed: int) -> None:
    asked: list[int] = []

    def drop(kept: tuple[str, ...]) -> float:
        assert list(kept) == RANKED[: len(kept)]
        asked.append(len(kept))
        return 0.4 if len(kept) >= needed else 3.0

    assert fewest_in_fp32(SENSITIVITY, drop, 0.5) == Mixed(tuple(RANKED[:needed]), 0.4)
    assert len(asked) == len(set(asked)) <= 13


def test_where_all_layers_do_not_suffice_that_is_told() -> None:
    assert fewest_in_fp32({"a": 1.0, "b": 2.0}, lambda kept: 1.0, 0.5) == Mixed(("b", "a"), 1.0)
    assert fewest_in_fp32({}, lambda kept: 1.0, 0.5) == Mixed((), 1.0)
