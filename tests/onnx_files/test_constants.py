"""What is computed from constants alone is constant, whatever computes it; nothing else is."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from edgeprune.errors import InputError
from edgeprune.onnx_files import constants as module
from edgeprune.onnx_files.constants import constants
from edgeprune.onnx_files.graph import array
from edgeprune.onnx_files.macs import count_macs
from edgeprune.onnx_files.shapes import concrete_shapes

WEIGHT = np.random.default_rng(0).standard_normal((8, 2, 3, 3)).astype(np.float32)
FILTERS = (np.abs(WEIGHT).max((1, 2, 3)) / 127).astype(np.float32)
INTEGERS = np.round(WEIGHT / FILTERS[:, None, None, None]).astype(np.int8)


def network(body, **held):
    """Two convolutions in groups; `body` computes the second one's weight `w`."""
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[batch,8,6,6] x) => (float[batch,c,h,k] y) '
        f"{{ a = Conv<group=4, pads=[1,1,1,1]>(x, v) {body} y = Conv<group=4, pads=[1,1,1,1]>(a, w) }}"
    )
    for name, value in {"v": WEIGHT, **held}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


WAYS = {
    "Identity": (network("w = Identity(v)"), WEIGHT),
    "Transpose": (network("w = Transpose<perm=[3,2,0,1]>(t)", t=WEIGHT.transpose(2, 3, 1, 0)), WEIGHT),
    "Reshape": (network("w = Reshape(f, s)", f=WEIGHT.reshape(8, 18), s=[8, 2, 3, 3]), WEIGHT),
    "Reshape by a computed shape": (network("s = Concat<axis=0>(p, q) w = Reshape(f, s)", f=WEIGHT, p=[8, 2], q=[3, 3]), WEIGHT),
    "Cast from FP16": (network("w = Cast<to=1>(f)", f=WEIGHT.astype(np.float16)), WEIGHT.astype(np.float16)),
    "a chain": (network("i = Identity(v) u = Unsqueeze(i, z) s = Squeeze(u, z) w = Mul(s, o)", z=[0], o=np.float32(1)), WEIGHT),
    "DequantizeLinear": (network("w = DequantizeLinear<axis=0>(q, s)", q=INTEGERS, s=FILTERS), INTEGERS * FILTERS[:, None, None, None]),
    "ConstantOfShape": (network("w = ConstantOfShape(s)", s=[8, 2, 3, 3]), np.zeros((8, 2, 3, 3))),
    "a Constant node": (network("s = Constant<value_ints=[8, 2, 3, 3]>() w = ConstantOfShape(s)"), np.zeros((8, 2, 3, 3))),
    "Expand": (network("w = Expand(o, s)", o=np.ones((8, 1, 1, 1), np.float32), s=[8, 2, 3, 3]), np.ones((8, 2, 3, 3))),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_weight_that_is_computed_from_constants_counts_like_one_that_is_stored(way):
    model, value = WAYS[way]
    np.testing.assert_allclose(array(constants(model)["w"]), value, atol=1e-6)
    count = count_macs(model, batch=2)
    assert count.total == 2 * 2 * 8 * 36 * 18
    assert [(node.macs, node.weight_shape) for node in count.per_node] == [(2 * 8 * 36 * 18, (8, 2, 3, 3))] * 2
    assert concrete_shapes(model, 2)["y"] == (2, 8, 6, 6)


@pytest.mark.parametrize(
    ("way", "params"),
    [("Identity", 144), ("Transpose", 288), ("DequantizeLinear", 288), ("ConstantOfShape", 288), ("a chain", 288)],
)
def test_parameters_are_counted_once_where_only_their_order_changes(way, params):
    assert count_macs(WAYS[way][0]).params == params


@pytest.mark.parametrize(
    "body",
    [
        "w = RandomNormalLike(v)",
        "w = Mul(v, m)",  # m depends on the input
        "w = own.Identity(v)",
        "w = If(c) <then_branch = t () => (float[8,2,3,3] u) { u = Identity(v) }, "
        "else_branch = e () => (float[8,2,3,3] u2) { u2 = Neg(v) }>",
    ],
)
def test_what_differs_from_run_to_run_or_is_not_onnxs_own_is_no_constant(body):
    model = network(f"m = ReduceMean<keepdims=0>(x) {body}", c=np.bool_(True))
    assert "w" not in constants(model)
    assert "v" in constants(model)


def test_asking_whether_a_value_is_constant_computes_nothing(monkeypatch):
    monkeypatch.setattr(module, "_run", lambda *_: pytest.fail("computed"))
    held = constants(WAYS["a chain"][0])
    assert {"v", "i", "u", "s", "w"} <= set(held)
    assert held.get("nowhere") is None


def test_what_would_not_fit_in_memory_is_refused_before_it_is_computed():
    model = network("w = ConstantOfShape(s)", s=[8, 2, 30000, 30000])
    with pytest.raises(InputError, match=r"'w' takes 57.6 GB to compute; expected less than 2.1 GB"):
        constants(model)["w"]
    assert count_macs(network("t = Expand(v, s) w = Identity(v)", s=[30000, 8, 2, 3, 3])).params == 144


def test_what_the_runtime_refuses_to_compute_is_told_with_its_sentence():
    model = network("w = Reshape(v, s)", s=[7, 2, 3, 3])
    with pytest.raises(InputError, match=r"the constant 'w' cannot be computed: .*Reshape"):
        constants(model)["w"]


def test_sparse_tensors_are_written_out():
    model = network("w = Identity(v)")
    values, places = np.array([2.0, 3.0], np.float32), np.array([1, 5], np.int64)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(values, "p"), numpy_helper.from_array(places, "places"), [2, 4]
    )
    model.graph.sparse_initializer.append(sparse)
    np.testing.assert_array_equal(array(constants(model)["p"]), [[0, 2, 0, 0], [0, 3, 0, 0]])
    sparse.dims[0] = 1
    model.graph.sparse_initializer[0].CopyFrom(sparse)
    with pytest.raises(InputError, match="'p' has values outside its shape"):
        constants(model)


def test_a_bias_that_is_computed_is_a_parameter():
    model = network("w = Identity(v) b = Cast<to=1>(h)", h=np.ones(8, np.float16))
    model.graph.node[-1].input.append("b")
    assert count_macs(model).params == 144 + 8
    assert constants(model)["b"].data_type == TensorProto.FLOAT


@pytest.mark.parametrize(("kind", "shape"), [("Conv", (8, 2, 3, 3)), ("Gemm", (8, 5)), ("MatMul", (8, 5))])
def test_a_weight_that_depends_on_the_input_beside_a_constant_bias_is_no_layer(kind, shape):
    call = "Conv<group=4>(x, w, b)" if kind == "Conv" else "Gemm(f, w, b)" if kind == "Gemm" else "MatMul(f, w)"
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[batch,8,6,6] x) => (float[m] y) '
        f"{{ p = GlobalAveragePool(x) f = Flatten(p) m = ReduceMean<keepdims=0>(x) w = Mul(v, m) y = {call} }}"
    )
    for name, size in (("v", shape), ("b", (shape[0] if kind == "Conv" else shape[1],))):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(size, np.float32), name))
    layer = next(node for node in count_macs(model).per_node if node.op_type == kind)
    assert layer.macs > 0
    assert (layer.weight_name, layer.weight_shape) == ("", ())
