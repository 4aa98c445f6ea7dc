"""Whole files: names, batches, what is refused, and the gate before anything is pruned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper
from torch import nn

from edgeprune.errors import GateError, InputError
from edgeprune.onnx_files.model import check_model
from edgeprune.onnx_import.importer import build, import_onnx
from edgeprune.onnx_import.names import layer_name
from edgeprune.onnx_import.ops import table
from edgeprune.onnx_import.parity import difference
from edgeprune.tracing.trace import trace

WEIGHTS = {"stem.weight": (8, 3, 3, 3), "w": (8, 8, 3, 3), "b": (1, 8, 1, 1), "fc": (8, 5)}
BODY = """
    a = Conv<pads = [1, 1, 1, 1]>(image, stem.weight)
    b0 = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(b0, w)
    d = Add(c, b)
    e = Add(d, b0)
    f = GlobalAveragePool(e)
    {flat}
    scores = MatMul(g, fc)
"""
FLAT = "g = Flatten(f)"


def model(flat: str = FLAT, sizes: str = "N, 3, 8, 8", body: str = BODY, opset: int = 18) -> ModelProto:
    text = f'<ir_version: 8, opset_import: ["": {opset}]> net (float[{sizes}] image) => (float[M, 5] scores) {{'
    made = onnx.parser.parse_model(text + body.replace("{flat}", flat).replace("stem.weight", "stem_weight") + "}")
    for node in made.graph.node:
        node.input[:] = [name.replace("stem_weight", "stem.weight") for name in node.input]
        if node.output[0] == "c":
            node.name = "/block/block.1/conv2/Conv"
    random = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        values = random.normal(size=shape).astype(np.float32) / 4
        made.graph.initializer.append(numpy_helper.from_array(values, name))
    return made


def saved(path: Path, made: ModelProto) -> Path:
    onnx.save(made, path)
    return path


def test_layers_inputs_and_outputs_have_the_names_of_the_file(tmp_path: Path) -> None:
    found = import_onnx(saved(tmp_path / "net.onnx", model()))
    layers = {name for name, module in found.module.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    assert layers == {"stem", "block.1.conv2", "MatMul_scores"}
    assert (found.input_name, found.output_names, found.input_shape, found.batch) == (
        "image",
        ("scores",),
        (3, 8, 8),
        None,
    )
    bias = found.module.get_submodule("block.1.conv2").bias
    assert bias is not None, "the Add behind the convolution is its bias"


def test_pruning_sees_through(tmp_path: Path) -> None:
    found = import_onnx(saved(tmp_path / "net.onnx", model()))
    graph = trace(found.module, torch.zeros(1, 3, 8, 8)).graph
    assert sum(1 for coupled in graph.coupled_sets if coupled.pinned) == 2, "input and output alone"
    assert graph.layer("stem").writes == graph.layer("block.1.conv2").writes


@pytest.mark.parametrize("flat", [FLAT, "t = Constant<value_ints = [1, 8]>() g = Reshape(f, t)"])
def test_a_file_for_one_image_runs_at_any_batch(tmp_path: Path, flat: str) -> None:
    found = import_onnx(saved(tmp_path / "net.onnx", model(flat, "1, 3, 8, 8")))
    assert found.batch is None
    assert found.module(torch.zeros(5, 3, 8, 8)).shape == (5, 5)


@pytest.mark.parametrize(
    ("flat", "batch"),
    [
        (
            "t = Constant<value_ints = [8]>() h = Reshape(f, t) u = Constant<value_ints = [0]>() g = Unsqueeze(h, u)",
            "1",
        ),
        ("n = Flatten(f) p = ReduceMean<axes = [0], keepdims = 1>(n) g = Add(n, p)", "N"),
    ],
)
def test_a_network_for_one_image_alone_stays_one(tmp_path: Path, flat: str, batch: str) -> None:
    found = import_onnx(saved(tmp_path / "net.onnx", model(flat, f"{batch}, 3, 8, 8", opset=17)))
    assert found.batch == 1
    assert found.module(torch.zeros(1, 3, 8, 8)).shape == (1, 5)


def test_open_sizes_are_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.onnx", model(sizes="N, 3, H, W"))
    with pytest.raises(InputError, match="pass --input-size H,W"):
        import_onnx(path)
    assert import_onnx(path, (10, 6)).input_shape == (3, 10, 6)


@pytest.mark.parametrize(
    ("flat", "said"),
    [
        ("h = Det(e) g = Flatten(f)", None),
        (
            "h = NonZero(f) k = Cast<to = 1>(h) m = ReduceMean(k) n = Flatten(f) g = Add(n, m)",
            "NonZero node 'NonZero_h'",
        ),
        (
            "h, i = MaxPool<kernel_shape = [1, 1]>(f) k = Cast<to = 1>(i) m = Add(h, k) g = Flatten(m)",
            "where each maximum",
        ),
    ],
)
def test_what_torch_cannot_write_is_refused_in_one_line(tmp_path: Path, flat: str, said: str | None) -> None:
    path = saved(tmp_path / "net.onnx", model(flat, opset=17))
    if said is None:  # nothing reads what it gives
        assert import_onnx(path).batch is None
        return
    with pytest.raises(InputError, match=said) as caught:
        import_onnx(path)
    assert "\n" not in str(caught.value)


def test_an_import_that_computes_something_else_is_not_given_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(table.OPS, "Relu", lambda node: node.call(F.relu6, node.tensor()))  # type: ignore[arg-type]
    flat = "h = Flatten(f) big = Constant<value_float = 100.0>() k = Mul(h, big) g = Relu(k)"
    with pytest.raises(GateError, match="output 'scores' differs by .* from ONNX Runtime's"):
        import_onnx(saved(tmp_path / "net.onnx", model(flat)))


def test_inputs_that_are_no_images_are_refused(tmp_path: Path) -> None:
    made = model()
    extra = made.graph.input.add()
    extra.CopyFrom(made.graph.input[0])
    extra.name = "second"
    with pytest.raises(InputError, match="expected one input with images"):
        import_onnx(saved(tmp_path / "net.onnx", made))


@pytest.mark.parametrize(
    ("node", "weight", "layer"),
    [
        ("any", "layer1.0.conv1.weight", "layer1.0.conv1"),
        ("/layer1/layer1.0/conv1/Conv", "onnx::Conv_193", "layer1.0.conv1"),
        ("/features/features.1/block/block.0/block.0.0/Conv", "w", "features.1.block.0.0"),
        ("p2o.Conv.3", "conv2d_3.w_0", "p2o.Conv.3"),
        ("a b:c..d", "w", "a_b_c.d"),
        ("", "w", "unnamed"),
    ],
)
def test_layer_names(node: str, weight: str, layer: str) -> None:
    assert layer_name(node, weight) == layer


@settings(max_examples=12, deadline=None)
@given(names=st.lists(st.text(min_size=1, max_size=12), min_size=3, max_size=3, unique=True))
def test_any_names_in_the_file_are_taken(names: list[str]) -> None:
    made = model()
    convolutions = [node for node in made.graph.node if node.op_type in ("Conv", "MatMul")]
    for node, name in zip(convolutions, names, strict=True):
        node.name = name
        for tensor in made.graph.initializer:
            if tensor.name == node.input[1]:
                tensor.name = node.input[1] = f"{name}.weight"
    try:
        made = check_model(made)
    except InputError:
        return  # a name that protobuf or ONNX Runtime does not take
    assert not difference(made, build(made, (1, 2)), (3, 8, 8), (1,), fixed=None)


def test_ends_of_slices_that_follow_from_the_number_of_channels_are_constants(tmp_path: Path) -> None:
    """As torch's older exporter writes `chunk`, and with them the number of images, which is none."""
    halved = """
    a = Conv<pads = [1, 1, 1, 1]>(image, stem.weight)
    sizes = Shape(a)
    number = Constant<value_ints = [{axis}]>()
    two = Constant<value_ints = [2]>()
    zero = Constant<value_ints = [0]>()
    one = Constant<value_ints = [1]>()
    size = Gather<axis = 0>(sizes, number)
    more = Add(size, one)
    half = Div(more, two)
    left = Slice(a, zero, half, {taken})
    right = Slice(a, half, size, {taken})
    d = Mul(left, right)
    twice = Concat<axis = 1>(d, d)
    f = GlobalAveragePool(twice)
    {flat}
    scores = MatMul(g, fc)
    """
    by_channels = halved.replace("{axis}", "1").replace("{taken}", "one")
    found = import_onnx(saved(tmp_path / "net.onnx", model(body=by_channels)))
    assert found.batch is None
    graph = trace(found.module, torch.zeros(1, 3, 8, 8)).graph
    assert not graph.coupled_set(graph.layer("stem").writes).pinned
    by_images = """
    a = Conv<pads = [1, 1, 1, 1]>(image, stem.weight)
    sizes = Shape(a)
    zero = Constant<value_ints = [0]>()
    one = Constant<value_ints = [1]>()
    seven = Constant<value_ints = [7]>()
    number = Gather<axis = 0>(sizes, zero)
    end = Add(number, seven)
    some = Slice(a, zero, end, one)
    f = GlobalAveragePool(some)
    {flat}
    scores = MatMul(g, fc)
    """
    with pytest.raises(InputError, match="its ends depends on the batch"):
        build(check_model(model(body=by_images)), (1, 2))
