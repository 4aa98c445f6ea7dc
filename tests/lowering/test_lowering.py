"""Forms of grouped layers: all compute the same, and what they are said to compute is what the ONNX nodes hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_bundle as small
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeprune.devices.device_profile import load_profile
from edgeprune.errors import InputError
from edgeprune.lowering.costs import cheapest, predict, predicted_costs
from edgeprune.lowering.forms import (
    DENSE,
    GROUPED,
    SPLIT,
    Form,
    candidate_forms,
    executed_macs,
    layer_of_node,
    shape_of,
)
from edgeprune.lowering.gathers import absorb_gathers, count_gathers, drop_unused
from edgeprune.lowering.layers import GroupedLayer, grouped_layers
from edgeprune.lowering.linear import as_convolutions, linear_layers
from edgeprune.lowering.model import lower_model
from edgeprune.lowering.record import load_lowering
from edgeprune.lowering.writing import lower
from edgeprune.onnx_files.macs import count_macs
from edgeprune.onnx_files.model import check_model
from edgeprune.plans.permutation import Selection

AVX512 = load_profile("x86-avx512")
SIZE = 5


@st.composite
def layers(draw: st.DrawFn) -> GroupedLayer:
    """A grouped layer in float64 with any groups, overlapping or repeated reads, and any order of its output."""
    groups, inner, outer = draw(st.integers(2, 6)), draw(st.integers(2, 5)), draw(st.integers(1, 3))
    channels = draw(st.integers(inner, groups * inner))
    if draw(st.booleans()):
        reads = tuple(
            tuple(draw(st.lists(st.integers(0, channels - 1), min_size=inner, max_size=inner))) for _ in range(groups)
        )
    else:
        channels = groups * inner
        reads = tuple(tuple(range(g * inner, (g + 1) * inner)) for g in range(groups))
    filters = groups * outer
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    order = draw(st.permutations(range(filters))) if draw(st.booleans()) else list(range(filters))
    kernel = draw(st.sampled_from([1, 3]))
    return GroupedLayer(
        name="layer",
        source="x",
        source_shape=(channels, SIZE, SIZE),
        output="y",
        output_shape=(filters, SIZE, SIZE),
        reads=reads,
        weight=rng.standard_normal((filters, inner, kernel, kernel)),
        bias=rng.standard_normal(filters) if draw(st.booleans()) else None,
        writes=Selection(tuple(order), filters),
        attributes=(helper.make_attribute("pads", [kernel // 2] * 4),),
        nodes=("layer",),
    )


def model_of(layer: GroupedLayer, form: Form) -> ModelProto:
    lowered = lower(layer, form)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.DOUBLE, [1, *shape])
        for name, shape in ((layer.source, layer.source_shape), (layer.output, layer.output_shape))
    ]
    graph = helper.make_graph(list(lowered.nodes), "g", ends[:1], ends[1:], list(lowered.initializers))
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


def forms_of(layer: GroupedLayer) -> list[Form]:
    merged = [Form("merged", groups=g) for g in range(1, layer.groups) if layer.groups % g == 0]
    return [GROUPED, SPLIT, DENSE, *merged, Form("padded", block=4), Form("padded", block=7)]


@settings(deadline=None, max_examples=60)
@given(layer=layers())
def test_every_form_computes_the_same(layer: GroupedLayer) -> None:
    x = np.random.default_rng(1).standard_normal((1, *layer.source_shape))
    wanted = ReferenceEvaluator(model_of(layer, GROUPED)).run(None, {"x": x})[0]
    for form in forms_of(layer):
        found = ReferenceEvaluator(model_of(layer, form)).run(None, {"x": x})[0]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11, err_msg=str(form))


@settings(deadline=None, max_examples=60)
@given(layer=layers())
def test_a_forms_shape_and_macs_are_those_of_its_nodes(layer: GroupedLayer) -> None:
    for form in forms_of(layer):
        model, shape = model_of(layer, form), shape_of(layer, form)
        convs = [node for node in model.graph.node if node.op_type == "Conv"]
        assert len(convs) == shape.nodes
        assert count_macs(model).total == executed_macs(layer, form)
        gathered = sum(
            len(numpy_helper.to_array(tensor))
            for node in model.graph.node
            if node.op_type == "Gather"
            for tensor in model.graph.initializer
            if tensor.name == node.input[1]
        )
        assert gathered == shape.gathered + shape.dropped, form


@settings(deadline=None, max_examples=60)
@given(layer=layers(), block=st.sampled_from([1, 4, 16]))
def test_candidates_begin_with_the_plans_form_end_with_dense_and_compute_less_than_dense(
    layer: GroupedLayer, block: int
) -> None:
    forms = candidate_forms(layer, block)
    assert forms[0] == GROUPED
    assert forms[-1] == DENSE
    assert len(set(forms)) == len(forms)
    assert all(shape_of(layer, form).kernels < shape_of(layer, DENSE).kernels for form in forms[1:-1])


@pytest.mark.parametrize("form", [GROUPED, SPLIT, DENSE, Form("merged", groups=4), Form("padded", block=16)])
def test_a_form_is_read_back_from_its_text(form: Form) -> None:
    assert Form.parse(str(form)) == form


@pytest.mark.parametrize("text", ["", "grouped:2", "merged", "merged:0", "padded:x", "fused", "merged:-1"])
def test_other_text_is_no_form(text: str) -> None:
    with pytest.raises(ValueError, match="is no form"):
        Form.parse(text)


@pytest.mark.parametrize("form", [Form("merged", groups=5), Form("padded"), Form("merged")])
def test_a_form_that_the_layer_cannot_have_is_refused(form: Form) -> None:
    layer = next(iter(grouped_layers(small.models()[1]).values()))
    with pytest.raises(ValueError, match="cannot be written as"):
        lower(layer, form)


@pytest.mark.parametrize(
    ("node", "layer"),
    [
        ("a.conv", "a.conv"),
        ("a.conv.input_gather", "a.conv"),
        ("a.conv.output_gather", "a.conv"),
        ("a.conv@group3", "a.conv"),
        ("a.conv@joined", "a.conv"),
        ("a.group3", "a.group3"),
    ],
)
def test_nodes_are_told_to_belong_to_their_layer(node: str, layer: str) -> None:
    assert layer_of_node(node) == layer


def test_grouped_layers_are_seen_through_their_gathers() -> None:
    model = check_model(small.models()[1])
    layer = grouped_layers(model)[small.MIDDLE]
    assert layer.reads == small.plan().grouped()[small.MIDDLE].inputs
    assert layer.source_shape == (small.CHANNELS, small.SIZE, small.SIZE)
    assert layer.nodes[-1] == small.MIDDLE
    assert len(layer.nodes) == 2


def test_depthwise_convolutions_are_left_alone() -> None:
    weight = numpy_helper.from_array(np.ones((4, 1, 3, 3), np.float32), "w")
    assert grouped_layers(_network([("Conv", ["x", "w"], "y", {"group": 4})], {"w": weight}, 4, 4)) == {}


@pytest.mark.parametrize("form", [SPLIT, DENSE, Form("merged", groups=2), Form("padded", block=32)])
def test_a_lowered_network_computes_the_same_and_keeps_its_names(form: Form) -> None:
    model = check_model(small.models()[1])
    form = Form("merged", groups=1) if form.kind == "merged" else form  # it has two groups
    before = model.SerializeToString(deterministic=True)
    lowered = lower_model(model, {small.MIDDLE: form})
    assert model.SerializeToString(deterministic=True) == before
    x = np.random.default_rng(0).standard_normal((2, 3, small.SIZE, small.SIZE)).astype(np.float32)
    name = model.graph.input[0].name
    wanted, found = (ReferenceEvaluator(m).run(None, {name: x})[0] for m in (model, lowered))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert {v.name for v in lowered.graph.output} == {v.name for v in model.graph.output}
    assert any(layer_of_node(node.name) == small.MIDDLE for node in lowered.graph.node)


def test_an_activation_behind_a_split_layer_goes_to_its_parts() -> None:
    lowered = lower_model(check_model(small.models()[1]), {small.MIDDLE: SPLIT})
    ops = [node.op_type for node in lowered.graph.node]
    assert ops.count("Relu") == 1 + small.GROUPS
    assert ops[ops.index("Concat") + 1] == "Conv"
    made = {value: node.op_type for node in lowered.graph.node for value in node.output}
    joined = next(node for node in lowered.graph.node if node.op_type == "Concat")
    assert [made[part] for part in joined.input] == ["Relu"] * small.GROUPS


def test_the_dense_form_leaves_no_gather() -> None:
    model = check_model(small.models()[1])
    assert count_gathers(model) == 1
    assert count_gathers(lower_model(model, {small.MIDDLE: DENSE})) == 0


def test_an_unknown_layer_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown grouped layer 'layer1.0.conv'.*did you mean layer1.0.conv1"):
        lower_model(check_model(small.models()[1]), {"layer1.0.conv": DENSE})


def test_gathers_go_into_the_dense_layers_around_them_and_into_each_other() -> None:
    rng = np.random.default_rng(0)
    constants = {
        "w1": rng.standard_normal((6, 3, 1, 1)),
        "b1": rng.standard_normal(6),
        "w2": rng.standard_normal((4, 6, 1, 1)),
        "first": np.array([5, 0, 3, 2, 1, 4]),
        "second": np.array([1, 1, 0, 2, 4, 3]),
    }
    nodes = [
        ("Conv", ["x", "w1", "b1"], "a", {}),
        ("Relu", ["a"], "b", {}),
        ("Gather", ["b", "first"], "c", {"axis": 1}),
        ("Relu", ["c"], "d", {}),
        ("Gather", ["d", "second"], "e", {"axis": 1}),
        ("Conv", ["e", "w2"], "y", {}),
    ]
    model = _network(nodes, {name: numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()}, 3, 4)
    x = rng.standard_normal((1, 3, SIZE, SIZE))
    wanted = ReferenceEvaluator(model).run(None, {"x": x})[0]
    assert absorb_gathers(model) == 2
    drop_unused(model)
    assert count_gathers(model) == 0
    np.testing.assert_allclose(ReferenceEvaluator(model).run(None, {"x": x})[0], wanted, rtol=0, atol=1e-12)
    assert {tensor.name for tensor in model.graph.initializer} == {
        value for node in model.graph.node for value in node.input[1:]
    }


def test_a_gather_whose_source_has_other_readers_stays() -> None:
    constants = {"w": np.ones((4, 3, 1, 1)), "i": np.array([2, 0, 1, 3])}
    nodes = [
        ("Conv", ["x", "w"], "a", {}),
        ("Gather", ["a", "i"], "b", {"axis": 1}),
        ("Add", ["a", "b"], "y", {}),
    ]
    model = _network(nodes, {name: numpy_helper.from_array(v, name) for name, v in constants.items()}, 3, 4)
    assert absorb_gathers(model) == 0
    assert count_gathers(model) == 1


def test_weights_that_two_nodes_share_are_not_changed_for_the_other() -> None:
    constants = {"w": np.random.default_rng(0).standard_normal((3, 3, 1, 1)), "i": np.array([2, 0, 1])}
    nodes = [
        ("Conv", ["x", "w"], "a", {}),
        ("Gather", ["a", "i"], "b", {"axis": 1}),
        ("Conv", ["b", "w"], "y", {}),
    ]
    model = _network(nodes, {name: numpy_helper.from_array(v, name) for name, v in constants.items()}, 3, 3)
    x = np.random.default_rng(1).standard_normal((1, 3, SIZE, SIZE))
    wanted = ReferenceEvaluator(model).run(None, {"x": x})[0]
    assert absorb_gathers(model) == 1
    np.testing.assert_allclose(ReferenceEvaluator(model).run(None, {"x": x})[0], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("first", [GROUPED, SPLIT, DENSE, Form("merged", groups=2), Form("padded", block=3)])
@pytest.mark.parametrize("second", [GROUPED, SPLIT, DENSE])
def test_a_gather_between_two_grouped_layers_belongs_to_one_of_them(first: Form, second: Form, readers: int) -> None:
    rng = np.random.default_rng(0)
    index = rng.permutation(8)
    nodes = [
        ("Conv", ["x", "w0"], "a", {"group": 4}),
        ("Gather", ["a", "index"], "b", {"axis": 1}),
        ("Conv", ["b", "w1"], "y1", {"group": 4}),
        ("Conv", ["b", "w2"], "y2", {"group": 4}),
        ("Add", ["y1", "y2"], "y", {}),
    ]
    if readers == 1:
        nodes = [*nodes[:2], ("Conv", ["b", "w1"], "y", {"group": 4})]
    constants = {f"w{n}": numpy_helper.from_array(rng.standard_normal((8, 2, 1, 1)), f"w{n}") for n in range(3)}
    model = _network(nodes, {**constants, "index": numpy_helper.from_array(index, "index")}, 8, 8)
    x = rng.standard_normal((1, 8, SIZE, SIZE))
    wanted = ReferenceEvaluator(model).run(None, {"x": x})[0]
    a, b, *rest = grouped_layers(model)
    lowered = lower_model(model, {a: first, b: second, **dict.fromkeys(rest, DENSE)})
    np.testing.assert_allclose(ReferenceEvaluator(lowered).run(None, {"x": x})[0], wanted, rtol=0, atol=1e-11)


@settings(deadline=None, max_examples=20)
@given(
    batch=st.integers(1, 3), inputs=st.integers(1, 9), outputs=st.integers(1, 9), bias=st.booleans(),
    transposed=st.booleans(),
)  # fmt: skip
def test_a_linear_layer_computes_the_same_as_a_convolution(
    batch: int, inputs: int, outputs: int, bias: bool, transposed: bool
) -> None:
    rng = np.random.default_rng(inputs)
    weight = rng.standard_normal((outputs, inputs) if transposed else (inputs, outputs))
    constants = {"w": weight, **({"b": rng.standard_normal(outputs)} if bias else {})}
    model = _network(
        [("Gemm", ["x", *constants], "y", {"transB": int(transposed)})],
        {name: numpy_helper.from_array(v, name) for name, v in constants.items()}, inputs, outputs,
    )  # fmt: skip
    model.graph.node[0].name = "fc"
    x = rng.standard_normal((batch, inputs))
    wanted, macs = ReferenceEvaluator(model).run(None, {"x": x})[0], inputs * outputs
    assert linear_layers(model) == ("fc",)
    as_convolutions(model, ["fc"])
    assert linear_layers(model) == ()
    assert [node.op_type for node in model.graph.node] == ["Unsqueeze", "Conv", "Flatten"]
    assert {layer_of_node(node.name) for node in model.graph.node} == {"fc"}
    np.testing.assert_allclose(ReferenceEvaluator(model).run(None, {"x": x})[0], wanted, rtol=0, atol=1e-12)
    assert numpy_helper.to_array(model.graph.initializer[-1]).size == macs


@pytest.mark.parametrize(
    ("inputs", "given_"), [(["x", "w"], {"alpha": 2.0}), (["x", "w"], {"transA": 1}), (["w", "x"], {})]
)
def test_a_matrix_product_that_is_no_linear_layer_is_left_alone(inputs: list[str], given_: dict[str, Any]) -> None:
    model = _network([("Gemm", inputs, "y", given_)], {"w": numpy_helper.from_array(np.ones((3, 3)), "w")}, 3, 3)
    assert linear_layers(model) == ()
    with pytest.raises(InputError, match="unknown linear layer"):
        as_convolutions(model, ["fc"])


def _layer(groups: int, inner: int, outer: int, channels: int, size: int, reads: Any = None) -> GroupedLayer:
    rng = np.random.default_rng(0)
    reads = reads or tuple(tuple(rng.permutation(channels)[:inner].tolist()) for _ in range(groups))
    filters = groups * outer
    weight: NDArray[np.float32] = np.ones((filters, inner, 3, 3), np.float32)
    return GroupedLayer(
        "layer", "x", (channels, size, size), "y", (filters, size, size), reads, weight, None,
        Selection.identity(filters), (), ("layer",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (_layer(8, 36, 8, 64, 56), "dense"),  # the paper's numbers on a narrow layer: 0.37x when exported plainly
        (_layer(8, 288, 64, 512, 7), "grouped"),  # on the block, wide
        (_layer(4, 64, 64, 256, 14), "grouped"),
    ],
)
def test_the_cost_table_takes_the_form_that_was_measured_to_be_fastest(layer: GroupedLayer, kind: str) -> None:
    assert AVX512.convolution is not None
    assert cheapest(predicted_costs(layer, AVX512.convolution, 16)).kind == kind


def test_without_a_cost_table_every_layer_stays_as_planned_and_a_note_says_so() -> None:
    found = predict({"layer": _layer(8, 36, 8, 64, 56)}, replace_profile(convolution=None))
    assert [layer.form for layer in found.layers] == ["grouped"]
    assert "no table" in found.notes[0]


def test_the_record_tells_planned_from_executed_macs() -> None:
    layer = _layer(8, 36, 8, 64, 56)
    choice = predict({"layer": layer}, AVX512).layers[0]
    assert choice.macs == 64 * 36 * 9 * 56 * 56
    assert choice.executed_macs == 64 * 64 * 9 * 56 * 56
    assert choice.kind == "dense"


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b'{"chosen_by": "guessed"}', b"\xff", b"[1]"],
)
def test_what_is_no_lowering_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lowering.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no lowering"):
        load_lowering(path)


def replace_profile(**changes: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(AVX512, **changes)


def _network(
    nodes: list[tuple[str, list[str], str, dict[str, Any]]],
    constants: dict[str, TensorProto],
    channels: int,
    filters: int,
) -> ModelProto:
    kind = next(iter(constants.values())).data_type
    ends = [
        helper.make_tensor_value_info("x", kind, [1, channels, SIZE, SIZE]),
        helper.make_tensor_value_info("y", kind, None),
    ]
    made = [helper.make_node(op, ins, [out], name=f"n_{out}", **given) for op, ins, out, given in nodes]
    graph = helper.make_graph(made, "g", ends[:1], ends[1:], list(constants.values()))
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
