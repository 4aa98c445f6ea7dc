"""If, Loop and Scan: what is inside them is counted, and named apart from what is outside."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.onnx_files.macs import count_macs
from edgeprune.onnx_files.model import check_model
from edgeprune.onnx_files.shapes import concrete_shapes

PIXELS = 64
SMALL, LARGE = 16 * 16 * PIXELS, 16 * 16 * 9 * PIXELS


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def conv(data, weight, output, name="conv", **attributes):
    return helper.make_node("Conv", [data, weight], [output], name=name, **attributes)


def network(*nodes, **more):
    rng = np.random.default_rng(0)
    weights = {"small": rng.random((16, 16, 1, 1)), "large": rng.random((16, 16, 3, 3))}
    held = {name: array.astype(np.float32) for name, array in weights.items()} | more
    graph = helper.make_graph(
        list(nodes),
        "g",
        [value("x", ["batch", 16, 8, 8])],
        [value("y", ["batch", 16, 8, 8])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()],
    )
    return check_model(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))


def branches():
    """An If with a convolution of the outer one's name in each branch."""
    then = helper.make_graph([conv("x", "large", "t", pads=[1] * 4)], "then", [], [value("t", None)])
    other = helper.make_graph([conv("x", "small", "e")], "else", [], [value("e", None)])
    mean = helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0)
    positive = helper.make_node("Greater", ["m", "zero"], ["p"])
    either = helper.make_node("If", ["p"], ["z"], name="if", then_branch=then, else_branch=other)
    return network(mean, positive, either, conv("z", "small", "y"), zero=np.float32(0))


def loop(trips, *, carried="x"):
    body = helper.make_graph(
        [conv("v", "small", "o"), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("v", None)],
        [value("on", [], TensorProto.BOOL), value("o", None)],
    )
    node = helper.make_node("Loop", ["trips", "", carried], ["z"], name="loop", body=body)
    counted = {} if trips is None else {"trips": np.int64(trips)}
    first = [] if trips is not None else [
        helper.make_node("Shape", ["x"], ["s"]), helper.make_node("ReduceMax", ["s"], ["trips"], keepdims=0)
    ]  # fmt: skip
    return network(*first, node, conv("z", "small", "y"), **counted)


def test_of_an_if_the_branch_that_multiplies_most_is_counted():
    count = count_macs(branches())
    assert count.total == LARGE + SMALL
    assert count.params == 16 * 16 * 9 + 16 * 16
    assert not count.unsupported
    assert [(node.name, node.macs, node.is_counted) for node in count.per_node] == [
        ("if/else_branch/conv", SMALL, False),
        ("if/then_branch/conv", LARGE, True),
        ("conv", SMALL, True),
    ]
    assert {node.outermost for node in count.per_node} == {"z", "y"}


def test_nodes_inside_are_named_after_the_node_that_they_lie_in_once():
    model = branches()
    again = check_model(model)
    names = [node.name for graph in (again.graph, again.graph.node[2].attribute[0].g) for node in graph.node]
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.count("if/") > 1]


def test_a_loop_of_a_known_number_of_turns_is_counted_with_all_of_them():
    count = count_macs(loop(3), batch=2)
    assert count.total == 2 * (3 * SMALL + SMALL)
    assert not count.unsupported
    assert concrete_shapes(loop(3), 2)["z"] == (2, 16, 8, 8)


def test_a_loop_of_an_unknown_number_of_turns_is_counted_once_and_said_so():
    count = count_macs(loop(None))
    assert (count.total, count.unsupported) == (2 * SMALL, {"Loop": 1})


def test_a_scan_is_counted_with_all_of_its_steps():
    body = helper.make_graph(
        [helper.make_node("Unsqueeze", ["r", "axis"], ["u"]), conv("u", "small", "c"), helper.make_node("Squeeze", ["c", "axis"], ["o"])],
        "body", [value("r", [16, 8, 8])], [value("o", [16, 8, 8])],
    )  # fmt: skip
    scan = helper.make_node("Scan", ["x"], ["z"], name="scan", body=body, num_scan_inputs=1)
    model = network(scan, conv("z", "small", "y"), axis=np.array([0]))
    assert count_macs(model, batch=5).total == 5 * SMALL + 5 * SMALL


@pytest.mark.parametrize("make", [branches, lambda: loop(2)])
def test_an_inner_graph_may_read_what_is_computed_from_constants_outside(make):
    model = make()
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == "small")
    stored.name = "stored"
    model.graph.node.insert(0, helper.make_node("Identity", ["stored"], ["small"], name="same"))
    assert count_macs(model).total == count_macs(make()).total
    assert count_macs(model).params == count_macs(make()).params
