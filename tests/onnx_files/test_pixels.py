"""A network that takes pixels computes what it does of the floats that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, checker, numpy_helper, parser

from edgeprune.errors import InputError
from edgeprune.onnx_files.inputs import input_specs
from edgeprune.onnx_files.pixels import KNOWN, Normalisation, parse_normalisation, taking_pixels
from edgeprune.runners.onnxruntime.runner import OrtRunner

BODY = "mean = Conv<pads=[1,1,1,1]>(x, w) pixels = Relu(mean) y = Add(pixels, x)"


def network(body: str = BODY, inputs: str = "float[batch,3,5,6] x") -> ModelProto:
    """Values of it have the names that what is put in front would have."""
    text = f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}) => (float[batch,3,5,6] y) {{ {body} }}'
    model = parser.parse_model(text)
    values = np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, "w"))
    return model


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0.05, 2)), min_size=3, max_size=3) | st.just([(0.0, 1.0)]),
    st.integers(0, 2**32 - 1),
)
def test_the_same_comes_out(channels: list[tuple[float, float]], seed: int) -> None:
    mean, std = zip(*channels, strict=True)
    model = network()
    made = taking_pixels(model, Normalisation(mean, std))
    checker.check_model(made, full_check=True)
    [spec] = input_specs(made)
    assert (spec.name, spec.dtype) == ("x", "uint8")
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 3, 5, 6), np.uint8)
    shift, scale = (np.asarray(part, np.float64).reshape(1, -1, 1, 1) for part in (mean, std))
    floats = ((pixels / 255.0 - shift) / scale).astype(np.float32)
    with OrtRunner(made) as one, OrtRunner(model) as other:
        expected = other.run({"x": floats})["y"]
        tolerance = 1e-5 * max(float(np.abs(expected).max()), float(np.abs(floats).max()))
        np.testing.assert_allclose(one.run({"x": pixels})["y"], expected, rtol=0, atol=tolerance)


def test_normalisations_by_name_and_by_figures() -> None:
    assert parse_normalisation("imagenet") == KNOWN["imagenet"]
    assert parse_normalisation("0.5,0.25/1,2") == Normalisation((0.5, 0.25), (1.0, 2.0))


@pytest.mark.parametrize(
    "text", ["", "cifar", "0.5", "0.5/0", "0.5/-1", "0.5,0.5/1", "nan/1", "0.5/inf", "1/2/3", "a/b"]
)
def test_what_is_no_normalisation_is_said(text: str) -> None:
    with pytest.raises(InputError, match="is no normalisation"):
        parse_normalisation(text)


@pytest.mark.parametrize(
    ("model", "how", "told"),
    [
        (network(inputs="float[batch,3,5,6] x, float[batch,3,5,6] z"), KNOWN["unit"], "has the inputs x float32"),
        (network(inputs="double[batch,3,5,6] x"), KNOWN["unit"], "has the inputs x float64"),
        (network(), Normalisation((0.5, 0.5), (1.0, 1.0)), "3 channels, and --pixels tells of 2"),
    ],
)
def test_a_network_without_one_image_is_refused(model: ModelProto, how: Normalisation, told: str) -> None:
    with pytest.raises(InputError, match=told):
        taking_pixels(model, how)
