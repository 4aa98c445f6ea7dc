"""Quantised and FP16 networks are divided as what they are: integers stay integers, in every device's part."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeprune.errors import InputError
from edgeprune.onnx_files.model import check_model, load_model
from edgeprune.partitioning.devices import load_devices
from edgeprune.partitioning.executor import LocalExecutor
from edgeprune.partitioning.partition import partition_model, write_partition
from edgeprune.runners.onnxruntime.runner import OrtRunner

CHANNELS, GROUPS, SIZE = 16, 4, 6
RNG = np.random.default_rng(0)


def integers(*shape):
    return RNG.integers(-100, 100, shape).astype(np.int8)


def rounded(value, name, scale="s", zero="z", **attributes):
    """A QuantizeLinear and a DequantizeLinear behind a value; the name of the result, and the nodes."""
    ends = [f"{name}_q", f"{name}_dq"]
    nodes = [
        helper.make_node("QuantizeLinear", [value, scale, zero], [ends[0]], **attributes),
        helper.make_node("DequantizeLinear", [ends[0], scale, zero], [ends[1]], **attributes),
    ]
    return ends[1], nodes


def network(nodes, held, kind=TensorProto.FLOAT, opset=21):
    scale = np.float32(0.05)
    held = {"s": scale, "z": np.uint8(128), **held}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, ["batch", CHANNELS, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", kind, ["batch", CHANNELS, SIZE, SIZE])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()],
    )
    return check_model(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)]))


def layer(data, weight, output, bias="", **more):
    inputs = [data, weight, *([bias] if bias else [])]
    return helper.make_node("Conv", inputs, [output], group=GROUPS, pads=[1] * 4, **more)


def qdq(scale, bias=False, **how):
    """Two grouped convolutions between integers, their weights with these scales."""
    first, ahead = rounded("x", "x")
    between, middle = rounded("a", "a")
    last, behind = rounded("b", "b")
    of_weight = helper.make_node("DequantizeLinear", ["w", "ws"], ["wf"], **{"axis": 0, **how})
    of_bias = [helper.make_node("DequantizeLinear", ["c", "cs"], ["cf"], axis=0)] if bias else []
    nodes = [
        *ahead, of_weight, *of_bias, layer(first, "wf", "a", "cf" if bias else ""), *middle,
        helper.make_node("Relu", [between], ["r"]), layer("r", "wf", "b"), *behind,
        helper.make_node("Identity", [last], ["y"]),
    ]  # fmt: skip
    held = {"w": integers(CHANNELS, CHANNELS // GROUPS, 3, 3), "ws": scale}
    held |= {"c": RNG.integers(-900, 900, CHANNELS).astype(np.int32), "cs": np.full(CHANNELS, 1e-3, np.float32)}
    return network(nodes, held)


def weights_alone(scale, **how):
    """A grouped convolution in floats with a weight in integers."""
    of_weight = helper.make_node("DequantizeLinear", ["w", "ws"], ["wf"], **how)
    held = {"w": integers(CHANNELS, CHANNELS // GROUPS, 3, 3), "ws": scale}
    return network([of_weight, layer("x", "wf", "b"), helper.make_node("Relu", ["b"], ["y"])], held)


def operator_format():
    """QLinearConv with a scale for each filter."""
    head = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
    conv = helper.make_node(
        "QLinearConv", ["q", "s", "z", "w", "ws", "wz", "s", "z", "c"], ["o"], group=GROUPS, pads=[1] * 4, name="conv"
    )
    tail = helper.make_node("DequantizeLinear", ["o", "s", "z"], ["y"])
    held = {
        "w": integers(CHANNELS, CHANNELS // GROUPS, 3, 3),
        "ws": RNG.random(CHANNELS).astype(np.float32) / 500 + 1e-4,
        "wz": np.zeros(CHANNELS, np.int8),
        "c": RNG.integers(-900, 900, CHANNELS).astype(np.int32),
    }
    return network([head, conv, tail], held)


SCALES = RNG.random(CHANNELS).astype(np.float32) / 500 + 1e-4
NETWORKS = {
    "one scale": qdq(np.float32(0.002)),
    "a scale for each filter": qdq(SCALES),
    "a bias in 32 bits": qdq(SCALES, bias=True),
    "blocks along the inputs": weights_alone(
        RNG.random((CHANNELS, 2, 3, 3)).astype(np.float32) / 500, axis=1, block_size=2
    ),
    "blocks along the filters": weights_alone(
        RNG.random((CHANNELS // 2, 4, 3, 3)).astype(np.float32) / 500, axis=0, block_size=2
    ),
    "QLinearConv": operator_format(),
}  # fmt: skip


def parts(model, folder, devices=3):
    partition = partition_model(model, load_devices(devices))
    write_partition(partition, folder)
    return partition


def difference(model, folder, inputs):
    with LocalExecutor(folder) as executor, OrtRunner(model) as whole:
        got, wanted = executor.run({"x": inputs})["y"], whole.run({"x": inputs})["y"]
    return np.abs(got.astype(np.float64) - wanted).max()


@pytest.mark.parametrize("name", NETWORKS)
def test_integers_are_divided_and_stay_integers(name, tmp_path):
    model = NETWORKS[name]
    partition = parts(model, tmp_path)
    count = sum(node.op_type in ("Conv", "QLinearConv") for node in model.graph.node)
    assert sum(len(stage.layers) for stage in partition.manifest.stages) == count
    inputs = RNG.standard_normal((2, CHANNELS, SIZE, SIZE)).astype(np.float32)
    assert (
        difference(model, tmp_path, inputs) <= 0.05 + 1e-6
    )  # one step of the output's scale: fused kernels round once
    for device in partition.manifest.devices[1:]:
        for file in device.subgraphs:
            part = load_model(tmp_path / file)
            kinds = {tensor.name: tensor.data_type for tensor in part.graph.initializer if len(tensor.dims) == 4}
            if name != "blocks along the filters":  # of which several devices would have a part
                assert TensorProto.INT8 in kinds.values()


def test_between_devices_integers_are_moved(tmp_path):
    partition = parts(NETWORKS["a scale for each filter"], tmp_path, devices=2)
    values = CHANNELS * SIZE * SIZE
    sent, *_, returned = partition.manifest.transfers
    assert sent.bytes == values // 2  # a byte each, where floats have four
    assert returned.bytes == values // 2


def test_half_precision_is_divided_in_half_precision(tmp_path):
    weight = (RNG.standard_normal((CHANNELS, CHANNELS // GROUPS, 3, 3)) / 8).astype(np.float16)
    model = network([layer("x", "w", "y")], {"w": weight}, kind=TensorProto.FLOAT16)
    partition = parts(model, tmp_path)
    inputs = RNG.standard_normal((2, CHANNELS, SIZE, SIZE)).astype(np.float16)
    assert difference(model, tmp_path, inputs) < 1e-2
    assert {info.dtype for info in partition.manifest.inputs} == {"float16"}


@pytest.mark.parametrize("op", ["Transpose", "Cast", "Identity"])
def test_weights_behind_operations_are_divided(op, tmp_path):
    weight = RNG.standard_normal((CHANNELS, CHANNELS // GROUPS, 3, 3)).astype(np.float32)
    stored, how = weight, {}
    if op == "Transpose":
        stored, how = weight.transpose(2, 3, 1, 0), {"perm": [3, 2, 0, 1]}
    if op == "Cast":
        stored, how = weight.astype(np.float16), {"to": TensorProto.FLOAT}
    model = network([helper.make_node(op, ["v"], ["w"], **how), layer("x", "w", "y")], {"v": stored})
    partition = parts(model, tmp_path)
    inputs = RNG.standard_normal((3, CHANNELS, SIZE, SIZE)).astype(np.float32)
    assert difference(model, tmp_path, inputs) < 1e-4
    assert sum(entry.macs for entry in partition.manifest.devices) == weight.size * SIZE * SIZE


def test_a_convolution_inside_an_if_stays_there_and_is_told(tmp_path):
    branch = helper.make_graph([layer("x", "w", "t")], "then", [], [helper.make_tensor_value_info("t", 1, None)])
    other = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)]
    )
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "s"], ["c"]),
        helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch, else_branch=other),
    ]
    weight = RNG.standard_normal((CHANNELS, CHANNELS // GROUPS, 3, 3)).astype(np.float32)
    with pytest.raises(InputError, match=r"outside of If, Loop and Scan: 'if/then_branch/.*' lies in one"):
        partition_model(network(nodes, {"w": weight}), load_devices(2))
    (choice,) = nodes[-1:]
    choice.output[0] = "chosen"
    model = network([*nodes, layer("chosen", "w", "y")], {"w": weight})
    partition = parts(model, tmp_path, devices=2)
    assert [name for stage in partition.manifest.stages for name in stage.layers] == ["Conv_y"]
    inputs = RNG.standard_normal((2, CHANNELS, SIZE, SIZE)).astype(np.float32)
    for value in (inputs, np.abs(inputs)):
        assert difference(model, tmp_path, value) < 1e-4
    host = partition.manifest.devices[0]
    assert host.macs == weight.size * SIZE * SIZE * 3 // 2


def test_a_weight_that_does_not_fit_its_input_is_told():
    model = operator_format()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    weight.CopyFrom(numpy_helper.from_array(integers(CHANNELS, 3, 3, 3), "w"))
    with pytest.raises(InputError, match="the weight of 'conv' does not fit its groups and its input"):
        partition_model(model, load_devices(2))
