"""Random networks of operations that move, join and reduce axes: whatever order a tensor's axes lie in, values stay."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, helper
from runtimes.lite_models import assert_same, model, random

from edgeprune.exporters.conversions import ConvertOptions
from edgeprune.exporters.tflite.ops.axes import matching_runs

SIZES = st.sampled_from([1, 2, 3, 4, 6])


class Growing:
    """A network that grows by one operation at a time."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, Any] = {}
        self.shapes = {"x": shape}
        self.last = "x"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[self.last]

    def constant(self, values: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = values
        return name

    def add(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> None:
        result = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [result], f"{op}{len(self.nodes)}", **attributes))
        self.shapes[result] = shape
        self.last = result


def transpose(net: Growing, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(net.shape))))
    net.add("Transpose", [net.last], tuple(net.shape[axis] for axis in order), perm=list(order))


def reshape(net: Growing, data: st.DataObject) -> None:
    factors = [factor for size in net.shape for factor in ([2, size // 2] if size % 2 == 0 else [size])]
    count = data.draw(st.integers(1, min(len(factors), 5)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(factors)), min_size=count - 1, max_size=count - 1)))
    places = [0, *cuts, len(factors)]
    shape = tuple(prod(factors[start:end]) for start, end in pairwise(places))
    net.add("Reshape", [net.last, net.constant(np.asarray(shape, np.int64))], shape)


def add_constant(net: Growing, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, len(net.shape)))
    shape = tuple(size if data.draw(st.booleans()) else 1 for size in net.shape[len(net.shape) - kept :])
    net.add(data.draw(st.sampled_from(["Add", "Mul"])), [net.last, net.constant(random(*shape))], net.shape)


def add_earlier(net: Growing, data: st.DataObject) -> None:
    def fits(shape: tuple[int, ...]) -> bool:
        behind = net.shape[len(net.shape) - len(shape) :]
        return len(shape) <= len(net.shape) and all(a in (1, b) for a, b in zip(shape, behind, strict=True))

    other = data.draw(st.sampled_from([name for name, shape in net.shapes.items() if fits(shape)]))
    inputs = data.draw(st.permutations([net.last, other]))
    net.add("Add", list(inputs), net.shape)


def concat(net: Growing, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(net.shape) - 1))
    outer = net.shape[:axis] + net.shape[axis + 1 :]
    same = [
        name
        for name, shape in net.shapes.items()
        if len(shape) == len(net.shape) and shape[:axis] + shape[axis + 1 :] == outer
    ]
    other = data.draw(st.sampled_from(same))
    shape = (*net.shape[:axis], net.shape[axis] + net.shapes[other][axis], *net.shape[axis + 1 :])
    net.add("Concat", [net.last, other], shape, axis=axis)


def softmax(net: Growing, data: st.DataObject) -> None:
    net.add("Softmax", [net.last], net.shape, axis=data.draw(st.integers(0, len(net.shape) - 1)))


def mean(net: Growing, data: st.DataObject) -> None:
    if len(net.shape) < 2:
        return
    axis, keep = data.draw(st.integers(0, len(net.shape) - 1)), data.draw(st.booleans())
    shape = (*net.shape[:axis], *([1] if keep else []), *net.shape[axis + 1 :])
    net.add("ReduceMean", [net.last, net.constant(np.asarray([axis]))], shape, keepdims=int(keep))


def gather(net: Growing, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(net.shape) - 1))
    indices = data.draw(st.lists(st.integers(0, net.shape[axis] - 1), min_size=1, max_size=4))
    shape = (*net.shape[:axis], len(indices), *net.shape[axis + 1 :])
    net.add("Gather", [net.last, net.constant(np.asarray(indices))], shape, axis=axis)


def convolution(net: Growing, data: st.DataObject) -> None:
    if len(net.shape) == 4:
        groups = data.draw(st.sampled_from([g for g in (1, 2, 3) if net.shape[1] % g == 0]))
        weight = net.constant(random(6, net.shape[1] // groups, 1, 1))
        net.add("Conv", [net.last, weight], (net.shape[0], 6, *net.shape[2:]), group=groups)


def matrix(net: Growing, data: st.DataObject) -> None:
    if len(net.shape) >= 2:
        net.add("MatMul", [net.last, net.constant(random(net.shape[-1], 3))], (*net.shape[:-1], 3))


def activation(net: Growing, data: st.DataObject) -> None:
    net.add(data.draw(st.sampled_from(["Relu", "Tanh"])), [net.last], net.shape)


STEPS = (transpose, reshape, add_constant, add_earlier, concat, softmax, mean, gather, convolution, matrix, activation)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_random_networks_give_what_onnx_runtime_gives(data: st.DataObject) -> None:
    net = Growing(tuple(data.draw(st.tuples(st.sampled_from([1, 2]), SIZES, SIZES, SIZES))))
    for step in data.draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=8)):
        if prod(net.shape) < 2000:
            step(net, data)
    if not net.nodes:
        return
    outputs = dict.fromkeys([net.last, data.draw(st.sampled_from(list(net.shapes)))])
    outputs.pop("x", None)
    built = model(net.nodes, {"x": net.shapes["x"]}, net.constants, outputs=tuple(outputs))
    assert_same(built, ConvertOptions(data.draw(st.sampled_from(["nhwc", "nchw"]))))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.data())
def test_runs_of_axes_match_and_are_the_shortest(before: list[int], data: st.DataObject) -> None:
    factors = [factor for size in before for factor in ([2, size // 2] if size % 2 == 0 else [size])]
    cut = data.draw(st.integers(0, len(factors)))
    after = (prod(factors[:cut]), prod(factors[cut:]))
    runs = matching_runs(tuple(before), after)
    assert [axis for run in runs for axis in run[0]] == [axis for axis, size in enumerate(before) if size != 1]
    assert [axis for run in runs for axis in run[1]] == [axis for axis, size in enumerate(after) if size != 1]
    for old, new in runs:
        assert prod(before[axis] for axis in old) == prod(after[axis] for axis in new)
