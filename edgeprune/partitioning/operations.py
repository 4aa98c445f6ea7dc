"""The operations of each device, and what is moved between them, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnx import NodeProto, TensorProto

from edgeprune.onnx_files.graph import used_values
from edgeprune.partitioning.planning.channels import NONE, Channels
from edgeprune.partitioning.tensors import Tensors


@dataclass(frozen=True)
class ConstantPart:
    """A constant that an operation reads, or some of its channels along an axis."""

    name: str
    axis: int | None = None
    channels: Channels = NONE


@dataclass(frozen=True)
class Op:
    """One operation on one device."""

    node: NodeProto
    """Its data have the names that they have on the device."""
    constants: Mapping[int, ConstantPart] = field(default_factory=dict)
    """By the input's place."""
    own: tuple[TensorProto, ...] = ()
    """Constants that the network does not have."""
    key: str = ""
    """The first value that the network's node writes; empty where the operation puts pieces together."""
    share: float = 1.0
    """Of that node's work."""
    macs: int = 0
    layer: str = ""
    """The layer that it is a part of; empty where it is no layer, or all of one."""
    is_cut: bool = False
    """Whether it only cuts out what is sent."""


@dataclass(frozen=True)
class Move:
    """A tensor on its way between two devices."""

    tensor: str
    source: int
    to: int


@dataclass
class Program:
    """The operations of each device in order, and what is moved between them."""

    tensors: Tensors
    ops: tuple[list[Op], ...]
    moves: list[Move] = field(default_factory=list)


def drop_idle_work(program: Program) -> bool:
    """Leave out what nothing reads (a device may hold what only others go on with); whether there was any."""
    outputs = set(program.tensors.network.outputs)
    before = sum(map(len, program.ops)), len(program.moves)
    read: list[set[str]] = []
    for device, ops in enumerate(program.ops):
        wanted = {move.tensor for move in program.moves if move.source == device} | (set() if device else outputs)
        kept = []
        for op in reversed(ops):
            if wanted & set(op.node.output):
                kept.append(op)
                wanted |= used_values(op.node)
        ops[:] = reversed(kept)
        read.append(wanted)
    program.moves[:] = [move for move in program.moves if move.tensor in read[move.to]]
    return before != (sum(map(len, program.ops)), len(program.moves))
