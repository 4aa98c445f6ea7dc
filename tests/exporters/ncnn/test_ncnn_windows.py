"""Convolutions and pooling of every geometry, and arithmetic of every pair of shapes, in ncnn and in ONNX Runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper
from runtimes.small_onnx import ncnn_difference, normal, small_model

from edgeprune.errors import InputError

pytest.importorskip("ncnn", reason="ncnn is not installed: pip install 'edgeprune[ncnn]'")

CLOSE = 1e-5
sizes = st.integers(1, 3)
pairs = st.tuples(sizes, sizes)


def distance(model: ModelProto) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return ncnn_difference(model, Path(folder))


@settings(max_examples=60, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4, 8]),
    inner=st.sampled_from([1, 2, 3, 4]),
    filters=st.sampled_from([1, 2, 4, 8]),
    kernel=pairs,
    stride=pairs,
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    bias=st.booleans(),
    transposed=st.booleans(),
)
def test_convolutions(groups, inner, filters, kernel, stride, dilation, pads, bias, transposed) -> None:
    channels = groups * inner
    shape = (channels, filters, *kernel) if transposed else (groups * filters, inner, *kernel)
    constants = {"w": normal(*shape)} | ({"b": normal(groups * filters)} if bias else {})
    node = helper.make_node(
        "ConvTranspose" if transposed else "Conv", ["x", *constants], ["y"],
        group=groups, strides=stride, dilations=dilation, pads=pads,
    )  # fmt: skip
    assert distance(small_model([node], (1, channels, 8, 9), constants)) <= CLOSE


@settings(max_examples=80, deadline=None)
@given(
    op=st.sampled_from(["MaxPool", "AveragePool"]),
    kernel=pairs,
    stride=pairs,
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    ceil=st.booleans(),
    counted=st.booleans(),
    channels=st.sampled_from([3, 8]),
)
def test_pooling(op, kernel, stride, pads, ceil, counted, channels) -> None:
    given_pads = [min(pad, kernel[place % 2] - 1) for place, pad in enumerate(pads)]
    more = {"count_include_pad": int(counted)} if op == "AveragePool" else {}
    node = helper.make_node(
        op, ["x"], ["y"], kernel_shape=kernel, strides=stride, pads=given_pads, ceil_mode=int(ceil), **more
    )
    if ceil and any(
        _begins_behind(*row) for row in zip((8, 11), kernel, stride, given_pads[:2], given_pads[2:], strict=True)
    ):
        return  # ONNX's shape inference counts such windows, ONNX Runtime does not
    assert distance(small_model([node], (1, channels, 8, 11))) <= CLOSE


def _begins_behind(size: int, kernel: int, stride: int, before: int, after: int) -> bool:
    """Whether rounding up makes a window that begins behind the input."""
    return -(-(size + before + after - kernel) // stride) * stride >= size + before


def test_a_window_behind_the_input_is_refused() -> None:
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], pads=[1] * 4, ceil_mode=1)
    with pytest.raises(InputError, match="it makes 6 windows of 11 places, where 5 fit"):
        distance(small_model([node], (1, 8, 9, 11)))


@settings(max_examples=80, deadline=None)
@given(
    op=st.sampled_from(["Add", "Sub", "Mul", "Max"]),
    shape=st.sampled_from([(8,), (5, 6), (8, 3, 5), (3, 3, 3), (4, 2, 3, 5), (8, 8, 8), (1, 1, 8)]),
    kept=st.lists(st.booleans(), min_size=4, max_size=4),
    dropped=st.integers(0, 3),
    constant=st.booleans(),
    first=st.booleans(),
)
def test_arithmetic_with_broadcasting(op, shape, kept, dropped, constant, first) -> None:
    other = tuple(size if keep else 1 for size, keep in zip(shape, kept, strict=False))
    if constant:
        other = other[min(dropped, len(other)) :]
        constants, inputs = {"z": normal(*other)}, {}
    else:
        constants, inputs = {}, {"z": (1, *other)}
    operands = ["z", "x"] if first else ["x", "z"]
    node = helper.make_node(op, operands, ["y"])
    assert distance(small_model([node], (1, *shape), constants, more_inputs=inputs)) <= CLOSE


@pytest.mark.parametrize("ranks", [((1, 5), (1, 3, 4, 5)), ((1, 4, 5), (1, 1, 4, 5))])
def test_operands_of_other_ranks_meet_at_the_last_axis(ranks: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    small, large = ranks
    node = helper.make_node("Sub", ["x", "z"], ["y"])
    assert distance(small_model([node], small, more_inputs={"z": large})) <= CLOSE
