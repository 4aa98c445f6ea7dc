"""Files as other exporters write them: open sizes, domains, inputs without a batch, and what only ONNX Runtime takes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.errors import InputError
from edgeprune.io import progress
from edgeprune.onnx_files.inputs import input_specs, output_specs, static_batch, with_input_size
from edgeprune.onnx_files.model import check_model, load_model, save_onnx
from edgeprune.onnx_files.shapes import concrete_shapes
from edgeprune.onnx_files.validity import require_runnable, runtime_sentence
from edgeprune.runners.onnxruntime.runner import OrtRunner

WEIGHT = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)


def network(*, before=(), opsets=(("", 17),), out=("batch", 4, "h", "w"), data="x", **inputs):
    """One convolution with a ReLU behind it. Inputs by name: shape, or element type and shape."""
    nodes = [
        *(helper.make_node(*node, **attributes) for node, attributes in before),
        helper.make_node("Conv", [data, "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    values = [
        helper.make_tensor_value_info(name, *(given if isinstance(given[0], int) and len(given) == 2 and isinstance(given[1], list) else (1, given)))
        for name, given in (inputs or {"x": ["batch", 3, 8, 8]}).items()
    ]  # fmt: skip
    held = [numpy_helper.from_array(WEIGHT, "w"), numpy_helper.from_array(np.array([0]), "first")]
    graph = helper.make_graph(nodes, "g", values, [helper.make_tensor_value_info("y", 1, out)], held)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid(*opset) for opset in opsets])


@pytest.mark.parametrize("batch", [-1, 0])
def test_sizes_below_one_are_open(batch):
    model = check_model(network(x=[batch, 3, -1, 8], out=(-1, 4, -1, 6)))
    assert input_specs(model)[0].shape == (None, 3, None, 8)
    assert output_specs(model)[0].shape == (None, 4, None, 6)
    assert static_batch(model) is None
    sized = with_input_size(model, (10, 8))
    assert concrete_shapes(sized, 2)["y"] == (2, 4, 8, 6)
    with OrtRunner(sized) as runner:
        assert runner.run({"x": np.zeros((5, 3, 10, 8), np.float32)})["y"].shape == (5, 4, 8, 6)


def test_a_question_mark_is_no_name():
    sized = with_input_size(check_model(network(x=["?", 3, "?", "?"])), (8, 10))
    assert concrete_shapes(sized, 1)["y"] == (1, 4, 6, 8)


@pytest.mark.parametrize(
    "opsets", [[("ai.onnx", 13)], [("", 13), ("ai.onnx", 13)], [("ai.onnx.ml", 2), ("", 13), ("", 13)]]
)
@pytest.mark.parametrize("written_out", [True, False])
def test_onnxs_own_domain_may_be_written_out_and_listed_twice(opsets, written_out):
    model = network(opsets=opsets)
    for node in model.graph.node:
        node.domain = "ai.onnx" if written_out else ""
    checked = check_model(model)
    assert sum(entry.domain == "" for entry in checked.opset_import) == 1
    assert not [entry for entry in checked.opset_import if entry.domain == "ai.onnx"]
    assert {node.domain for node in checked.graph.node} == {""}


def test_the_shape_of_an_output_may_be_missing(tmp_path):
    model = network()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    path = tmp_path / "silent.onnx"
    path.write_bytes(model.SerializeToString())
    (spec,) = output_specs(load_model(path))
    assert spec.shape == ("batch", 4, 6, 6)


def test_the_shape_of_an_input_may_be_missing(tmp_path):
    model = network()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    path = tmp_path / "silent.onnx"
    path.write_bytes(model.SerializeToString())
    loaded = load_model(path)
    assert not input_specs(loaded)[0].states_shape
    for ask in (lambda: with_input_size(loaded, (), where="m.onnx"), lambda: concrete_shapes(loaded, 1)):
        with pytest.raises(InputError, match="states no shape of input 'x'; expected.*--input-size .* C,H,W"):
            ask()
    assert concrete_shapes(with_input_size(loaded, (3, 8, 10)), 2)["y"] == (2, 4, 6, 8)
    with OrtRunner(path) as runner:
        assert runner.run({"x": np.zeros((2, 3, 9, 9), np.float32)})["y"].shape == (2, 4, 7, 7)


def test_what_the_runtime_runs_and_the_checker_refuses_is_taken_with_one_note(tmp_path, capsys):
    model = network()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    with progress.shown():
        load_model(path)
        loaded = load_model(path)
    assert capsys.readouterr().err.count("although onnx.checker objects: Field 'shape'") == 1
    save_onnx(loaded, tmp_path / "again.onnx")


def test_a_value_that_nobody_makes_is_refused_in_the_runtimes_words():
    model = network()
    model.graph.node[1].input[0] = "nowhere"
    with pytest.raises(InputError, match=r"^m.onnx: is not a valid model: .*nowhere"):
        check_model(model, where="m.onnx")


UNSQUEEZE = ((("Unsqueeze", ["x", "first"], ["image"]), {}),)


def test_a_first_axis_that_is_no_batch_is_an_axis_like_others():
    fixed = check_model(network(before=UNSQUEEZE, data="image", x=[3, 8, 8], out=(1, 4, 6, 6)))
    assert static_batch(fixed) == 1
    assert not input_specs(fixed)[0].is_batched
    assert concrete_shapes(fixed, 1)["y"] == (1, 4, 6, 6)
    with pytest.raises(InputError, match="takes one sample: no first axis is a batch; expected batch size 4"):
        concrete_shapes(fixed, 4)
    unsized = check_model(network(before=UNSQUEEZE, data="image", x=["c", "h", "w"]))
    assert concrete_shapes(with_input_size(unsized, (3, 8, 10)), 1)["y"] == (1, 4, 6, 8)
    with pytest.raises(InputError, match=r"has dynamic axes: \(c, h, w\).*--input-size"):
        with_input_size(unsized, (8, 10))


def test_a_batch_that_is_reshaped_is_still_one():
    flat = network(before=[(("Reshape", ["x", "target"], ["image"]), {})], data="image", x=["n", 192])
    flat.graph.initializer.append(numpy_helper.from_array(np.array([-1, 3, 8, 8]), "target"))
    flat = check_model(flat)
    assert static_batch(flat) is None
    assert concrete_shapes(flat, 7)["y"] == (7, 4, 6, 6)


def test_channels_last_and_a_second_input_have_a_batch():
    turn = [(("Transpose", ["image:0"], ["x"]), {"perm": [0, 3, 1, 2]})]
    model = check_model(network(before=turn, **{"image:0": ["unk__0", 8, 8, 3], "sizes": ["unk__0", 2], "k": [1]}))
    assert [(spec.name, spec.is_batched) for spec in input_specs(model)] == [("image:0", True), ("sizes", True), ("k", False)]  # fmt: skip
    assert concrete_shapes(model, 3)["y"] == (3, 4, 6, 6)
    assert concrete_shapes(model, 3)["k"] == (1,)


def test_shapes_that_are_computed_from_shapes_are_known_at_one_size():
    """x -> (N, C, H * W) by what Shape gives -> back: ONNX's inference alone loses it at the product."""
    body = [
        (("Shape", ["x"], ["s"]), {}),
        (("Gather", ["s", "rest"], ["hw"]), {"axis": 0}),
        (("ReduceProd", ["hw"], ["area"]), {"keepdims": 1}),
        (("Concat", ["minus", "three", "area"], ["target"]), {"axis": 0}),
        (("Reshape", ["x", "target"], ["flat"]), {}),
        (("Reshape", ["flat", "s"], ["image"]), {}),
    ]
    model = network(before=body, data="image")
    for name, given in {"rest": [2, 3], "minus": [-1], "three": [3]}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(given), name))
    model = check_model(model)
    assert concrete_shapes(model, 5)["flat"] == (5, 3, 64)
    assert concrete_shapes(model, 5)["y"] == (5, 4, 6, 6)


def test_what_a_custom_operation_gives_is_what_the_file_states():
    model = network(before=[(("Odd", ["x"], ["image"]), {"domain": "com.example"})], data="image")
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(InputError, match=r"^ONNX model: ONNX Runtime cannot load it: (?!\[).*com.example"):
        OrtRunner(model)
    with pytest.raises(
        InputError, match=r"^m.onnx: ONNX Runtime refuses it: (?!\[).*com.example.*ONNX's own operations"
    ):
        require_runnable(model, "m.onnx")
    stated = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])
    model.graph.value_info.append(stated)
    assert concrete_shapes(model, 2)["y"] == (2, 4, 6, 6)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/a/b.cc:15 void A::B(const C&) This is wrong",
            "This is wrong",
        ),
        ("[ONNXRuntimeError] : 10 : INVALID_GRAPH : No such op", "No such op"),
        ("nothing of that kind", "nothing of that kind"),
    ],
)
def test_the_runtimes_sentence_is_told_without_places_in_its_source(said, told):
    assert runtime_sentence(RuntimeError(said)) == told
