"""Every operation of the table against ONNX Runtime, on one image and on two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx.parser
import pytest
from onnx import ModelProto, numpy_helper

from edgeprune.onnx_files.model import check_model
from edgeprune.onnx_import.importer import build
from edgeprune.onnx_import.ops.table import OPS
from edgeprune.onnx_import.parity import difference

SHAPE = (4, 6, 8)


@dataclass(frozen=True)
class Case:
    """A graph from x, of shape (N, *shape), to y, as ONNX text; `weights` are random tensors of these shapes."""

    body: str
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    shape: tuple[int, ...] = SHAPE
    opset: int = 18

    def model(self) -> ModelProto:
        sizes = ", ".join(map(str, ("N", *self.shape)))
        text = f'<ir_version: 8, opset_import: ["": {self.opset}]> case (float[{sizes}] x) => (y) {{ {self.body} }}'
        model = onnx.parser.parse_model(text)
        random = np.random.default_rng(1)
        for name, shape in self.weights.items():
            values = random.uniform(0.5, 1.5, shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(values, name))
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        model.graph.output[0].CopyFrom(inferred.graph.output[0])
        return check_model(model)


def each(*ops: str) -> dict[str, list[Case]]:
    return {op: [Case(f"y = {op}(x)")] for op in ops}


def positive(*ops: str) -> dict[str, list[Case]]:
    return {op: [Case(f"a = Abs(x) one = Constant<value_float = 0.1>() b = Add(a, one) y = {op}(b)")] for op in ops}


def of_two(*ops: str, end: str = "y = Identity(z)") -> dict[str, list[Case]]:
    """With a scalar, a value for each channel, and a tensor."""
    return {
        op: [
            Case(f"c = Constant<value_float = 0.7>() z = {op}(x, c) {end}"),
            Case(f"z = {op}(x, w) {end}", {"w": (1, 4, 1, 1)}),
            Case(f"z = {op}(w, x) {end}", {"w": (4, 1, 1)}),
            Case(f"s = Sigmoid(x) z = {op}(x, s) {end}"),
            Case(f"s = Sigmoid(x) z = {op}(s, w) {end}", {"w": (6, 8)}),
        ]
        for op in ops
    }


def logical(*ops: str) -> dict[str, list[Case]]:
    return of_two(*ops, end="y = Cast<to = 1>(z)")


CAST = "y = Cast<to = 1>(z)"
TRUTH = (
    "c = Constant<value_float = 0.0>() p = Greater(x, c) s = Neg(x) d = Constant<value_float = 0.5>() q = Less(s, d)"
)
NORM = {"s": (4,), "b": (4,), "m": (4,), "v": (4,)}
POOL = "kernel_shape = [3, 2], strides = [2, 2]"
CASES: dict[str, list[Case]] = {
    "Conv": [
        Case("y = Conv(x, w, b)", {"w": (6, 4, 3, 3), "b": (6,)}),
        Case(
            "y = Conv<group = 2, pads = [1, 1, 1, 1], strides = [2, 2], dilations = [2, 1]>(x, w)", {"w": (6, 2, 3, 3)}
        ),
        Case("y = Conv<pads = [0, 1, 2, 1], strides = [2, 2]>(x, w)", {"w": (6, 4, 3, 3)}),
        Case('y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w)', {"w": (6, 4, 3, 3)}),
        Case('y = Conv<auto_pad = "SAME_LOWER", strides = [2, 2]>(x, w)', {"w": (6, 4, 2, 3)}),
        Case('y = Conv<auto_pad = "VALID">(x, w)', {"w": (6, 4, 2, 3)}),
        Case("v = Identity(w) y = Conv(x, v)", {"w": (6, 4, 3, 3)}),
        Case("v = Transpose<perm = [3, 2, 0, 1]>(w) y = Conv(x, v)", {"w": (3, 3, 4, 6)}),
        Case("z = Conv(x, w) y = Add(z, b)", {"w": (6, 4, 1, 1), "b": (1, 6, 1, 1)}),
        Case(
            "z = Conv(x, w, b) a = Mul(s, z) c = Sub(t, a) y = Div(c, s)",
            {"w": (6, 4, 1, 1), "b": (6,), "s": (6, 1, 1), "t": (1,)},
        ),
        Case("a = Conv(x, w) b = Relu(a) c = Conv(b, w) y = Add(b, c)", {"w": (4, 4, 1, 1)}),
        Case("a = Conv(x, w) b = Add(a, s) c = Conv(b, w) y = Sub(c, s)", {"w": (4, 4, 1, 1), "s": (4, 1, 1)}),
        Case("y = Conv<pads = [1, 1]>(x, w)", {"w": (6, 4, 3)}, (4, 9)),
        Case("y = Conv(x, w)", {"w": (6, 4, 1, 2, 2)}, (4, 3, 5, 6)),
    ],
    "ConvTranspose": [
        Case("y = ConvTranspose<strides = [2, 2]>(x, w, b)", {"w": (4, 6, 2, 2), "b": (6,)}),
        Case(
            "y = ConvTranspose<strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]>(x, w)",
            {"w": (4, 6, 3, 3)},
        ),
        Case("y = ConvTranspose<strides = [2, 3], pads = [1, 0, 0, 2]>(x, w)", {"w": (4, 6, 3, 3)}),
        Case("y = ConvTranspose<strides = [2, 2], output_shape = [11, 16]>(x, w)", {"w": (4, 6, 3, 3)}),
        Case('y = ConvTranspose<strides = [2, 2], auto_pad = "SAME_UPPER">(x, w)', {"w": (4, 6, 3, 3)}),
        Case('y = ConvTranspose<strides = [2, 2], auto_pad = "SAME_LOWER">(x, w)', {"w": (4, 6, 3, 3)}),
        Case(
            "z = ConvTranspose<group = 2, strides = [2, 2]>(x, w, b) t = Mul(z, s) y = Add(t, s)",
            {"w": (4, 3, 2, 2), "b": (6,), "s": (1, 6, 1, 1)},
        ),
        Case("z = ConvTranspose<pads = [1, 0, 0, 0]>(x, w) y = Add(z, s)", {"w": (4, 6, 2, 2), "s": (1, 6, 1, 1)}),
    ],
    "Gemm": [
        Case("f = Flatten(x) y = Gemm(f, w, b)", {"w": (192, 5), "b": (5,)}),
        Case("f = Flatten(x) y = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(f, w, b)", {"w": (5, 192), "b": (1,)}),
        Case("f = Flatten(x) g = Gemm<transB = 1>(f, w) y = Add(g, b)", {"w": (5, 192), "b": (1, 5)}),
        Case("f = Flatten(x) g = MatMul(f, v) y = Gemm<beta = 0.5>(f, w, g)", {"w": (192, 5), "v": (192, 5)}),
        Case("f = Flatten(x) v = Transpose<perm = [1, 0]>(w) y = Gemm<alpha = 0.5>(f, v)", {"w": (5, 192)}),
    ],
    "MatMul": [
        Case("f = Flatten(x) y = MatMul(f, w)", {"w": (192, 5)}),
        Case("z = MatMul(x, w) y = Add(z, b)", {"w": (8, 5), "b": (5,)}),
        Case("z = MatMul(x, w) y = Add(b, z)", {"w": (8, 5), "b": (6, 5)}),
        Case("y = MatMul(w, x)", {"w": (5, 6)}),
        Case("y = MatMul(x, w)", {"w": (4, 8, 5)}),
        Case("t = Transpose<perm = [0, 1, 3, 2]>(x) y = MatMul(x, t)"),
    ],
    "BatchNormalization": [
        Case("y = BatchNormalization<epsilon = 0.01>(x, s, b, m, v)", NORM),
        Case("y = BatchNormalization(x, s, b, m, v)", NORM, (4,)),
        Case("y = BatchNormalization(x, s, b, m, v)", NORM, (4, 5)),
        Case("c = Conv(x, w) y = BatchNormalization(c, s, b, m, v)", {**NORM, "w": (4, 4, 1, 1)}),
    ],
    "InstanceNormalization": [Case("y = InstanceNormalization(x, s, b)", NORM)],
    "LayerNormalization": [
        Case("y = LayerNormalization<axis = -1>(x, s, b)", {"s": (8,), "b": (8,)}),
        Case("y = LayerNormalization<axis = 2, epsilon = 0.01>(x, s)", {"s": (6, 8)}),
    ],
    "GroupNormalization": [
        Case("y = GroupNormalization<num_groups = 2>(x, s, b)", {"s": (2,), "b": (2,)}),
        Case("y = GroupNormalization<num_groups = 2>(x, s, b)", {"s": (4,), "b": (4,)}, opset=21),
    ],
    "LRN": [Case("y = LRN<size = 3, alpha = 0.1, beta = 0.6, bias = 1.5>(x)")],
    "LpNormalization": [Case("y = LpNormalization<axis = 1, p = 2>(x)"), Case("y = LpNormalization<p = 1>(x)")],
    "PRelu": [
        Case("y = PRelu(x, s)", {"s": (4, 1, 1)}),
        Case("y = PRelu(x, s)", {"s": (1,)}),
        Case("y = PRelu(x, s)", {"s": (6, 8)}),
    ],
    **each("Relu", "Sigmoid", "HardSwish", "Softplus", "Softsign", "Tanh", "Mish", "Erf", "Abs", "Neg", "Exp"),
    **each("Floor", "Ceil", "Round", "Sign", "Sin", "Cos", "Identity", "Dropout", "GlobalMaxPool"),
    **positive("Log", "Sqrt", "Reciprocal"),
    "LeakyRelu": [Case("y = LeakyRelu(x)"), Case("y = LeakyRelu<alpha = 0.2>(x)")],
    "Clip": [
        Case("l = Constant<value_float = 0.0>() h = Constant<value_float = 1.0>() y = Clip(x, l, h)"),
        Case("l = Constant<value_float = 0.0>() y = Clip(x, l)"),
        Case("h = Constant<value_float = 0.5>() y = Clip(x, , h)"),
        Case("y = Clip<min = -0.5, max = 6.0>(x)", opset=10),
        Case("y = Clip(x)"),
    ],
    "HardSigmoid": [Case("y = HardSigmoid(x)"), Case("y = HardSigmoid<alpha = 0.16666667>(x)")],
    "Elu": [Case("y = Elu<alpha = 0.5>(x)")],
    "Celu": [Case("y = Celu<alpha = 0.5>(x)")],
    "Selu": [Case("y = Selu(x)"), Case("y = Selu<alpha = 1.5, gamma = 0.9>(x)")],
    "Gelu": [Case("y = Gelu(x)", opset=20), Case('y = Gelu<approximate = "tanh">(x)', opset=20)],
    "Swish": [Case("y = Swish(x)", opset=24), Case("y = Swish<alpha = 0.5>(x)", opset=24)],
    "ThresholdedRelu": [Case("y = ThresholdedRelu<alpha = 0.3>(x)")],
    "Shrink": [Case("y = Shrink<lambd = 0.4>(x)"), Case("y = Shrink<lambd = 0.4, bias = 0.4>(x)")],
    "Not": [Case(f"{TRUTH} z = Not(p) {CAST}")],
    "And": [Case(f"{TRUTH} z = And(p, q) {CAST}")],
    "Or": [Case(f"{TRUTH} z = Or(p, q) {CAST}")],
    "Cast": [Case(f"z = Cast<to = 7>(x) {CAST}"), Case("y = Cast<to = 1>(x)"), Case("y = Cast<to = 11>(x)")],
    "Softmax": [
        Case("y = Softmax<axis = 1>(x)"),
        Case("y = Softmax<axis = 1>(x)", opset=11),
        Case("y = Softmax<axis = -1>(x)", opset=11),
    ],
    "LogSoftmax": [Case("y = LogSoftmax<axis = 1>(x)")],
    **of_two("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean"),
    **logical("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
    "Pow": [
        Case("c = Constant<value_float = 2.0>() y = Pow(x, c)"),
        Case("a = Abs(x) y = Pow(a, w)", {"w": (4, 1, 1)}),
        Case("c = Constant<value_float = 2.0>() y = Pow(c, x)"),
    ],
    "Mod": [Case("c = Constant<value_float = 0.3>() y = Mod<fmod = 1>(x, c)")],
    "Where": [Case(f"{TRUTH} y = Where(p, x, d)"), Case(f"{TRUTH} y = Where(p, s, x)")],
    "MaxPool": [
        Case(f"y = MaxPool<{POOL}>(x)"),
        Case(f"y = MaxPool<{POOL}, pads = [1, 1, 1, 1]>(x)"),
        Case(f"y = MaxPool<{POOL}, pads = [0, 0, 1, 1], dilations = [2, 1]>(x)"),
        Case(f"y = MaxPool<{POOL}, ceil_mode = 1>(x)"),
        Case(f'y = MaxPool<{POOL}, auto_pad = "SAME_LOWER">(x)'),
        Case("y = MaxPool<kernel_shape = [2], strides = [2]>(x)", shape=(4, 9)),
    ],
    "AveragePool": [
        Case(f"y = AveragePool<{POOL}>(x)"),
        Case(f"y = AveragePool<{POOL}, pads = [1, 1, 1, 1]>(x)"),
        Case(f"y = AveragePool<{POOL}, pads = [1, 1, 1, 1], count_include_pad = 1>(x)"),
        Case(f"y = AveragePool<{POOL}, pads = [0, 0, 1, 1]>(x)"),
        Case(f"y = AveragePool<{POOL}, pads = [0, 0, 1, 1], count_include_pad = 1>(x)"),
        Case(f"y = AveragePool<{POOL}, ceil_mode = 1>(x)", opset=19),
        Case(f"y = AveragePool<{POOL}, ceil_mode = 1, pads = [1, 0, 1, 0], count_include_pad = 1>(x)", opset=19),
        Case(f'y = AveragePool<{POOL}, auto_pad = "SAME_UPPER">(x)'),
    ],
    "GlobalAveragePool": [Case("y = GlobalAveragePool(x)"), Case("y = GlobalAveragePool(x)", shape=(4, 9))],
    **{
        op: [
            Case(f"y = {op}<axes = [2, 3]>(x)", opset=11),
            Case(f"y = {op}<axes = [-1], keepdims = 0>(x)", opset=11),
        ]
        for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")
    },
    "ReduceProd": [Case("y = ReduceProd<axes = [2, 3], keepdims = 0>(x)", opset=11)],
    "ReduceLogSumExp": [Case("y = ReduceLogSumExp<axes = [2, 3]>(x)", opset=11)],
    "ReduceLogSum": [Case("a = Abs(x) y = ReduceLogSum<axes = [2, 3]>(a)", opset=11)],
    "ArgMax": [Case(f"z = ArgMax<axis = 1>(x) {CAST}"), Case(f"z = ArgMax<axis = -1, keepdims = 0>(x) {CAST}")],
    "ArgMin": [Case(f"z = ArgMin<axis = 1>(x) {CAST}")],
    "Reshape": [
        Case("t = Constant<value_ints = [0, -1]>() y = Reshape(x, t)"),
        Case("t = Constant<value_ints = [-1, 2, 2, 6, 8]>() y = Reshape(x, t)"),
        Case("t = Constant<value_ints = [0, 4, -1]>() y = Reshape(x, t)"),
        Case("t = Constant<value_ints = [-1, 8]>() y = Reshape(x, t)"),
        Case(
            "s = Shape(x) i = Constant<value_int = 0>() n = Gather(s, i) a = Constant<value_ints = [0]>() u = Unsqueeze(n, a)"
            " r = Constant<value_ints = [4, 48]>() t = Concat<axis = 0>(u, r) y = Reshape(x, t)"
        ),
        Case("s = Shape(x) y = Reshape(x, s)"),
    ],
    "Flatten": [Case("y = Flatten(x)"), Case("y = Flatten<axis = 2>(x)"), Case("y = Flatten<axis = -1>(x)")],
    "Squeeze": [
        Case("g = GlobalAveragePool(x) a = Constant<value_ints = [2, -1]>() y = Squeeze(g, a)"),
        Case("g = GlobalAveragePool(x) y = Squeeze<axes = [2]>(g)", opset=11),
    ],
    "Unsqueeze": [
        Case("a = Constant<value_ints = [1, -1]>() y = Unsqueeze(x, a)"),
        Case("y = Unsqueeze<axes = [2]>(x)", opset=11),
    ],
    "Transpose": [Case("y = Transpose<perm = [0, 2, 3, 1]>(x)"), Case("y = Transpose<perm = [0, 1, 2, 3]>(x)")],
    "Concat": [
        Case("s = Neg(x) y = Concat<axis = 1>(x, s, x)"),
        Case("y = Concat<axis = -1>(x)"),
        Case(
            "s = Shape<start = 0, end = 1>(x) r = Constant<value_ints = [2, 6, 8]>() t = Concat<axis = 0>(s, r)"
            " c = Expand(w, t) y = Concat<axis = 1>(x, c)",
            {"w": (1, 2, 6, 8)},
        ),
    ],
    "Expand": [
        Case("g = GlobalAveragePool(x) t = Constant<value_ints = [1, 4, 6, 8]>() y = Expand(g, t)"),
        Case("t = Shape(x) g = GlobalAveragePool(x) y = Expand(g, t)"),
        Case("t = Constant<value_ints = [1, 1, 1]>() y = Expand(x, t)"),
    ],
    "Tile": [Case("t = Constant<value_ints = [1, 2, 1, 3]>() y = Tile(x, t)")],
    "Pad": [
        Case("p = Constant<value_ints = [0, 0, 1, 2, 0, 0, 0, 1]>() y = Pad(x, p)"),
        Case(
            "p = Constant<value_ints = [0, 1, 0, 0, 0, 2, 0, 0]>() v = Constant<value_float = 2.0>() y = Pad(x, p, v)"
        ),
        Case('p = Constant<value_ints = [0, 0, 1, 2, 0, 0, 0, 1]>() y = Pad<mode = "reflect">(x, p)'),
        Case('y = Pad<mode = "edge", pads = [0, 0, 1, 2, 0, 0, 0, 1]>(x)', opset=10),
        Case("y = Pad<value = 1.5, pads = [0, 0, 1, 2, 0, 0, -1, 1]>(x)", opset=10),
    ],
    "DepthToSpace": [
        Case("y = DepthToSpace<blocksize = 2>(x)"),
        Case('y = DepthToSpace<blocksize = 2, mode = "CRD">(x)', shape=(8, 3, 5)),
    ],
    "SpaceToDepth": [Case("y = SpaceToDepth<blocksize = 2>(x)")],
    "Split": [
        Case("t = Constant<value_ints = [1, 3]>() a, b = Split<axis = 1>(x, t) y = Concat<axis = 1>(b, a)"),
        Case("a, b = Split<axis = -1, num_outputs = 2>(x) y = Sub(a, b)"),
        Case("a, b = Split<axis = 1, split = [1, 3]>(x) y = Mul(a, b)", opset=11),
    ],
    "Slice": [
        Case(
            "s = Constant<value_ints = [1, -3]>() e = Constant<value_ints = [3, 9223372036854775807]>()"
            " a = Constant<value_ints = [1, 3]>() y = Slice(x, s, e, a)"
        ),
        Case(
            "s = Constant<value_ints = [0, 1]>() e = Constant<value_ints = [6, 7]>() a = Constant<value_ints = [2, 3]>()"
            " t = Constant<value_ints = [2, 3]>() y = Slice(x, s, e, a, t)"
        ),
        Case(
            "s = Constant<value_ints = [-1]>() e = Constant<value_ints = [-9223372036854775807]>()"
            " a = Constant<value_ints = [2]>() t = Constant<value_ints = [-1]>() y = Slice(x, s, e, a, t)"
        ),
        Case("y = Slice<starts = [1], ends = [1000], axes = [1]>(x)", opset=9),
    ],
    "Gather": [
        Case("i = Constant<value_int = -1>() y = Gather<axis = 1>(x, i)"),
        Case("i = Constant<value_ints = [3, 1, 1, -2]>() y = Gather<axis = 1>(x, i)"),
        Case("i = Constant<value_ints = [1, 2]>() y = Gather<axis = 2>(x, i)"),
    ],
    "TopK": [Case("k = Constant<value_ints = [2]>() y, i = TopK<axis = 1>(x, k)")],
    "Resize": [
        *[
            Case(
                "s = Constant<value_floats = [1.0, 1.0, 2.0, 1.5]>()"
                f' y = Resize<mode = "{mode}", coordinate_transformation_mode = "{rule}"{rest}>(x, , s)'
            )
            for mode, rule, rest in (
                ("nearest", "asymmetric", ', nearest_mode = "floor"'),
                ("nearest", "half_pixel", ""),
                ("nearest", "half_pixel", ', nearest_mode = "ceil"'),
                ("nearest", "align_corners", ', nearest_mode = "round_prefer_ceil"'),
                ("nearest", "tf_half_pixel_for_nn", ', nearest_mode = "floor"'),
                ("linear", "half_pixel", ""),
                ("linear", "align_corners", ""),
                ("linear", "pytorch_half_pixel", ""),
                ("cubic", "half_pixel", ""),
            )
        ],
        Case('s = Constant<value_floats = [1.0, 1.0, 1.3, 0.6]>() y = Resize<mode = "linear">(x, , s)'),
        Case('t = Constant<value_ints = [9, 5]>() y = Resize<mode = "linear", axes = [2, 3]>(x, , , t)'),
        Case("s = Constant<value = float[4] {1.0, 1.0, 2.0, 2.0}>() y = Resize(x, s)", opset=10),
    ],
    "Upsample": [Case("s = Constant<value = float[4] {1.0, 1.0, 2.0, 3.0}>() y = Upsample(x, s)", opset=9)],
}


def test_the_table_and_these_cases_name_the_same_operations() -> None:
    assert set(CASES) == set(OPS)


@pytest.mark.parametrize("op", sorted(OPS))
def test_operation_computes_what_onnx_runtime_computes(op: str) -> None:
    for case in CASES[op]:
        model = case.model()
        network = build(model, (1, 2))
        assert not difference(model, network, case.shape, (1, 2), fixed=None), case.body
