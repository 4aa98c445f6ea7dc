"""FP16's range: what layers give on real inputs is held to its largest number."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from runtimes.lite_models import model, random

from edgeprune.errors import GateError
from edgeprune.profiling.half_range import LARGEST, half_remarks, largest_values, range_remarks

BATCHES = tuple({"x": random(4, 3, 6, 6, seed=seed)} for seed in range(2))


def scaled(by: float) -> object:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("ReduceMax", ["b"], ["y"], "largest", keepdims=0),
    ]
    return model(nodes, {"x": ("n", 3, 6, 6)}, {"w": random(4, 3, 3, 3) * np.float32(by)})


def test_the_largest_value_of_each_node_is_found_over_all_inputs() -> None:
    found = largest_values(scaled(1), BATCHES)
    assert found.keys() == {"conv", "relu", "largest"}
    assert found["relu"] == found["largest"] <= found["conv"]
    assert largest_values(scaled(3), BATCHES)["conv"] == pytest.approx(3 * found["conv"], rel=1e-5)


def test_what_comes_near_is_named_and_what_is_beyond_fails_the_gate() -> None:
    largest = largest_values(scaled(1), BATCHES)["conv"]
    assert half_remarks("pruned", scaled(0.2 * LARGEST / largest), BATCHES, 2, "digits") == ()
    (told,) = half_remarks("pruned", scaled(0.9 * LARGEST / largest), BATCHES, 2, "digits")
    assert told.startswith("pruned: on digits ")
    assert "conv (5.9e+04)" in told
    with pytest.raises(GateError, match="pruned does not fit into FP16: on digits .* more than 65504: conv"):
        half_remarks("pruned", scaled(1.1 * LARGEST / largest), BATCHES, 2, "digits")
    with pytest.raises(GateError, match=r"conv \(inf\)"):
        range_remarks("dense", {"conv": np.inf, "relu": 1.0}, "digits")
