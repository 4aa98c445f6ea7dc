"""Count the multiply-adds (MACs) and parameters of an ONNX model. FLOPs = 2 x MACs.

Every counter has the same signature: shapes of the inputs, shapes of the outputs, attributes -> MACs. What has no
counter is either listed in `IGNORED`, 0 MACs by definition (elementwise work, pooling, moving data), or is reported as
unsupported; nothing is silently counted as 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import GraphProto, ModelProto, NodeProto

from edgeprune.errors import InputError
from edgeprune.onnx_files.constants import Constants, constants
from edgeprune.onnx_files.graph import attributes, inner_graphs
from edgeprune.onnx_files.inference import Types
from edgeprune.onnx_files.shapes import concrete_types, inner_types, trips

Shape = tuple[int, ...]
CountFunction = Callable[[Sequence[Shape], Sequence[Shape], Mapping[str, object]], int]


@dataclass(frozen=True)
class NodeMacs:
    """One node that multiplies or holds parameters."""

    name: str
    op_type: str
    macs: int
    """Inside a Loop, of all its turns."""
    params: int
    """Weights and biases that the node uses, also where another node uses them too."""
    weight_name: str
    """The initializer that holds its weight, or the constant that is computed as its weight; empty if it has none."""
    output: str = ""
    """The first value that it writes."""
    weight_shape: Shape = ()
    """Of its weight as the node reads it."""
    outermost: str = ""
    """The first value that the If, Loop or Scan writes that it lies in; its own where it lies in none."""
    is_counted: bool = True
    """Not where it lies in a branch of an If that multiplies less than another branch: only one of them is run."""


@dataclass(frozen=True)
class MacCount:
    """The multiply-adds of a model at one batch size."""

    batch: int
    per_node: tuple[NodeMacs, ...]
    """In the model's order: every node with MACs or parameters, those inside If, Loop and Scan behind that node."""
    ignored: Mapping[str, int]
    """Operations that are 0 MACs by definition -> how many there are."""
    unsupported: Mapping[str, int]
    """Operations that no counter knows, and Loops of a number of turns that is not known -> how many there are. If any,
    `total` is too small."""
    params: int
    """Weights and biases, each once, even if several nodes share them."""

    @property
    def total(self) -> int:
        """Multiply-adds of the whole batch."""
        return sum(node.macs for node in self.per_node if node.is_counted)


def count_macs(model: ModelProto, *, batch: int = 1) -> MacCount:
    """Multiply-adds of `model` for `batch` samples.

    InputError if the batch does not fit the model, or a shape that a counter needs cannot be inferred.
    """
    held = constants(model)
    walk = _Walk(model)
    per_node = walk.count(_Place(model.graph, held, concrete_types(model, batch), {}))
    return MacCount(batch, tuple(per_node), dict(walk.ignored), dict(walk.unsupported), sum(walk.used.values()))


@dataclass(frozen=True)
class _Place:
    """A graph, and what is known where it stands."""

    graph: GraphProto
    held: Constants
    types: Types
    origin: Mapping[str, str]
    """Of the graph around it, as `_origins`."""
    turns: int = 1
    outermost: str = ""


class _Walk:
    """One pass over all graphs of a model."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self.ignored, self.unsupported = Counter[str](), Counter[str]()
        self.used: dict[str, int] = {}
        """Parameter -> its elements."""

    def count(self, place: _Place) -> list[NodeMacs]:
        shapes = {name: shape for name, (shape, _) in place.types.items() if shape is not None}
        sizes = {name: math.prod(shapes[name]) for name in place.held if name in shapes}
        origin = _origins(place, sizes)
        found: list[NodeMacs] = []
        for node in place.graph.node:
            if node.output and node.output[0] in place.held:
                continue  # what is computed from constants alone is computed once, when the model is loaded
            kind = node.op_type if node.domain in _KNOWN_DOMAINS else f"{node.domain}.{node.op_type}"
            counted = self._node(node, kind, place, shapes, sizes, origin)
            found += [counted] if counted else []
            if any(inner_graphs(node)):
                found += self._inside(node, replace(place, origin=origin))
        return found

    def _node(
        self,
        node: NodeProto,
        kind: str,
        place: _Place,
        shapes: Mapping[str, Shape],
        sizes: Mapping[str, int],
        origin: Mapping[str, str],
    ) -> NodeMacs | None:
        """None for a node that neither multiplies nor holds parameters."""
        read = list(_parameter_inputs(node))
        held = [origin[name] for name in read if name in origin]
        elements = {name: sizes[name] for name in held}
        self.used.update(elements)
        macs = 0
        if kind in COUNTERS and (not place.outermost or _are_known(node, shapes)):
            ins, outs = _shapes(node, node.input, shapes), _shapes(node, node.output, shapes)
            macs = COUNTERS[kind](ins, outs, attributes(node)) * place.turns
        elif kind in IGNORED:
            self.ignored[kind] += 1
        elif not any(inner_graphs(node)):
            self.unsupported[kind] += 1
        if not macs and not held:
            return None
        weight = next((name for name in read[: 2 if node.op_type in _EITHER_SIDE else 1] if name in origin), "")
        output = node.output[0]
        return NodeMacs(
            node.name or f"{kind}_{output}",
            node.op_type,
            macs,
            sum(elements.values()),
            origin.get(weight, ""),
            output,
            shapes.get(weight, ()),
            place.outermost or output,
        )

    def _inside(self, node: NodeProto, place: _Place) -> list[NodeMacs]:
        """What is in the graphs of an If, Loop or Scan: of an If the branch that multiplies most is counted."""
        turns = trips(node, place.types, place.held)
        if turns is None or node.op_type not in ("If", "Loop", "Scan"):
            self.unsupported[node.op_type] += 1
        branches = []
        for _, graph in inner_graphs(node):
            held = Constants(graph, self._model, place.held)
            types = {**place.types, **inner_types(node, graph, self._model, place.types, held)}
            outermost = place.outermost or next(iter(node.output), "")
            inner = _Place(graph, held, types, place.origin, place.turns * max(turns or 1, 0), outermost)
            branches.append(self.count(inner))
        if node.op_type == "If" and branches:
            most = max(branches, key=_total)
            branches = [
                branch if branch is most else [replace(entry, is_counted=False) for entry in branch]
                for branch in branches
            ]
        return [entry for branch in branches for entry in branch]


def _total(entries: Sequence[NodeMacs]) -> int:
    return sum(entry.macs for entry in entries if entry.is_counted)


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
_EITHER_SIDE = frozenset({"Gemm", "FusedGemm", "MatMul", "MatMulInteger"}) | _BIAS_LIKE
"""What takes its weight on either side; elsewhere the weight comes first, and the bias behind it."""
_REARRANGES = frozenset(
    {"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Cast", "DequantizeLinear", "QuantizeLinear"}
)


def _parameter_inputs(node: NodeProto) -> Iterator[str]:
    places = (0, 1) if node.op_type in _BIAS_LIKE else _PARAMETER_INPUTS.get(node.op_type, ())
    return (node.input[place] for place in places if place < len(node.input))


def _origins(place: _Place, sizes: Mapping[str, int]) -> dict[str, str]:
    """Value -> the constant of more than one element that it is, or is a rearrangement of."""
    origin = {name: name for name, size in sizes.items() if size > 1} | dict(place.origin)
    for node in place.graph.node:
        if node.op_type in _REARRANGES and node.domain in _KNOWN_DOMAINS and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
    return origin


def _are_known(node: NodeProto, shapes: Mapping[str, Shape]) -> bool:
    return all(name in shapes for name in (*node.input, *node.output) if name)


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
