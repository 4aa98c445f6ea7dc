"""Models converted to FP16: same names, same inputs and outputs, nearly the same numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import small_bundle
import torch
from networks import Mobile, Residual, settled
from onnx import ModelProto, TensorProto, parser
from onnx.numpy_helper import from_array, to_array
from torch import nn

from edgeprune.errors import InputError
from edgeprune.exporters.to_onnx import to_onnx
from edgeprune.precision.half import to_half
from edgeprune.runners.onnxruntime.runner import OrtRunner

X = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)


def small(grouped: bool) -> ModelProto:
    return small_bundle.models()[grouped]


def exported(network: Callable[[], nn.Module]) -> ModelProto:
    torch.manual_seed(0)
    return to_onnx(settled(network()), torch.from_numpy(X))


@pytest.mark.parametrize(
    ("make", "what"),
    [(small, False), (small, True), *((exported, kind) for kind in (Residual, Mobile))],
    ids=["dense", "grouped behind a Gather", "residual", "mobile"],
)
def test_it_keeps_inputs_outputs_and_names_and_computes_nearly_the_same(
    make: Callable[..., ModelProto], what: object
) -> None:
    model = make(what)
    before = model.SerializeToString(deterministic=True)
    half = to_half(model)
    assert model.SerializeToString(deterministic=True) == before
    assert list(half.graph.input) == list(model.graph.input)
    assert list(half.graph.output) == list(model.graph.output)
    assert {node.name for node in model.graph.node} <= {node.name for node in half.graph.node}
    weights = {tensor.data_type for tensor in half.graph.initializer if len(tensor.dims) > 1}
    assert weights == {TensorProto.FLOAT16}
    with OrtRunner(model) as exact, OrtRunner(half) as rounded:
        size = exact.input_specs[0].shape[-1]
        feeds = {exact.input_names[0]: X[..., :size, :size]}
        expected, output = (next(iter(runner.run(feeds).values())) for runner in (exact, rounded))
    assert output.dtype == np.float32
    assert not np.array_equal(output, expected)
    np.testing.assert_allclose(output, expected, atol=1e-2 * np.abs(expected).max())


def test_a_model_without_fp32_is_as_it_was() -> None:
    text = '<ir_version: 9, opset_import: ["" : 20]> g (int64[2] x) => (int64[2] y) { y = Identity(x) }'
    whole = parser.parse_model(text)
    assert to_half(whole) == whole


def test_weights_that_are_too_large_become_the_largest_number() -> None:
    text = '<ir_version: 9, opset_import: ["" : 20]> g (float[1] x) => (float[1] y) { y = Mul(x, w) }'
    model = parser.parse_model(text)
    model.graph.initializer.append(from_array(np.array([1e6], np.float32), "w"))
    (weight,) = to_half(model).graph.initializer
    assert to_array(weight) == [65504]


def test_a_model_that_the_converter_does_not_take_is_an_error_of_the_input() -> None:
    model = small(False)
    model.graph.initializer[0].raw_data = b"abc"
    with pytest.raises(InputError, match="cannot be converted to FP16: "):
        to_half(model)


def test_the_converter_leaves_the_search_path_as_it_was() -> None:
    path = list(sys.path)
    to_half(small(False))
    assert sys.path == path
