"""Count the multiply-adds (MACs) and parameters of an ONNX model. FLOPs = 2 x MACs.

Every counter has the same signature: shapes of the inputs, shapes of the outputs, attributes -> MACs. What has no
counter is either listed in `IGNORED`, 0 MACs by definition (elementwise work, pooling, moving data), or is reported as
unsupported; nothing is silently counted as 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from edgeprune.errors import InputError
from edgeprune.onnx_files.graph import attributes, concrete_shapes, constants

Shape = tuple[int, ...]
CountFunction = Callable[[Sequence[Shape], Sequence[Shape], Mapping[str, object]], int]


@dataclass(frozen=True)
class NodeMacs:
    """One node that multiplies or holds parameters."""

    name: str
    op_type: str
    macs: int
    params: int
    """Weights and biases that the node uses, also where another node uses them too."""
    weight_name: str
    """The initializer that holds its weight; empty if it has none."""
    output: str = ""
    """The first value that it writes."""


@dataclass(frozen=True)
class MacCount:
    """The multiply-adds of a model at one batch size."""

    batch: int
    per_node: tuple[NodeMacs, ...]
    """In the model's order: every node with MACs or parameters."""
    ignored: Mapping[str, int]
    """Operations that are 0 MACs by definition -> how many there are."""
    unsupported: Mapping[str, int]
    """Operations that no counter knows -> how many there are. If any, `total` is too small."""
    params: int
    """Weights and biases, each once, even if several nodes share them."""

    @property
    def total(self) -> int:
        """Multiply-adds of the whole batch."""
        return sum(node.macs for node in self.per_node)


def count_macs(model: ModelProto, *, batch: int = 1) -> MacCount:
    """Multiply-adds of `model` for `batch` samples.

    InputError if the batch does not fit the model, or a shape that a counter needs cannot be inferred.
    """
    shapes = concrete_shapes(model, batch)
    sizes = {name: math.prod(tensor.dims) for name, tensor in constants(model).items()}
    origin = _origins(model, sizes)
    per_node, ignored, unsupported = [], Counter[str](), Counter[str]()
    used: set[str] = set()
    for node in model.graph.node:
        held = [origin[name] for name in _parameter_inputs(node) if name in origin]
        used.update(held)
        macs = 0
        kind = node.op_type if node.domain in _KNOWN_DOMAINS else f"{node.domain}.{node.op_type}"
        if kind in COUNTERS:
            ins, outs = _shapes(node, node.input, shapes), _shapes(node, node.output, shapes)
            macs = COUNTERS[kind](ins, outs, attributes(node))
        elif kind in IGNORED:
            ignored[kind] += 1
        else:
            unsupported[kind] += 1
        if macs or held:
            output = node.output[0]
            params = sum(sizes[constant] for constant in set(held))
            weight = held[0] if held else ""
            per_node.append(NodeMacs(node.name or f"{kind}_{output}", node.op_type, macs, params, weight, output))
    return MacCount(batch, tuple(per_node), dict(ignored), dict(unsupported), sum(sizes[name] for name in used))


def _conv(inputs: Sequence[Shape], outputs: Sequence[Shape], attrs: Mapping[str, object]) -> int:
    """Each output element sums C_in / groups * prod(kernel) products; the weight is (C_out, C_in / groups, *kernel)."""
    return math.prod(outputs[0]) * math.prod(inputs[1][1:])


def _conv_transpose(inputs: Sequence[Shape], outputs: Sequence[Shape], attrs: Mapping[str, object]) -> int:
    """Each input element makes C_out / groups * prod(kernel) products; weight (C_in, C_out / groups, *kernel)."""
    return math.prod(inputs[0]) * math.prod(inputs[1][1:])


def _qlinear_conv(inputs: Sequence[Shape], outputs: Sequence[Shape], attrs: Mapping[str, object]) -> int:
    """Its weight is input 3, behind the scales and zero points."""
    return math.prod(outputs[0]) * math.prod(inputs[3][1:])


def _gemm(inputs: Sequence[Shape], outputs: Sequence[Shape], attrs: Mapping[str, object]) -> int:
    """(M, K) x (K, N), either side perhaps stored transposed."""
    return math.prod(outputs[0]) * inputs[0][0 if attrs.get("transA") else 1]


def _matmul(inputs: Sequence[Shape], outputs: Sequence[Shape], attrs: Mapping[str, object]) -> int:
    """(..., M, K) x (..., K, N); a one-dimensional side counts as one row or column."""
    return math.prod(outputs[0]) * inputs[0][-1]


COUNTERS: Mapping[str, CountFunction] = {
    "Conv": _conv,
    "FusedConv": _conv,
    "ConvInteger": _conv,
    "QLinearConv": _qlinear_conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
}

IGNORED = frozenset(
    """
    Abs Add And BatchNormalization BitShift Cast CastLike Ceil Celu Clip CumSum Cos DequantizeLinear Div Dropout
    DynamicQuantizeLinear Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity
    InstanceNormalization GroupNormalization LayerNormalization LpNormalization RMSNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax LRN Max Mean MeanVarianceNormalization Min Mish Mod Mul Neg Not Or PRelu Pow
    QuantizeLinear Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Softmax Softplus Softsign Sqrt Sub Sum Swish Tanh
    ThresholdedRelu Where Xor
    AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool MaxRoiPool MaxUnpool RoiAlign
    ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare
    Concat Constant ConstantOfShape CenterCropPad DepthToSpace Expand EyeLike Flatten Gather GatherElements GatherND
    GridSample IsInf IsNaN NonMaxSuppression NonZero OneHot Pad Range Reshape Resize ReverseSequence ScatterElements
    ScatterND Shape Size Slice SpaceToDepth Split Squeeze Tile TopK Transpose Trilu Unique Unsqueeze Upsample
    """.split()  # noqa: SIM905
)

_KNOWN_DOMAINS = ("", "ai.onnx", "com.microsoft")

# Where an operation takes its trained parameters. The running statistics of BatchNormalization are no parameters.
_PARAMETER_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "FusedConv": (1, 2),
    "ConvInteger": (1,),
    "QLinearConv": (3, 8),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 0, 2),
    "FusedGemm": (1, 0, 2),
    "MatMul": (1, 0),
    "MatMulInteger": (1, 0),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "PRelu": (1,),
}
_BIAS_LIKE = frozenset({"Add", "Mul", "Sub", "Div"})  # a bias or scale that was exported as a node of its own
_REARRANGES = frozenset(
    {"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Cast", "DequantizeLinear", "QuantizeLinear"}
)


def _parameter_inputs(node: NodeProto) -> Iterator[str]:
    places = (0, 1) if node.op_type in _BIAS_LIKE else _PARAMETER_INPUTS.get(node.op_type, ())
    return (node.input[place] for place in places if place < len(node.input))


def _origins(model: ModelProto, sizes: Mapping[str, int]) -> dict[str, str]:
    """Value -> the constant of more than one element that it is, or is a rearrangement of."""
    origin = {name: name for name, size in sizes.items() if size > 1}
    for node in model.graph.node:
        if node.op_type in _REARRANGES and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
    return origin


def _shapes(node: NodeProto, names: Sequence[str], shapes: Mapping[str, Shape]) -> list[Shape]:
    for name in names:
        if name and name not in shapes:
            raise InputError(
                f"the shape of {name!r} cannot be inferred",
                where=f"{node.op_type} {node.name}",
                expected="a model with shapes known but for the batch",
                remedy="export with a fixed input size",
            )
    return [shapes[name] if name else () for name in names]
