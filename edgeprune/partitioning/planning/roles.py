"""How each node of a network can be divided over the channels of its result, and what a part of it needs.

A part of a grouped convolution needs the channels that its groups read; of a dense layer all of them. What works
channel by channel needs the same channels, a Gather by constant numbers those that it names. Anything else is computed
whole. A dense layer can also be divided over its input's channels: each device then computes an addend of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from onnx import NodeProto, TensorProto

from edgeprune.onnx_files.graph import array, attributes, inner_graphs, is_standard, opset, used_values
from edgeprune.partitioning.network import Network
from edgeprune.partitioning.planning import channels as ch
from edgeprune.partitioning.planning.channel_wise import channel_wise
from edgeprune.partitioning.planning.channels import Channels

Kind = Literal["grouped", "dense", "channel_wise", "concat", "gather", "pad", "flatten", "whole", "lone"]
"""`whole`: computed whole by whoever needs it; `lone`: by one device alone (random numbers, graphs inside it)."""
_OF_FILTERS = {"Conv": (1, 2), "QLinearConv": (3, 4, 5, 8)}
"""Inputs that have a part for each filter: weight and bias, scales and zero points where each filter has its own. The
weight is the first."""
_PADS_AS_INPUT = 11
"""Opset from which a Pad reads them as an input."""
_OPTIONAL_BIAS = 11
"""Opset from which a Gemm needs none."""
FILLED = -1
"""What a Pad gives a channel that it adds."""
_EXACT_SUMS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE})


@dataclass(frozen=True)
class Role:
    """What dividing one node needs to know of it."""

    node: NodeProto
    kind: Kind
    channels: int
    """Of its result."""
    units: int = 1
    """Runs of equally many channels of the result that are not cut: groups, or single channels."""
    reads: Mapping[str, int] = field(default_factory=dict)
    """Value that is no constant -> its channels."""
    sliced: Mapping[int, int] = field(default_factory=dict)
    """Constant input's place -> the axis along which a part takes its channels of the result."""
    summed: Mapping[int, int] = field(default_factory=dict)
    """The same for a part of the input's channels; empty: addends of the result cannot be computed apart."""
    bias: int | None = None
    """The place of what only one of the addends has."""
    order: tuple[int, ...] = ()
    """Of a Gather or a Pad: the channel of its input at each channel of the result; `FILLED` for none."""

    @property
    def key(self) -> str:
        """The first value that it writes, by which nodes are known (names may be missing or shared)."""
        return str(self.node.output[0])

    @property
    def source(self) -> str:
        """The value whose channels a layer or a Gather reads."""
        return str(self.node.input[0])

    @property
    def is_layer(self) -> bool:
        return self.kind in ("grouped", "dense")

    def needs(self, part: Channels) -> dict[str, Channels]:
        """What a part of the result, made of whole units, needs of each value that it reads."""
        return _NEEDS.get(self.kind, _need_all)(self, part) if part else {}


def roles_of(network: Network) -> tuple[Role, ...]:
    """The roles of the nodes that the network's outputs need, in the model's order."""
    wanted, found = set(network.outputs), []
    for node in reversed(network.nodes):
        if wanted & set(node.output):
            wanted |= used_values(node)
            found.append(_role(node, network))
    return tuple(reversed(found))


def is_grouped(node: NodeProto) -> bool:
    """Whether a node is a convolution in groups, of a kind that can be divided."""
    return node.op_type in _OF_FILTERS and is_standard(node) and group_of(node) > 1


def has_own_constants(node: NodeProto, network: Network) -> bool:
    """Whether all that a convolution reads beside its data is constant."""
    return all(name in network.constants for name in node.input[1:] if name)


def group_of(node: NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def _role(node: NodeProto, network: Network) -> Role:
    reads = {name: network.channels(name) for name in sorted(used_values(node)) if name not in network.constants}
    outputs = [name for name in node.output if name]
    plain = Role(node, "whole", network.channels(outputs[0]), reads=reads)
    if any(inner_graphs(node)) or (not is_standard(node) and node.op_type not in _FOREIGN) or not reads:
        return Role(node, "lone", plain.channels, reads=reads)
    if any(not network.knows(name) for name in (*reads, *outputs)):
        return Role(node, "lone", plain.channels, reads=reads)
    if node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial"):
        return Role(node, "lone", plain.channels, reads=reads)
    for make in (_convolution, _matrix_product, _gather, _pad, _concat, _flatten):
        if (role := make(plain, network)) is not None:
            return role
    sliced = channel_wise(node, network)
    if sliced is None or plain.channels < 2:
        return plain
    return Role(node, "channel_wise", plain.channels, plain.channels, reads, sliced)


_FOREIGN = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Operations of ONNX Runtime's own domain that are known here."""


def _convolution(plain: Role, network: Network) -> Role | None:
    node = plain.node
    if node.op_type not in _OF_FILTERS or not is_standard(node) or not has_own_constants(node, network):
        return None
    if node.input[0] in network.constants:
        return None
    places = [place for place in _OF_FILTERS[node.op_type] if place < len(node.input) and node.input[place]]
    dims, groups = network.dims(node.input[places[0]]), group_of(node)
    fits = len(dims) > 2 and min(dims) > 0 and dims[0] == plain.channels and not dims[0] % groups
    if not fits or network.channels(node.input[0]) != dims[1] * groups:
        return None
    sliced = {place: 0 for place in places if math.prod(network.dims(node.input[place])) > 1 or place == places[0]}
    if groups > 1:
        return Role(node, "grouped", plain.channels, groups, plain.reads, sliced)
    can_add = node.op_type == "Conv" and network.type_of(node.output[0]).elem_type in _EXACT_SUMS
    bias = 2 if len(node.input) > 2 and node.input[2] else None
    return Role(node, "dense", dims[0], dims[0], plain.reads, sliced, {1: 1} if can_add else {}, bias)


def _matrix_product(plain: Role, network: Network) -> Role | None:
    node = plain.node
    if node.op_type not in ("Gemm", "MatMul") or not is_standard(node) or len(node.input) < 2:
        return None
    data, weight, *rest = node.input
    dims = network.dims(weight) if weight in network.constants else ()
    settings = attributes(node)
    ranks = network.rank(data), network.rank(node.output[0]), len(dims)
    if data in network.constants or ranks != (2, 2, 2) or settings.get("transA"):
        return None
    if any(name not in network.constants for name in rest if name):
        return None
    outer = 0 if settings.get("transB") else 1
    if dims[outer] != plain.channels or dims[1 - outer] != network.channels(data):
        return None
    sliced, bias = {1: outer}, 2 if rest and rest[0] else None
    if bias:
        of_bias = network.dims(node.input[2])
        sliced |= {2: len(of_bias) - 1} if of_bias and of_bias[-1] > 1 else {}
    can_add = network.type_of(node.output[0]).elem_type in _EXACT_SUMS
    can_add = can_add and (bias is None or opset(network.model) >= _OPTIONAL_BIAS)
    summed = {1: 1 - outer} if can_add else {}
    return Role(node, "dense", plain.channels, plain.channels, plain.reads, sliced, summed, bias)


def _gather(plain: Role, network: Network) -> Role | None:
    node = plain.node
    if node.op_type != "Gather" or node.input[0] in network.constants or node.input[1] not in network.constants:
        return None
    data, rank = node.input[0], network.rank(node.input[0])
    index = array(network.constants[node.input[1]])
    held = network.channels(data)
    if index.ndim != 1 or rank < 2 or int(str(attributes(node).get("axis", 0))) % rank != 1 or held < 2:
        return None
    if index.min(initial=0) < -held or index.max(initial=0) >= held or len(index) != plain.channels:
        return None  # ONNX Runtime will say so
    order = tuple(int(i) % held for i in index)
    return Role(node, "gather", plain.channels, plain.channels, plain.reads, order=order)


def _pad(plain: Role, network: Network) -> Role | None:
    """Constant channels, such as zeros, in front of the others and behind them; positions may be padded as well."""
    node, rank = plain.node, network.rank(plain.key)
    if node.op_type != "Pad" or not 2 <= len(node.input) <= 3 or node.input[0] in network.constants:
        return None
    if any(name and name not in network.constants for name in node.input[1:]):
        return None
    if opset(network.model) < _PADS_AS_INPUT or attributes(node).get("mode", "constant") not in (
        "constant",
        b"constant",
    ):
        return None
    pads = array(network.constants[node.input[1]]).reshape(-1).tolist()
    inner = network.channels(node.input[0])
    if rank < 2 or len(pads) != 2 * rank or pads[0] or pads[rank] or min(pads[1], pads[1 + rank]) < 0:
        return None
    if inner < 2 or pads[1] + inner + pads[1 + rank] != plain.channels:
        return None
    order = (*(FILLED,) * pads[1], *range(inner), *(FILLED,) * pads[1 + rank])
    return Role(node, "pad", plain.channels, plain.channels, plain.reads, order=order)


def _concat(plain: Role, network: Network) -> Role | None:
    node, rank = plain.node, network.rank(plain.key)
    if node.op_type != "Concat" or any(name in network.constants for name in node.input) or rank < 2:
        return None
    sizes = [network.channels(name) for name in node.input]
    if int(str(attributes(node).get("axis", 0))) % rank != 1 or sum(sizes) != plain.channels:
        return None
    return Role(node, "concat", plain.channels, plain.channels, plain.reads)


def _flatten(plain: Role, network: Network) -> Role | None:
    """(N, C, ...) to (N, C x ...), each channel becoming neighbours."""
    node, data = plain.node, plain.node.input[0]
    if node.op_type not in ("Flatten", "Reshape") or data in network.constants or network.rank(node.output[0]) != 2:
        return None
    before, after, inner = network.type_of(data), network.type_of(node.output[0]), network.channels(data)
    if before.dims[:1] != after.dims[:1] or inner < 2 or plain.channels != math.prod(before.shape[1:]):
        return None
    return Role(node, "flatten", plain.channels, inner, plain.reads)


def _need_all(role: Role, part: Channels) -> dict[str, Channels]:
    return {name: ch.whole(count) for name, count in role.reads.items()}


def _need_groups(role: Role, part: Channels) -> dict[str, Channels]:
    return {role.source: ch.scaled(part, role.reads[role.source], role.channels)}


def _need_same(role: Role, part: Channels) -> dict[str, Channels]:
    return {name: part if count == role.channels else ch.whole(count) for name, count in role.reads.items()}


def _need_named(role: Role, part: Channels) -> dict[str, Channels]:
    return {role.source: _named(role.order, part)}


@lru_cache(maxsize=4096)
def _named(order: tuple[int, ...], part: Channels) -> Channels:
    return ch.of_numbers(order[number] for number in ch.numbers(part) if order[number] != FILLED)


def _need_beside(role: Role, part: Channels) -> dict[str, Channels]:
    found: dict[str, Channels] = {}
    for name, own in inputs_of(role, part):
        found[name] = found.get(name, ch.NONE) | own
    return found


def inputs_of(role: Role, part: Channels) -> Sequence[tuple[str, Channels]]:
    """Of a Concat: what a part of the result takes of each input, in their order."""
    found, offset = [], 0
    for name in role.node.input:
        count = role.reads[name]
        found.append((name, ch.shifted(part & ch.run(offset, offset + count), -offset)))
        offset += count
    return found


_NEEDS: Mapping[Kind, Callable[[Role, Channels], dict[str, Channels]]] = {
    "grouped": _need_groups,
    "channel_wise": _need_same,
    "concat": _need_beside,
    "gather": _need_named,
    "pad": _need_named,
    "flatten": _need_groups,
}
