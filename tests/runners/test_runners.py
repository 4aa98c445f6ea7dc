import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper, parser

from edgeprune.errors import InputError
from edgeprune.onnx_files.graph import TensorSpec
from edgeprune.runners.base import RunOptions
from edgeprune.runners.cores import pinned
from edgeprune.runners.feeds import check_feeds
from edgeprune.runners.onnxruntime.providers import target_state
from edgeprune.runners.onnxruntime.runner import OrtRunner

CHANNELS = 16


def network(body, groups=1):
    """A model over x (batch, 16, 9, 9); weights w and u, vectors b and v, a scale s of shape (16, 1, 1)."""
    rng = np.random.default_rng(0)
    body = body.replace("Conv(", f"Conv<group={groups}, pads=[1,1,1,1]>(")
    model = parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g (float[batch,16,9,9] x) => (float[batch,c,h,k] y) {{ {body} }}'
    )
    shapes = {"w": (16, 16 // groups, 3, 3), "u": (16, 16 // groups, 3, 3), "b": (16,), "s": (16, 1, 1)}
    values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    values |= {"v": rng.random(16).astype(np.float32) + 1, "lo": np.float32(0), "hi": np.float32(6)}
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    for number, node in enumerate(model.graph.node):
        node.name = f"node_{node.op_type}_{number}"
    return model


@pytest.fixture
def x():
    return np.random.default_rng(1).standard_normal((2, 16, 9, 9)).astype(np.float32)


@pytest.fixture
def runner():
    with OrtRunner(network("a = Conv(x, w) y = Relu(a)")) as made:
        yield made


def test_it_runs_from_a_path_bytes_and_a_model(tmp_path, x):
    model = network("a = Conv(x, w) y = Relu(a)")
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    results = []
    for source in (path, str(path), path.read_bytes(), model):
        with OrtRunner(source) as runner:
            assert (runner.target, runner.provider) == ("cpu", "CPUExecutionProvider")
            assert (runner.input_names, runner.output_names) == (("x",), ("y",))
            results.append(runner.run({"x": x})["y"])
    assert results[0].shape == (2, 16, 9, 9)
    assert all(np.array_equal(results[0], other) for other in results)
    assert model.graph.node[0].name == "node_Conv_0"


@pytest.mark.parametrize(
    "options",
    [
        RunOptions(threads=2, spinning=False),
        RunOptions(pin=(0,)),
        RunOptions(graph_optimization="disabled"),
        RunOptions(graph_optimization="layout"),
    ],
)
def test_options_do_not_change_the_result(runner, x, options):
    if options.pin and 0 not in os.sched_getaffinity(0):
        pytest.skip("core 0 is not for this process")
    with OrtRunner(network("a = Conv(x, w) y = Relu(a)"), options) as other:
        np.testing.assert_allclose(other.run({"x": x})["y"], runner.run({"x": x})["y"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "input 'x' is missing"),
        ({"z": np.zeros((1, 16, 9, 9), np.float32)}, "unknown input 'z'"),
        ({"x": np.zeros((16, 9, 9), np.float32)}, "has shape (16, 9, 9); expected shape (batch, 16, 9, 9)"),
        ({"x": np.zeros((1, 15, 9, 9), np.float32)}, "has shape (1, 15, 9, 9); expected shape (batch, 16, 9, 9)"),
        ({"x": np.zeros((1, 16, 9, 9))}, "is float64; expected float32; convert it"),
    ],
)
def test_wrong_inputs_are_named_with_what_was_expected(runner, feeds, words):
    with pytest.raises(InputError) as error:
        runner.run(feeds)
    assert words in str(error.value)


def test_floats_are_not_to_be_made_pixels_by_cutting_them_off():
    with pytest.raises(InputError, match="is float32; expected uint8; pass uint8, such as pixels that are not normal"):
        check_feeds({"x": np.zeros((1, 3), np.float32)}, [TensorSpec("x", (1, 3), "uint8")])


def test_a_named_dimension_must_have_one_size(x):
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[b,2] x, float[b,2] z) => (float[b,2] y) { y = Add(x, z) }'
    )
    with OrtRunner(model) as runner, pytest.raises(InputError, match=r"input 'z' has shape \(3, 2\)"):
        runner.run({"x": np.zeros((2, 2), np.float32), "z": np.zeros((3, 2), np.float32)})


def test_a_model_that_fails_on_its_input_is_an_error_of_the_input():
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[b,2] x) => (float[c,d] y) <int64[2] t = {3, -1}> '
        "{ y = Reshape(x, t) }"
    )
    with OrtRunner(model) as runner, pytest.raises(InputError, match="cannot run the model on this input"):
        runner.run({"x": np.zeros((2, 2), np.float32)})


def test_a_closed_runner_refuses_to_run(x):
    runner = OrtRunner(network("y = Conv(x, w)"))
    runner.close()
    runner.close()
    with pytest.raises(ValueError, match="closed"):
        runner.run({"x": x})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (RunOptions(threads=0), "--threads 0"),
        (RunOptions(graph_optimization="most"), "unknown graph optimization level 'most'"),
        (RunOptions(threads=2, pin=(0,)), "1 cores to pin to for 2 threads"),
        (RunOptions(pin=(99999,)), r"cannot pin to cores \[99999\]"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        OrtRunner(network("y = Conv(x, w)"), options)


@pytest.mark.parametrize("target", ["cuda", "tensorrt", "openvino"])
def test_a_provider_that_is_missing_is_an_error_and_never_replaced(target):
    state = target_state(target)
    if state.available:
        pytest.skip(f"{state.provider} is present")
    with pytest.raises(InputError) as error:
        OrtRunner(network("y = Conv(x, w)"), target=target)
    for word in (state.provider, "CPUExecutionProvider", "install onnxruntime-"):
        assert word in str(error.value)


def test_a_provider_that_onnxruntime_drops_when_it_starts_is_an_error(monkeypatch):
    present = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: present)
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(InputError, match="fell back to CPUExecutionProvider"),
    ):
        OrtRunner(network("y = Conv(x, w)"), target="cuda")


def test_an_unknown_target_is_refused():
    with pytest.raises(InputError, match="unknown ONNX Runtime target 'gpu'"):
        OrtRunner(network("y = Conv(x, w)"), target="gpu")


def test_a_model_that_is_none_is_refused(tmp_path):
    for source in (tmp_path / "missing.onnx", b"", b"not a model"):
        with pytest.raises(InputError):
            OrtRunner(source)


def test_pinning_is_undone_also_after_an_error():
    before = os.sched_getaffinity(0)
    core = min(before)
    with pytest.raises(RuntimeError), pinned([core]):
        assert os.sched_getaffinity(0) == {core}
        with pinned([core]):
            pass
        assert os.sched_getaffinity(0) == {core}
        raise RuntimeError
    assert os.sched_getaffinity(0) == before


BODIES = {
    "plain": "y = Conv(x, w)",
    "relu": "a = Conv(x, w) y = Relu(a)",
    "batch norm": "a = Conv(x, w) c = BatchNormalization(a, b, b, b, v) d = Relu(c) y = Conv(d, u)",
    "clip": "a = Conv(x, w) c = Clip(a, lo, hi) y = Conv(c, u)",
    "silu": "a = Conv(x, w) c = Sigmoid(a) d = Mul(a, c) y = Conv(d, u)",
    "residual": "a = Conv(x, w) c = Relu(a) d = Conv(c, u) e = Add(d, x) y = Relu(e)",
    "two branches": "a = Conv(x, w) c = BatchNormalization(a, b, b, b, v) d = Conv(x, u) e = Add(c, d) y = Relu(e)",
    "scale": "a = Conv(x, w) c = Relu(a) d = Mul(c, s) y = Conv(d, u)",
    "pooled": "a = Conv(x, w) c = MaxPool<kernel_shape=[3,3]>(a) y = Conv(c, u)",
}


@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_the_time_of_every_convolution_is_attributed_to_its_node(x, body, groups):
    model = network(body, groups)
    with OrtRunner(model) as runner:
        times = runner.profile_nodes({"x": x}, 3, warmup=1)
        originals = [runner.original_node(time.name) for time in times]
    known = {node.name for node in model.graph.node}
    assert set(originals) <= known | {""}
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert originals.count(node.name) == 1
    for time, original in zip(times, originals, strict=True):
        assert time.mean_ms >= 0
        assert time.provider == "CPUExecutionProvider"
        assert (original == "") == (time.op_type in ("ReorderInput", "ReorderOutput"))


def test_profiling_leaves_no_file_behind(runner, x, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    runner.profile_nodes({"x": x}, 1)
    assert list(Path(tmp_path).iterdir()) == []
    with pytest.raises(InputError, match="--iterations 0"):
        runner.profile_nodes({"x": x}, 0)


def test_nodes_without_names_can_be_told_apart(x):
    model = network("a = Conv(x, w) c = Conv(a, u) y = Conv(c, w)", 4)
    for node in model.graph.node:
        node.name = ""
    with OrtRunner(model) as runner:
        times = runner.profile_nodes({"x": x}, 1)
        originals = [name for time in times if (name := runner.original_node(time.name))]
    assert originals == ["Conv_a", "Conv_c", "Conv_y"]


def test_a_node_inside_an_if_gives_its_time_to_the_if(tmp_path: Path) -> None:
    """Not to the outer convolution of its name, nor a second time to the rest."""
    rng = np.random.default_rng(0)
    held = {"w": (16, 16, 1, 1), "large": (16, 16, 9, 9)}
    tensors = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), name) for name, s in held.items()]
    tensors.append(numpy_helper.from_array(np.float32(-1e9), "least"))
    then = helper.make_graph(
        [helper.make_node("Conv", ["x", "large"], ["t"], name="conv", pads=[4] * 4)],
        "then", [], [helper.make_tensor_value_info("t", 1, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["e"], name="same")],
        "else", [], [helper.make_tensor_value_info("e", 1, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], name="mean", keepdims=0),
        helper.make_node("Greater", ["m", "least"], ["c"], name="greater"),
        helper.make_node("If", ["c"], ["z"], name="if", then_branch=then, else_branch=other),
        helper.make_node("Conv", ["z", "w"], ["y"], name="conv"),
    ]
    values = [helper.make_tensor_value_info(name, 1, ["n", 16, 24, 24]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    path = tmp_path / "inner.onnx"
    path.write_bytes(
        helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    )
    with OrtRunner(path) as runner:
        times = runner.profile_nodes({"x": rng.standard_normal((1, 16, 24, 24)).astype(np.float32)}, 20)
        mine = {runner.original_node(time.name): time.mean_ms for time in times}
    assert {"if", "conv"} <= set(mine)
    assert not [name for name in mine if name.startswith("if/")]
    assert mine["conv"] < mine["if"]
