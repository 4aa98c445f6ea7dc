"""Whole networks in ncnn's files: their layers, names and bytes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from runtimes.small_onnx import ncnn_difference, normal, small_model

from edgeprune.errors import InputError
from edgeprune.exporters.ncnn.network import ncnn_network

pytest.importorskip("ncnn", reason="ncnn is not installed: pip install 'edgeprune[ncnn]'")

node = helper.make_node
IMAGE = (1, 8, 6, 7)


def kinds(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines()[2:]]


def test_the_text_file_says_what_is_in_it() -> None:
    model = small_model(
        [node("Conv", ["x", "w"], ["y"], name="first", pads=[1, 2, 3, 4])], IMAGE, {"w": normal(4, 8, 3, 5)}
    )
    assert ncnn_network(model).param().splitlines() == [
        "7767517",
        "2 2",
        "Input                    x                        0 1 x 0=7 1=6 2=8",
        "Convolution              first                    1 1 x y "
        "0=4 1=5 2=1 3=1 4=2 5=0 6=480 11=3 12=1 13=1 14=1 15=4 16=3",
    ]
    assert ncnn_network(model).weights() == bytes(4) + normal(4, 8, 3, 5).tobytes()


def test_activations_are_computed_along_where_nobody_else_reads_in_front(tmp_path: Path) -> None:
    constants = {"w": normal(8, 2, 3, 3), "low": np.float32(0), "high": np.float32(6)}
    for activation in (
        node("Relu", ["a"], ["b"]),
        node("LeakyRelu", ["a"], ["b"], alpha=0.2),
        node("Clip", ["a", "low", "high"], ["b"]),
        node("Sigmoid", ["a"], ["b"]),
        node("HardSwish", ["a"], ["b"]),
    ):
        conv = node("Conv", ["x", "w"], ["a"], group=4, pads=[1] * 4)
        alone = small_model([conv, activation, node("Neg", ["b"], ["y"])], IMAGE, constants)
        shared = small_model([conv, activation, node("Add", ["a", "b"], ["y"])], IMAGE, constants)
        assert kinds(ncnn_network(alone).param()) == ["Input", "ConvolutionDepthWise", "UnaryOp"]
        assert len(kinds(ncnn_network(shared).param())) == 5
        assert max(ncnn_difference(alone, tmp_path), ncnn_difference(shared, tmp_path)) <= 1e-5


def test_channels_dealt_out_by_reshaping_are_one_layer(tmp_path: Path) -> None:
    constants = {"four": np.array([1, 2, 4, 6, 7]), "three": np.array([1, 8, 6, 7])}
    shuffle = [
        node("Reshape", ["x", "four"], ["a"]),
        node("Transpose", ["a"], ["b"], perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["b", "three"], ["y"]),
    ]
    model = small_model(shuffle, IMAGE, constants)
    assert kinds(ncnn_network(model).param()) == ["Input", "ShuffleChannel"]
    assert ncnn_difference(model, tmp_path) == 0
    both = small_model(shuffle, IMAGE, constants, outputs=("y", "b"))
    assert kinds(ncnn_network(both).param()) == ["Input", "Reshape", "Permute", "Split", "Reshape"]
    assert ncnn_difference(both, tmp_path) == 0


def test_the_head_of_a_network_is_pooling_and_a_linear_layer(tmp_path: Path) -> None:
    head = [
        node("GlobalAveragePool", ["x"], ["m"]),
        node("Flatten", ["m"], ["flat"]),
        node("Gemm", ["flat", "h"], ["y"]),
    ]
    model = small_model(head, IMAGE, {"h": normal(8, 5)})
    assert kinds(ncnn_network(model).param()) == ["Input", "Pooling", "InnerProduct"]
    assert ncnn_difference(model, tmp_path) <= 1e-6
    both = small_model(head, IMAGE, {"h": normal(8, 5)}, outputs=("y", "m"))
    assert kinds(ncnn_network(both).param()) == ["Input", "Pooling", "Reshape", "Split", "Reshape", "InnerProduct"]
    assert ncnn_difference(both, tmp_path) <= 1e-6


def test_outputs_that_are_read_and_values_read_twice_stay(tmp_path: Path) -> None:
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Neg", ["a"], ["b"]),
        node("Add", ["a", "b"], ["c"]),
        node("Identity", ["a"], ["d"]),
    ]
    model = small_model(nodes, IMAGE, outputs=("a", "c", "d", "b"))
    assert ncnn_network(model).outputs == ("a", "c", "d", "b")
    assert ncnn_difference(model, tmp_path) == 0


def test_shapes_computed_by_the_network_are_constants_at_one_size(tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "first"], ["n"], axis=0),
        node("Concat", ["n", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    model = small_model(nodes, IMAGE, {"first": np.array([0]), "rest": np.array([-1])})
    assert kinds(ncnn_network(model).param()) == ["Input", "Reshape"]
    assert ncnn_difference(model, tmp_path) == 0


def test_names_that_end_in_ncnn_are_replaced_inside_and_refused_outside(tmp_path: Path) -> None:
    inside = small_model([node("Relu", ["x"], ["a b"], name="a node"), node("Neg", ["a b"], ["y"])], IMAGE)
    assert ncnn_difference(inside, tmp_path) == 0
    outside = small_model([node("Relu", ["x"], ["a b"])], IMAGE, outputs=("a b",))
    with pytest.raises(InputError, match="cannot read the name 'a b'"):
        ncnn_network(outside)


def test_the_same_network_gives_the_same_bytes() -> None:
    model = small_model([node("Conv", ["x", "w"], ["a"]), node("Relu", ["a"], ["y"])], IMAGE, {"w": normal(4, 8, 3, 3)})
    first, second = ncnn_network(model), ncnn_network(model)
    assert (first.param(), first.weights()) == (second.param(), second.weights())


REFUSED = {
    r"node 'g' \(Gather\): ncnn has no Gather": small_model(
        [node("Gather", ["x", "i"], ["y"], name="g", axis=1)], IMAGE, {"i": np.array([3, 1, 0, 2])}
    ),
    r"\(ArgMax\): this operation is not in the table": small_model(
        [node("ArgMax", ["x"], ["a"], axis=1), node("Cast", ["a"], ["y"], to=1)], IMAGE
    ),
    r"\(Cast\): 'a' is int64, ncnn computes in float32": small_model(
        [node("Cast", ["x"], ["a"], to=7), node("Cast", ["a"], ["y"], to=1)], IMAGE
    ),
    r"its windows slide over 1 axes": small_model([node("Conv", ["x", "w"], ["y"])], (1, 8, 9), {"w": normal(4, 8, 3)}),
    r"its weights are computed at run time": small_model(
        [node("Conv", ["x", "w"], ["y"])], IMAGE, more_inputs={"w": (1, 8, 3, 3)}
    ),
    r"its windows have holes": small_model([node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2])], IMAGE),
    r"its output 'i' beside the first": small_model(
        [node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2]), node("Cast", ["i"], ["z"], to=1)], IMAGE, outputs=("y", "z")
    ),
    r"takes places \{1: 2\} apart": small_model(
        [node("Slice", ["x", "s", "e", "a", "t"], ["y"])], IMAGE,
        {"s": np.array([0]), "e": np.array([6]), "a": np.array([1]), "t": np.array([2])},
    ),
    r"it moves the batch": small_model([node("Transpose", ["x"], ["y"], perm=[1, 0, 2, 3])], IMAGE),
    r"its first axis is no batch of 1": small_model([node("Reshape", ["x", "s"], ["y"])], IMAGE, {"s": np.array([8, 42])}),
    r"5 axes beside the batch": small_model([node("Reshape", ["x", "s"], ["y"])], IMAGE, {"s": np.array([1, 2, 2, 2, 6, 7])}),
    r"ncnn would read up to .* pixels away": small_model(
        [node("Resize", ["x", "", "s"], ["y"], mode="linear", coordinate_transformation_mode="asymmetric")], IMAGE,
        {"s": np.array([1, 1, 2, 2], np.float32)},
    ),
    r"it enlarges one single row": small_model(
        [node("Resize", ["x", "", "", "s"], ["y"], mode="linear")], (1, 8, 1, 5), {"s": np.array([1, 8, 4, 9])}
    ),
    r"in mode cubic": small_model([node("Resize", ["x", "", "s"], ["y"], mode="cubic")], IMAGE, {"s": np.array([1, 1, 2, 2], np.float32)}),
    r"works along the batch": small_model([node("Concat", ["x", "x"], ["y"], axis=0)], IMAGE),
    r"its slopes have the shape": small_model([node("PRelu", ["x", "s"], ["y"])], IMAGE, {"s": normal(8, 6, 7)}),
    r"its mode is wrap": small_model([node("Pad", ["x", "p"], ["y"], mode="wrap")], IMAGE, {"p": np.array([0, 0, 1, 0, 0, 0, 0, 0])}),
    r"before opset 13 it works along all axes": small_model([node("Softmax", ["x"], ["y"], axis=1)], IMAGE, opset=11),
    r"the output 'y' is a constant": small_model([node("Relu", ["c"], ["y"])], IMAGE, {"c": normal(3)}),
    r"divides by its alpha": small_model([node("HardSigmoid", ["x"], ["y"], alpha=-0.1)], IMAGE),
    r"multiplies something else than one row": small_model(
        [node("Gemm", ["x", "w"], ["y"], transA=1)], (1, 1), {"w": normal(1, 3)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_what_ncnn_does_not_have_is_refused_with_the_node_and_the_reason(words: str) -> None:
    with pytest.raises(InputError, match=words) as told:
        ncnn_network(REFUSED[words])
    assert str(told.value).startswith("ncnn: ")


def test_open_sizes_and_other_batches_are_refused() -> None:
    model = small_model([node("Relu", ["x"], ["y"])], (1, 8, 6, 7))
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "rows"
    with pytest.raises(InputError, match="--input-size"):
        ncnn_network(model)
    with pytest.raises(InputError, match="fixed batch of 2"):
        ncnn_network(small_model([node("Relu", ["x"], ["y"])], (2, 8, 6, 7)))


def test_inputs_of_other_types_are_refused() -> None:
    model = small_model([node("Cast", ["x"], ["y"], to=1)], IMAGE)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    with pytest.raises(InputError, match="'x' is uint8"):
        ncnn_network(model)
