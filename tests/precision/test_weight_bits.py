"""Bits of INT8's weights: who decides, and what the model then holds."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeprune.precision import weight_bits as module
from edgeprune.precision.quantization import quantized_layers, to_int8
from edgeprune.precision.weight_bits import WeightBits, weight_bits


@pytest.mark.parametrize(
    ("asked", "saturates", "symmetric", "bits"),
    [
        ("auto", False, False, 8),
        ("auto", True, False, 7),
        ("auto", True, True, 8),  # for GPUs
        ("7", False, True, 7),
        ("8", True, False, 8),
    ],
)
def test_the_processor_decides_unless_somebody_asks(
    asked: WeightBits, saturates: bool, symmetric: bool, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "machine_may_saturate", lambda: saturates)
    assert weight_bits(asked, symmetric=symmetric) == bits


def two_layers() -> ModelProto:
    rng = np.random.default_rng(0)
    weights = {"v": rng.standard_normal((8, 3, 3, 3)), "w": rng.standard_normal((8, 2, 3, 3))}
    nodes = [
        helper.make_node("Conv", ["x", "v"], ["a"], "first"),
        helper.make_node("Conv", ["a", "w"], ["b"], "second", group=4),
        helper.make_node("Relu", ["b"], ["y"], "relu"),
    ]
    graph = helper.make_graph(
        nodes,
        "two layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, 4, 4])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


BATCH = {"x": np.random.default_rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32)}


@pytest.mark.parametrize(("bits", "largest"), [("7", 64), ("8", 127)])
def test_weights_have_as_many_bits(bits: WeightBits, largest: int) -> None:
    model = to_int8(two_layers(), [BATCH], bits=bits)
    held = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.INT8 and t.dims]
    assert max(int(np.abs(values.astype(int)).max()) for values in held if values.ndim == 4) in (largest - 1, largest)


def test_chosen_layers_stay_in_fp32() -> None:
    assert quantized_layers(to_int8(two_layers(), [BATCH])) == 2
    assert quantized_layers(to_int8(two_layers(), [BATCH], fp32_layers=["second"])) == 1
