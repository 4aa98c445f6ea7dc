"""A division written out as subgraphs, with what is predicted of it: a run, event by event, and the memory it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeprune.onnx_files.graph import used_values
from edgeprune.partitioning.operations import Op, Program
from edgeprune.partitioning.planning.costs import Costs
from edgeprune.partitioning.planning.roles import Role
from edgeprune.partitioning.planning.search import Division
from edgeprune.partitioning.planning.simulate import Message, Piece, Timeline, simulate
from edgeprune.partitioning.program import write_program
from edgeprune.partitioning.subgraphs import Subgraph, subgraphs_of


@dataclass(frozen=True)
class Written:
    """A division with its subgraphs."""

    division: Division
    program: Program
    subgraphs: tuple[Subgraph, ...]
    messages: tuple[Message, ...]
    timeline: Timeline
    peaks: tuple[float, ...]
    """Bytes of memory per device: its weights, and the most that it holds of activations at a time."""

    @property
    def is_divided(self) -> bool:
        """Whether several devices compute."""
        return len({subgraph.device for subgraph in self.subgraphs if subgraph.macs}) > 1


def write_out(division: Division, costs: Costs, macs: Mapping[str, int]) -> Written:
    """The division for the devices of `costs`; `macs`: of a node, by the first value that it writes."""
    names = tuple(device.name for device in costs.devices)
    program = write_program(division, costs.network, names, macs)
    subgraphs = tuple(subgraphs_of(program, names))
    roles = {step.role.key: step.role for step in division.steps}
    pieces = [
        Piece(part.device, part.stage, math.fsum(_seconds(op, part.device, roles, program, costs) for op in part.ops))
        for part in subgraphs
    ]
    messages = tuple(_messages(program, subgraphs))
    timeline = simulate(pieces, messages, costs.link)
    peaks = tuple(_peak(device, program, subgraphs) for device in range(len(names)))
    return Written(division, program, subgraphs, messages, timeline, peaks)


def _seconds(op: Op, device: int, roles: Mapping[str, Role], program: Program, costs: Costs) -> float:
    if op.key:
        return costs.part_seconds(device, roles[op.key], op.share)
    written = sum(program.tensors.bytes_of(name) for name in op.node.output)
    return costs.moving_seconds(device, (1 + len(op.node.input)) * written if op.node.op_type == "Sum" else 2 * written)


def _messages(program: Program, subgraphs: Sequence[Subgraph]) -> list[Message]:
    """What is moved between the devices, for the first subgraph that reads it."""
    makers = {(part.device, tensor): part.stage for part in subgraphs for tensor in part.made}
    readers: dict[tuple[int, str], int] = {}
    for part in subgraphs:  # by stage
        for tensor in part.read:
            readers.setdefault((part.device, tensor), part.stage)
    return [
        Message(
            move.source,
            move.to,
            move.tensor,
            program.tensors.bytes_of(move.tensor),
            readers[move.to, move.tensor],
            makers.get((move.source, move.tensor)),
        )
        for move in program.moves
        if (move.to, move.tensor) in readers
    ]


def _peak(device: int, program: Program, subgraphs: Sequence[Subgraph]) -> float:
    """Bytes of a device's weights, and of the tensors that it holds at the worst time, each from when it is made or
    first read until it is read last."""
    own = [part for part in subgraphs if part.device == device]
    held = {name for part in own for name in part.constants}
    ops = [op for part in own for op in part.ops]
    last: dict[str, int] = {}
    for place, op in enumerate(ops):
        last.update((name, place) for name in used_values(op.node))
    if device == 0:
        last |= dict.fromkeys(program.tensors.network.outputs, len(ops))
    live, most = dict[str, int](), 0
    constant = program.tensors.network.constants
    for place, op in enumerate(ops):
        for name in {*used_values(op.node), *op.node.output} - held:
            if name and name not in live and name not in constant:
                live[name] = program.tensors.bytes_of(name)
        most = max(most, sum(live.values()))
        live = {name: size for name, size in live.items() if last.get(name, -1) > place}
    return sum(part.weight_bytes for part in own) + most
