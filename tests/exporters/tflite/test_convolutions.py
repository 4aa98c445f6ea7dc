"""Convolutions of all kinds for LiteRT, against ONNX Runtime: exact padding, groups, what is fused into them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper
from runtimes.lite_models import assert_same, model, random

from edgeprune.exporters.conversions import with_fixed_sizes
from edgeprune.exporters.tflite.windows import Axis, padding_of
from edgeprune.exporters.tflite.writer import to_tflite

NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}


def operators(built: ModelProto) -> Counter[str]:
    """How many of each operator the file has."""
    file = schema.ModelT.InitFromPackedBuf(to_tflite(with_fixed_sizes(built)))
    codes = [NAMES[code.builtinCode] for code in file.operatorCodes]
    return Counter(codes[operator.opcodeIndex] for operator in file.subgraphs[0].operators)


def convolution(
    groups: int = 1, channels: int = 4, filters: int = 8, size: tuple[int, int] = (9, 10), **attributes: Any
) -> ModelProto:
    kernel = attributes.setdefault("kernel_shape", [3, 3])
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", group=groups, **attributes)
    weights = {"w": random(filters, channels // groups, *kernel), "b": random(filters)}
    return model([node], {"x": (1, channels, *size)}, weights)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_convolutions_of_all_windows(data: st.DataObject) -> None:
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3)).map(list)
    kernel, strides, dilations = (data.draw(pair) for _ in range(3))
    pads = data.draw(st.tuples(*[st.integers(0, 3)] * 4).map(list))
    groups = data.draw(st.sampled_from([1, 2, 4]))
    size = data.draw(st.tuples(st.integers(7, 12), st.integers(7, 12)))
    filters = data.draw(st.sampled_from([4, 8]))
    built = convolution(
        groups, 4, filters, size, kernel_shape=kernel, strides=strides, dilations=dilations, pads=pads
    )  # fmt: skip
    assert_same(built)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_transposed_convolutions_of_all_windows(data: st.DataObject) -> None:
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    strides = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)).map(list))
    pads = [data.draw(st.integers(0, size - 1)) for size in (*kernel, *kernel)]
    extra = [min(data.draw(st.integers(0, stride - 1)), pads[2 + axis]) for axis, stride in enumerate(strides)]
    groups = data.draw(st.sampled_from([1, 2, 4]))
    node = helper.make_node(
        "ConvTranspose", ["x", "w", "b"], ["y"], "up", group=groups, strides=strides, pads=pads, output_padding=extra,
    )  # fmt: skip
    weights = {"w": random(4, 2, *kernel), "b": random(2 * groups)}
    assert_same(model([node], {"x": (1, 4, 5, 6)}, weights))


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_automatic_padding(op: str, auto_pad: str) -> None:
    node = helper.make_node(op, ["x", "w"], ["y"], auto_pad=auto_pad, strides=[2, 2])
    assert_same(model([node], {"x": (1, 4, 8, 9)}, {"w": random(4, 4, 3, 3)}))


@pytest.mark.parametrize("size", [[10, 12], [11, 11]])
def test_a_transposed_convolution_to_a_given_size(size: list[int]) -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], output_shape=size)
    assert_same(model([node], {"x": (1, 4, 5, 6)}, {"w": random(4, 3, 4, 4)}))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_in_groups_is_one_operator(groups: int) -> None:
    found = operators(convolution(groups, 8, 8, pads=[1, 1, 1, 1]))
    assert found == {"CONV_2D": 1}


def test_a_depthwise_convolution_is_one_operator() -> None:
    assert operators(convolution(8, 8, 16, pads=[1, 1, 1, 1])) == {"DEPTHWISE_CONV_2D": 1}


def test_same_padding_is_used_where_it_is_onnx_s_alone() -> None:
    at_both_ends = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    assert operators(convolution(size=(9, 9), **at_both_ends)) == {"CONV_2D": 1}
    assert operators(convolution(size=(8, 8), **at_both_ends)) == {"PAD": 1, "CONV_2D": 1}


@given(
    st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 4), st.integers(0, 4)
)
def test_a_named_padding_has_the_windows_of_the_pads(
    size: int, kernel: int, stride: int, dilation: int, before: int, after: int
) -> None:
    reach = (kernel - 1) * dilation + 1
    windows = (size + before + after - reach) // stride + 1
    if windows < 1:
        return
    axis = Axis(size, windows, kernel, stride, dilation, before)
    first, last = -before, (windows - 1) * stride - before + reach
    assert axis.after == max(last - size, 0)
    name = padding_of((axis,))
    if name == "SAME":
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        assert (windows, first) == (-(-size // stride), -(total // 2))
    if name == "VALID":
        assert (windows, first) == ((size - reach) // stride + 1, 0)


ACTIVATIONS = {"Relu": {}, "Clip": {"min": 0.0, "max": 6.0}}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Add", "Gemm"])
def test_an_activation_is_fused_into_what_it_follows_alone(op: str, activation: str) -> None:
    inputs, attributes = ["x", "w"], {}
    shape: tuple[int, ...] = (1, 4, 6, 6)
    constants: dict[str, Any] = {"w": random(4, 4, 3, 3), "low": np.float32(0), "high": np.float32(6)}
    if op == "Add":
        constants["w"] = random(1, 4, 1, 1)
    if op == "Gemm":
        shape, constants["w"] = (2, 4), random(4, 3)
    bounds = ["low", "high"] if activation == "Clip" else []
    nodes = [
        helper.make_node(op, inputs, ["a"], "first", **attributes),
        helper.make_node(activation, ["a", *bounds], ["y"], "second"),
    ]
    alone = model(nodes, {"x": shape}, constants)
    assert_same(alone)
    assert sum(operators(alone).values()) == 1
    seen = model(nodes, {"x": shape}, constants, outputs=("y", "a"))
    assert_same(seen)
    assert sum(operators(seen).values()) == 2


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_a_norm_behind_a_convolution_is_folded_and_an_activation_behind_it_fused(op: str) -> None:
    nodes = [
        helper.make_node(op, ["x", "w"], ["a"], "conv"),
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["n"], "norm"),
        helper.make_node("Relu", ["n"], ["y"], "relu"),
    ]
    constants = {"w": random(4, 4, 3, 3), "s": random(4), "b": random(4), "m": random(4), "v": np.abs(random(4)) + 0.5}
    built = model(nodes, {"x": (1, 4, 6, 6)}, constants)
    assert_same(built)
    assert sum(operators(built).values()) == 1


def test_a_flatten_before_a_matrix_is_sorted_out_in_its_weights() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Flatten", ["a"], ["f"], "flatten"),
        helper.make_node("Relu", ["f"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "m"], ["y"], "gemm"),
    ]
    constants = {"w": random(4, 3, 3, 3), "m": random(4 * 4 * 4, 5)}
    built = model(nodes, {"x": (2, 3, 6, 6)}, constants)
    assert_same(built)
    assert operators(built) == {"CONV_2D": 1, "RESHAPE": 1, "RELU": 1, "FULLY_CONNECTED": 1}
    read_otherwise = model(nodes, {"x": (2, 3, 6, 6)}, constants, outputs=("y", "f"))
    assert_same(read_otherwise)
    assert operators(read_otherwise)["TRANSPOSE"] == 1


def test_a_channel_shuffle_is_one_transposition() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "apart"], ["a"], "apart"),
        helper.make_node("Transpose", ["a"], ["t"], "shuffle", perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["t", "together"], ["y"], "together"),
    ]
    shapes = {"apart": np.asarray([1, 2, 4, 5, 5]), "together": np.asarray([1, 8, 5, 5])}
    built = model(nodes, {"x": (1, 8, 5, 5)}, shapes)
    assert_same(built)
    assert operators(built) == {"RESHAPE": 2, "TRANSPOSE": 1}


@pytest.mark.parametrize("is_clipped", [True, False])
def test_the_padding_of_a_maximum_is_zero_where_nothing_is_below(is_clipped: bool) -> None:
    nodes = [
        helper.make_node("Relu" if is_clipped else "Tanh", ["x"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    ]
    built = model(nodes, {"x": (1, 4, 8, 8)})
    assert_same(built)
    assert ("PAD" in operators(built)) == is_clipped


def test_nothing_is_stored_twice_and_the_bytes_are_the_same_each_time() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "one"),
        helper.make_node("Conv", ["a", "v"], ["y"], "two"),
    ]
    weights = {"w": random(16, 16, 3, 3), "v": random(16, 16, 3, 3)}
    built = with_fixed_sizes(model(nodes, {"x": ("batch", 16, 9, 9)}, weights))
    written = to_tflite(built)
    assert written == to_tflite(built)
    assert 9_216 < len(written) < 9_216 + 4_000
    assert written[4:8] == b"TFL3"


def test_constants_are_aligned_in_the_file() -> None:
    written = to_tflite(with_fixed_sizes(convolution(filters=5, channels=3)))
    found = schema.Model.GetRootAs(written)
    places = [
        found.Buffers(number)._tab.Vector(found.Buffers(number)._tab.Offset(4))
        for number in range(found.BuffersLength())
        if found.Buffers(number).DataLength()
    ]
    assert places
    assert all(place % 16 == 0 for place in places)
