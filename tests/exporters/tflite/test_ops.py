"""Every operation that can be written for LiteRT, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from onnx import NodeProto, helper
from runtimes.lite_models import assert_same, model, random

from edgeprune.exporters.conversions import ConvertOptions
from edgeprune.exporters.tflite.ops.table import OPS

IMAGE = (1, 6, 5, 7)
Constants = Mapping[str, Any]


class Case(NamedTuple):
    """One node on inputs of these shapes; `constants` are its further inputs, in order."""

    op: str
    inputs: Sequence[tuple[int, ...]] = (IMAGE,)
    constants: Sequence[Any] = ()
    attributes: Mapping[str, Any] = {}
    outputs: int = 1
    opset: int = 20

    def __str__(self) -> str:
        shown = "-".join(f"{name}={value}" for name, value in self.attributes.items())
        return f"{self.op}-{len(self.inputs)}-{shown}"


def ints(*values: int) -> Any:
    return np.asarray(values, np.int64)


def floats(*values: float) -> Any:
    return np.asarray(values, np.float32)


SCALAR = np.asarray
WINDOW = {"kernel_shape": [3, 3], "strides": [2, 2]}
CASES = (
    *(Case(op) for op in ("Abs", "Ceil", "Exp", "Floor", "HardSwish", "Identity", "Neg", "Relu", "Sigmoid", "Softplus", "Tanh")),
    *(Case(op, (IMAGE, IMAGE)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum")),
    *(Case(op, (IMAGE, (1, 6, 1, 1))) for op in ("Add", "Sub", "Mul", "Max")),
    *(Case(op, (IMAGE, (7,))) for op in ("Add", "Mul")),
    *(Case(op, (IMAGE,), (random(6, 1, 1),)) for op in ("Add", "Sub", "Mul", "Div")),
    Case("Add", ((1, 6), (1, 6))),
    Case("Add", ((2, 3, 4), (3, 1))),
    Case("Sum", (IMAGE, IMAGE, IMAGE)),
    Case("Sum", (IMAGE,)),
    Case("Pow", (IMAGE,), (SCALAR(2.0, np.float32),)),
    Case("AveragePool", attributes=WINDOW),
    Case("AveragePool", attributes=WINDOW | {"pads": [1, 1, 1, 1]}),
    Case("AveragePool", attributes=WINDOW | {"pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", attributes=WINDOW | {"pads": [1, 1, 1, 1], "count_include_pad": 1, "ceil_mode": 1}),
    Case("AveragePool", ((1, 6, 8, 8),), attributes=WINDOW | {"ceil_mode": 1}),
    Case("AveragePool", attributes={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case("BatchNormalization", constants=[random(6), random(6), random(6), np.abs(random(6)) + 0.5]),
    Case("BatchNormalization", ((2, 6),), [random(6), random(6), random(6), np.abs(random(6)) + 0.5]),
    Case("Cast", attributes={"to": 1}),
    Case("Clip", constants=[SCALAR(0.0, np.float32), SCALAR(6.0, np.float32)]),
    Case("Clip", constants=[SCALAR(-1.0, np.float32), SCALAR(1.0, np.float32)]),
    Case("Clip", constants=[SCALAR(-0.5, np.float32), SCALAR(0.25, np.float32)]),
    Case("Clip", constants=[SCALAR(-0.5, np.float32)]),
    Case("Clip", attributes={"min": -0.5, "max": 0.7}, opset=10),
    Case("Concat", (IMAGE, (1, 2, 5, 7)), attributes={"axis": 1}),
    Case("Concat", (IMAGE, (1, 6, 5, 2)), attributes={"axis": -1}),
    Case("Concat", (IMAGE,) * 12, attributes={"axis": 1}),
    Case("DepthToSpace", ((1, 12, 3, 4),), attributes={"blocksize": 2}),
    Case("DepthToSpace", ((2, 12, 3, 4),), attributes={"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", ((1, 3, 4, 6),), attributes={"blocksize": 2}),
    Case("Dropout"),
    Case("Elu"),
    Case("Flatten"),
    Case("Flatten", ((2, 3, 4, 5),), attributes={"axis": 2}),
    Case("Gather", constants=[ints(5, 0, 3, 3, -1)], attributes={"axis": 1}),
    Case("Gather", constants=[ints(2, 3, 4)], attributes={"axis": 1}),
    Case("Gather", constants=[SCALAR(2, np.int64)], attributes={"axis": 1}),
    Case("Gather", constants=[ints(6, 2, 4)], attributes={"axis": 3}),
    Case("Gather", ((2, 6),), [ints(5, 0, 3)], {"axis": 1}),
    Case("Gelu"),
    Case("Gelu", attributes={"approximate": "tanh"}),
    Case("Gemm", ((2, 6),), [random(6, 4), random(4)], {"alpha": 0.5, "beta": 2.0}),
    Case("Gemm", ((2, 6),), [random(4, 6)], {"transB": 1}),
    Case("Gemm", ((2, 6),), [random(4, 6), random(1, 1)], {"transB": 1}),
    Case("GlobalAveragePool"),
    Case("GlobalMaxPool"),
    Case("HardSigmoid"),
    Case("HardSigmoid", attributes={"alpha": 1 / 6, "beta": 0.5}),
    Case("InstanceNormalization", constants=[random(6), random(6)]),
    Case("LayerNormalization", ((2, 3, 8),), [random(8), random(8)]),
    Case("LayerNormalization", ((2, 3, 8),), [random(3, 8)], {"axis": 1}),
    Case("LeakyRelu", attributes={"alpha": 0.1}),
    Case("LogSoftmax", ((2, 6),)),
    Case("MatMul", ((2, 3, 6),), [random(6, 4)]),
    Case("MatMul", ((2, 3, 6), (2, 6, 4))),
    Case("MatMul", ((1, 4, 5, 6),), [random(6, 4)]),
    Case("MaxPool", attributes=WINDOW),
    Case("MaxPool", attributes=WINDOW | {"pads": [1, 1, 1, 1]}),
    Case("MaxPool", ((1, 6, 8, 8),), attributes=WINDOW | {"pads": [1, 1, 1, 1]}),
    Case("MaxPool", ((1, 6, 8, 8),), attributes=WINDOW | {"ceil_mode": 1}),
    Case("MaxPool", attributes=WINDOW | {"auto_pad": "SAME_UPPER"}),
    Case("MaxPool", ((1, 6, 8, 8),), attributes=WINDOW | {"auto_pad": "SAME_LOWER"}),
    Case("MaxPool", attributes={"kernel_shape": [5, 5], "pads": [2, 2, 2, 2]}),
    Case("PRelu", constants=[random(6, 1, 1)]),
    Case("PRelu", constants=[random(1)]),
    Case("Pad", constants=[ints(0, 0, 1, 2, 0, 0, 3, 0)]),
    Case("Pad", constants=[ints(0, 1, 0, 0, 0, 2, 0, 0), SCALAR(0.5, np.float32)]),
    Case("Pad", constants=[ints(0, 0, -1, 2, 0, 0, 3, -2)]),
    Case("Pad", constants=[ints(1, 2, 2, 1), SCALAR(0.0, np.float32), ints(2, 3)]),
    Case("Pad", constants=[ints(0, 0, 1, 2, 0, 0, 3, 0)], attributes={"mode": "reflect"}),
    Case("Pad", attributes={"pads": [0, 0, 1, 1, 0, 0, 1, 1]}, opset=10),
    Case("Reciprocal"),
    Case("ReduceMax", constants=[ints(1)]),
    Case("ReduceMean", constants=[ints(2, 3)]),
    Case("ReduceMean", constants=[ints(-1, -2)], attributes={"keepdims": 0}),
    Case("ReduceMean", attributes={"axes": [1]}, opset=13),
    Case("ReduceMean"),
    Case("ReduceMin", constants=[ints(1, 2)], attributes={"keepdims": 0}),
    Case("ReduceSum", constants=[ints(3)]),
    Case("Reshape", constants=[ints(1, 2, 3, 5, 7)]),
    Case("Reshape", constants=[ints(0, -1)]),
    Case("Reshape", constants=[ints(5, 6, 7, 1)]),
    Case("Reshape", ((2, 6),), [ints(2, 6, 1, 1)]),
    Case("Slice", constants=[ints(1), ints(5), ints(1)]),
    Case("Slice", constants=[ints(0, 1), ints(2**40, -1), ints(2, 3), ints(2, 2)]),
    Case("Slice", constants=[ints(-1), ints(-(2**40)), ints(1), ints(-1)]),
    Case("Slice", attributes={"starts": [1, 1], "ends": [3, 4], "axes": [2, 3]}, opset=9),
    Case("Softmax", ((2, 6),)),
    Case("Softmax", attributes={"axis": 1}),
    Case("Softmax", ((2, 3, 4, 5),), attributes={"axis": 2}),
    Case("Split", attributes={"axis": 1, "num_outputs": 2}, outputs=2),
    Case("Split", constants=[ints(1, 3, 2)], attributes={"axis": 1}, outputs=3),
    Case("Split", ((1, 10, 3, 3),), attributes={"axis": 1, "split": [2, 2, 2, 2, 2]}, outputs=5, opset=12),
    Case("Squeeze", ((1, 6, 1, 7),), [ints(2)]),
    Case("Transpose", attributes={"perm": [0, 2, 3, 1]}),
    Case("Transpose", ((2, 3, 4),)),
    Case("Unsqueeze", constants=[ints(0, 3)]),
    Case("Upsample", constants=[floats(1, 1, 2, 2)], opset=9),
)  # fmt: skip
POSITIVE = ("Log", "Sqrt")


def node_of(case: Case) -> NodeProto:
    names = [f"x{number}" for number in range(len(case.inputs))]
    names += [f"c{number}" for number in range(len(case.constants))]
    results = [f"y{number}" for number in range(case.outputs)]
    return helper.make_node(case.op, names, results, case.op, **case.attributes)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operation_gives_what_onnx_runtime_gives(case: Case, layout: Any) -> None:
    inputs = {f"x{number}": shape for number, shape in enumerate(case.inputs)}
    constants = {f"c{number}": value for number, value in enumerate(case.constants)}
    outputs = [f"y{number}" for number in range(case.outputs)]
    built = model([node_of(case)], inputs, constants, outputs=outputs, opset=case.opset)
    assert_same(built, ConvertOptions(layout))


@pytest.mark.parametrize("op", POSITIVE)
def test_an_operation_on_positive_numbers(op: str) -> None:
    nodes = [helper.make_node("Exp", ["x"], ["e"]), helper.make_node(op, ["e"], ["y"])]
    assert_same(model(nodes, {"x": IMAGE}))


@pytest.mark.parametrize("mode", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"])
@pytest.mark.parametrize("kind", ["linear", "floor", "round_prefer_floor", "round_prefer_ceil", "ceil"])
@pytest.mark.parametrize("size", [(10, 14), (15, 21), (7, 7), (3, 4)])
def test_resizing_reads_the_pixels_that_onnx_says(mode: str, kind: str, size: tuple[int, int]) -> None:
    how = {"mode": "linear"} if kind == "linear" else {"mode": "nearest", "nearest_mode": kind}
    node = helper.make_node("Resize", ["x", "", "", "size"], ["y"], coordinate_transformation_mode=mode, **how)
    assert_same(model([node], {"x": (1, 6, 5, 7)}, {"size": ints(1, 6, *size)}))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resizing_by_scales(mode: str) -> None:
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode=mode)
    assert_same(model([node], {"x": (2, 3, 4, 6)}, {"scales": floats(1, 1, 2, 3)}))


def test_every_operation_of_the_table_has_a_case() -> None:
    elsewhere = {"Conv", "ConvTranspose", "Resize", *POSITIVE}
    assert set(OPS) == {case.op for case in CASES} | elsewhere
