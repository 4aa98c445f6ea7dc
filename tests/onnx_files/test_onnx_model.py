import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from edgeprune.errors import InputError
from edgeprune.onnx_files.constants import constants
from edgeprune.onnx_files.inputs import input_specs, output_specs, static_batch, with_input_size
from edgeprune.onnx_files.model import load_model
from edgeprune.onnx_files.shapes import concrete_shapes

CONV = """<ir_version: 9, opset_import: ["" : 18]>
g (float[batch,3,8,8] x) => (float[batch,4,6,6] y)
<float[4,3,3,3] w = {VALUES}>
{ y = Conv(x, w) }
""".replace("VALUES", ",".join(["0.5"] * 108))


@pytest.fixture
def model():
    return parser.parse_model(CONV)


@pytest.fixture
def save(tmp_path):
    def write(model, name="model.onnx"):
        path = tmp_path / name
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return path

    return write


def external(model, location, **entries):
    tensor = model.graph.initializer[0]
    data = numpy_helper.to_array(tensor).tobytes()
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return data


def assert_one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_a_valid_file_is_read_and_its_nodes_are_named(save, model):
    loaded = load_model(save(model))
    assert [node.name for node in loaded.graph.node] == ["Conv_y"]
    assert input_specs(loaded)[0].shape == ("batch", 3, 8, 8)
    assert input_specs(loaded)[0].dtype == "float32"
    assert output_specs(loaded)[0].name == "y"
    assert static_batch(loaded) is None


def test_nodes_that_share_a_name_get_names_of_their_own(save):
    model = parser.parse_model(CONV.replace("{ y = Conv(x, w) }", "{ a = Relu(x) b = Relu(a) y = Conv(b, w) }"))
    for node in model.graph.node:
        node.name = "same"
    assert [node.name for node in load_model(save(model)).graph.node] == ["same", "same_1", "same_2"]


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: folder / "missing.onnx",
        lambda folder: folder,
        lambda folder: (folder / "empty.onnx", (folder / "empty.onnx").write_bytes(b""))[0],
        lambda folder: (folder / "junk.onnx", (folder / "junk.onnx").write_bytes(b"not a model" * 50))[0],
    ],
)
def test_what_is_no_file_with_a_model_is_refused(tmp_path, make):
    path = make(tmp_path)
    with pytest.raises(InputError) as error:
        load_model(path)
    assert_one_line(error, str(path), "expected")


def test_every_truncation_is_refused(save, model):
    data = model.SerializeToString()
    for length in range(0, len(data) - 1, 7):
        with pytest.raises(InputError):
            load_model(save(data[:length]))


def test_an_invalid_graph_is_refused(save, model):
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(InputError) as error:
        load_model(save(model))
    assert_one_line(error, "not a valid model")


def test_an_opset_that_onnxruntime_does_not_know_is_refused(save, model):
    model.opset_import[0].version = 99
    with pytest.raises(InputError) as error:
        load_model(save(model))
    assert_one_line(error, "opset 99", "ONNX Runtime", "export with opset")


def test_an_unknown_ir_version_is_refused(save, model):
    model.ir_version = 77
    with pytest.raises(InputError) as error:
        load_model(save(model))
    assert_one_line(error, "IR version 77")


def test_a_network_without_convolution_is_refused_only_if_one_is_required(save):
    path = save(parser.parse_model(CONV.replace("Conv(x, w)", "Relu(x)")))
    with pytest.raises(InputError, match="no convolution"):
        load_model(path)
    assert load_model(path, require_conv=False).graph.node[0].op_type == "Relu"


def test_a_tensor_with_too_few_bytes_is_refused(save, model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.raw_data = b"abcd"
    with pytest.raises(InputError, match="holds 4 bytes; expected 432 bytes"):
        load_model(save(model))


def test_a_tensor_of_an_unknown_type_is_refused(save, model):
    model.graph.initializer[0].data_type = 99
    with pytest.raises(InputError, match="unknown element type 99"):
        load_model(save(model))


def test_a_name_that_is_no_text_is_refused(save, model):
    model.graph.name = "nonsense"
    with pytest.raises(InputError, match="no text"):
        load_model(save(model.SerializeToString().replace(b"nonsense", b"\xb8nsense\xff")))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_file_is_read_or_refused_but_never_crashes(save, model, changes):
    data = bytearray(model.SerializeToString())
    for place, value in changes:
        data[place % len(data)] = value
    with contextlib.suppress(InputError):
        concrete_shapes(load_model(save(bytes(data))), 1)


def test_external_data_beside_the_model_is_read(save, model, tmp_path):
    (tmp_path / "w.bin").write_bytes(external(model, "w.bin"))
    loaded = load_model(save(model))
    weight = numpy_helper.to_array(loaded.graph.initializer[0])
    np.testing.assert_array_equal(weight, np.full((4, 3, 3, 3), 0.5, np.float32))


@pytest.mark.parametrize(
    "location", ["../w.bin", "/etc/hostname", "a/../../w.bin", "..\\w.bin", "C:\\w.bin", "", "link.bin", "none.bin"]
)
def test_external_data_elsewhere_is_refused(save, model, tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir()
    data = external(model, location)
    (tmp_path / "w.bin").write_bytes(data)
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(InputError) as error:
        load_model(save(model, "model/m.onnx"))
    assert_one_line(error, repr(location))


@pytest.mark.parametrize(
    "entries", [{"offset": "-4"}, {"offset": "x"}, {"offset": 400, "length": 432}, {"length": 10**12}]
)
def test_external_data_with_a_wrong_place_in_its_file_is_refused(save, model, tmp_path, entries):
    (tmp_path / "w.bin").write_bytes(external(model, "w.bin", **entries))
    with pytest.raises(InputError):
        load_model(save(model))


def test_shapes_follow_the_batch(model):
    assert concrete_shapes(model, 5)["y"] == (5, 4, 6, 6)
    assert concrete_shapes(model, 1)["w"] == (4, 3, 3, 3)


def test_shapes_written_in_the_file_are_not_trusted():
    model = parser.parse_model(CONV.replace("float[batch,4,6,6] y", "float[batch,4,n,m] y"))
    assert concrete_shapes(model, 1)["y"] == (1, 4, 6, 6)


def test_a_fixed_batch_and_other_dynamic_dimensions_are_errors():
    fixed = parser.parse_model(CONV.replace("float[batch,3", "float[2,3"))
    assert concrete_shapes(fixed, 2)["y"] == (2, 4, 6, 6)
    with pytest.raises(InputError, match="fixed batch of 2"):
        concrete_shapes(fixed, 1)
    with pytest.raises(InputError, match="'height' at axis 2"):
        concrete_shapes(parser.parse_model(CONV.replace("float[batch,3,8,8]", "float[batch,3,height,8]")), 1)


DYNAMIC = CONV.replace("[batch,3,8,8]", "[batch,3,h,w]").replace("[batch,4,6,6]", "[batch,4,n,m]")


@pytest.mark.parametrize("size", [(8, 10), (3, 8, 10)])
def test_dynamic_axes_get_the_size_that_is_given(size):
    model = parser.parse_model(DYNAMIC)
    sized = with_input_size(model, size)
    assert input_specs(sized)[0].shape == ("batch", 3, 8, 10)
    assert concrete_shapes(sized, 2)["y"] == (2, 4, 6, 8)
    assert input_specs(model)[0].shape == ("batch", 3, "h", "w")


def test_a_size_that_the_model_has_already_changes_nothing():
    model = parser.parse_model(CONV)
    assert with_input_size(model, ()) is with_input_size(model, (8, 8)) is with_input_size(model, (3, 8, 8)) is model


@pytest.mark.parametrize(
    ("text", "size", "words"),
    [
        (DYNAMIC, (), r"dynamic axes beside the batch: \(batch, 3, h, w\).*pass --input-size H,W \("),
        (DYNAMIC.replace("3,h,w", "c,h,w"), (8, 8), "dynamic axes beside the batch.*pass --input-size C,H,W$"),
        (DYNAMIC.replace("3,h,w", "3,h,h"), (8, 10), "the same for those of the same name"),
        (
            DYNAMIC.replace("3,h,w", "3,h,8"),
            (8, 10),
            r"--input-size 8,10 contradicts input 'x' of shape \(batch, 3, h, 8\).*pass --input-size 8,8 "
            r"\(fixed: channels 3, width 8\)",
        ),
        (DYNAMIC, (1, 8, 9), r"--input-size 1,8,9 contradicts.*pass --input-size 8,9 \(fixed: channels 3\)"),
        (DYNAMIC, (2, 3, 8, 9), r"--input-size 2,3,8,9 contradicts.*pass --input-size 8,9 \(fixed: channels 3\)"),
        (CONV, (9, 8), r"--input-size 9,8 contradicts input 'x' of shape \(batch, 3, 8, 8\).*leave --input-size out"),
    ],
)
def test_sizes_that_contradict_the_model_or_leave_an_axis_open_are_refused(text, size, words):
    with pytest.raises(InputError, match=f"m.onnx: .*{words}"):
        with_input_size(parser.parse_model(text), size, where="m.onnx")


def test_inputs_that_have_a_size_are_left_alone():
    text = DYNAMIC.replace("float[batch,3,h,w] x)", "float[batch,3,h,w] x, float[batch,7] z)")
    assert [spec.shape for spec in input_specs(with_input_size(parser.parse_model(text), (8, 8)))] == [
        ("batch", 3, 8, 8),
        ("batch", 7),
    ]


def test_constant_nodes_count_as_constants():
    node = helper.make_node("Constant", [], ["c"], value_ints=[1, 2])
    model = parser.parse_model(CONV)
    model.graph.node.insert(0, node)
    assert set(constants(model)) == {"w", "c"}
    np.testing.assert_array_equal(numpy_helper.to_array(constants(model)["c"]), [1, 2])


def test_local_functions_are_inlined(save):
    text = """<ir_version: 9, opset_import: ["" : 18, "own" : 1]>
    g (float[batch,3,8,8] x) => (float[batch,3,8,8] y) <float[3,1,1,1] w = {1.0, 2.0, 3.0}> { y = own.block(x, w) }
    <opset_import: ["" : 18], domain: "own"> block (a, v) => (r) { c = Conv<group=3>(a, v) r = Relu(c) }"""
    loaded = load_model(save(parser.parse_model(text)))
    assert [node.op_type for node in loaded.graph.node] == ["Conv", "Relu"]
    onnx.checker.check_model(loaded)
