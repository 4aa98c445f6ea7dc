"""What every device computes and sends, operation by operation: a division written out over tensors.

A device holds a value in pieces: tensors with some of its channels each. What an operation reads is put together from
these, by a Concat or a Gather where need be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgeprune.onnx_files.graph import array, inner_graphs
from edgeprune.partitioning.network import Network
from edgeprune.partitioning.operations import ConstantPart, Move, Op, Program, drop_idle_work
from edgeprune.partitioning.planning import channels as ch
from edgeprune.partitioning.planning.channels import Channels
from edgeprune.partitioning.planning.roles import FILLED, Role, inputs_of
from edgeprune.partitioning.planning.search import Division, Fetch, Step, addend
from edgeprune.partitioning.tensors import Tensors, bare


def write_program(division: Division, network: Network, names: Sequence[str], macs: Mapping[str, int]) -> Program:
    """The program of a division for devices of these names; `macs`: of a node, by the first value that it writes."""
    program = _Writer(division, network, names, macs).write()
    while drop_idle_work(program):
        pass
    return program


class _Writer:
    def __init__(self, division: Division, network: Network, names: Sequence[str], macs: Mapping[str, int]) -> None:
        self.division, self.network, self.names, self.macs = division, network, tuple(names), macs
        self.program = Program(Tensors(network), tuple([] for _ in names))
        self.pieces: list[dict[str, list[tuple[Channels, str]]]] = [defaultdict(list) for _ in names]
        self.fetches: dict[tuple[str, int], list[Fetch]] = defaultdict(list)
        for fetch in (*(fetch for step in division.steps for fetch in step.fetches), *division.deliveries):
            self.fetches[fetch.value, fetch.source].append(fetch)
        self.sent: dict[Fetch, str] = {}
        self.addends: dict[str, str] = {}
        """What one device adds to a value -> the value."""

    def write(self) -> Program:
        for spec in self.network.inputs:
            self._made(spec.name, 0, ch.whole(self.network.channels(spec.name)), spec.name)
        for step in self.division.steps:
            own = {addend(step.role.key, device) for device in range(len(self.names))}
            self._receive([fetch for fetch in step.fetches if fetch.value not in own])
            if step.choice.addends:
                self._write_addends(step, own)
            else:
                for device, part in enumerate(step.choice.parts):
                    if part:
                        self._write_part(step.role, device, part)
        self._receive(self.division.deliveries)
        for name in self.network.outputs:
            held = self._take(0, name, ch.numbers(ch.whole(self.network.channels(name))))
            if held != name:
                self._add(0, Op(helper.make_node("Identity", [held], [name], name=f"Identity_{name}")))
        return self.program

    def _add(self, device: int, op: Op) -> None:
        self.program.ops[device].append(op)

    def _made(self, value: str, device: int, part: Channels, tensor: str) -> None:
        """A device has a new piece of a value; cut out of it what others will get, so that it is sent at once."""
        self.pieces[device][value].append((part, tensor))
        for fetch in self.fetches.get((value, device), ()):
            if fetch not in self.sent:
                self.sent[fetch] = self._take(device, value, ch.numbers(fetch.channels), for_device=fetch.to)

    def _receive(self, fetches: Sequence[Fetch]) -> None:
        for fetch in fetches:
            tensor, held = self.sent[fetch], self.pieces[fetch.to][fetch.value]
            if (fetch.channels, tensor) not in held:
                held.append((fetch.channels, tensor))
                self.program.moves.append(Move(tensor, fetch.source, fetch.to))

    def _write_part(self, role: Role, device: int, part: Channels) -> None:
        """A device's part of a node; of one that is computed whole, all of its results."""
        if role.kind == "gather":
            wanted = tuple(role.order[number] for number in ch.numbers(part))
            self._made(role.key, device, part, self._take(device, role.source, wanted, as_value=(role.key, part)))
            return
        node, share = bare(role.node), 1.0
        if role.kind == "concat":
            node.ClearField("input")
            node.input.extend(self._take(device, name, ch.numbers(own)) for name, own in inputs_of(role, part) if own)
            if len(node.input) == 1:
                self._made(role.key, device, part, node.input[0])
                return
        else:
            needs = role.needs(part)
            self._read(node, device, {name: self._take(device, name, ch.numbers(own)) for name, own in needs.items()})
        is_whole = role.kind in ("whole", "lone") or part == ch.whole(role.channels)
        if not is_whole:
            share = ch.size(part) / role.channels
            _narrow(node, role, part)
        outputs = [name for name in role.node.output if name]
        for place, name in enumerate(role.node.output):
            if name:
                own = part if len(outputs) == 1 else ch.whole(self.network.channels(name))
                node.output[place] = self._name(device, name, own)
        constants = self._constants(node, role, role.sliced if not is_whole else {}, part)
        own_constants: tuple[TensorProto, ...] = ()
        if role.kind == "pad" and not is_whole:
            del constants[1]
            own_constants = (self._pads(node, role, part),)
        layer = role.node.name if role.is_layer and not is_whole else ""
        macs = round(self.macs.get(role.key, 0) * share)
        self._add(device, Op(node, constants, own_constants, role.key, share, macs, layer))
        for place, name in enumerate(role.node.output):
            if name:
                own = part if len(outputs) == 1 else ch.whole(self.network.channels(name))
                self._made(name, device, own, node.output[place])

    def _pads(self, node: NodeProto, role: Role, part: Channels) -> TensorProto:
        """Let a Pad add those channels that a part of its result has."""
        pads = array(self.network.constants[role.node.input[1]]).reshape(-1).copy()
        held = [number for number in range(role.channels) if role.order[number] != FILLED]
        added = [n for n in ch.numbers(part) if role.order[n] == FILLED]
        pads[1] = sum(number < held[0] for number in added)
        pads[1 + len(pads) // 2] = len(added) - pads[1]
        node.input[1] = f"{node.output[0]}_pads"
        return numpy_helper.from_array(pads.astype(np.int64), node.input[1])

    def _write_addends(self, step: Step, own: set[str]) -> None:
        role, parts = step.role, step.choice.parts
        found: list[str] = []
        everything = ch.whole(role.channels)
        for device, part in enumerate(step.choice.addends):
            if not part:
                continue
            node = bare(role.node)
            node.input[0] = self._take(device, role.source, ch.numbers(part))
            if found and role.bias is not None:
                del node.input[role.bias :]  # the first addend has it
            value = addend(role.key, device)
            self.addends[value] = role.key
            node.output[0] = self.program.tensors.new(value, role.key, everything)
            constants = self._constants(node, role, role.summed, part)
            share = ch.size(part) / role.reads[role.source]
            macs = round(self.macs.get(role.key, 0) * share)
            self._add(device, Op(node, constants, key=role.key, share=share, macs=macs, layer=role.node.name))
            self._made(value, device, everything, node.output[0])
            found.append(value)
        self._receive([fetch for fetch in step.fetches if fetch.value in own])
        for device, part in enumerate(parts):
            if part:
                read = [self._take(device, value, ch.numbers(part)) for value in found]
                name = self._name(device, role.key, part)
                self._add(device, Op(helper.make_node("Sum", read, [name], name=f"Sum_{name}")))
                self._made(role.key, device, part, name)

    def _read(self, node: NodeProto, device: int, tensors: Mapping[str, str]) -> None:
        """Let a node read its data by the names that they have on the device."""
        for place, name in enumerate(node.input):
            node.input[place] = tensors.get(name, name)
        if any(inner_graphs(node)):  # which know them by the network's names
            for name, tensor in tensors.items():
                if tensor != name:
                    self._add(device, Op(helper.make_node("Identity", [tensor], [name], name=f"Identity_{name}")))

    def _constants(
        self, node: NodeProto, role: Role, sliced: Mapping[int, int], part: Channels
    ) -> dict[int, ConstantPart]:
        """What a node, as it is on the device, reads of the network's constants."""
        found = {}
        for place, name in enumerate(role.node.input):
            if place < len(node.input) and name in self.network.constants:
                axis = sliced.get(place)
                found[place] = ConstantPart(name) if axis is None else ConstantPart(name, axis, part)
        return found

    def _name(self, device: int, value: str, part: Channels) -> str:
        """Of a new tensor: the network's own where it is the whole value, but for an output that the host lacks yet."""
        is_whole = part == ch.whole(self.network.channels(value))
        known = any(tensor == value for _, tensor in self.pieces[device][value])
        if is_whole and not known and (device == 0 or value not in self.network.outputs):
            return value
        return self.program.tensors.new(f"{value}@{self.names[device]}", value, part)

    def _take(
        self,
        device: int,
        value: str,
        wanted: tuple[int, ...],
        *,
        for_device: int | None = None,
        as_value: tuple[str, Channels] | None = None,
    ) -> str:
        """A tensor with these channels of a value in this order. `for_device`: which gets it; `as_value`: the value
        and its channels that these are then."""
        pieces = self.pieces[device][value]
        for part, tensor in pieces:
            if ch.numbers(part) == wanted:
                return tensor
        part = ch.of_numbers(wanted)
        around = [piece for piece in pieces if not ch.without(part, piece[0])]
        if around:
            held, source = min(around, key=lambda piece: ch.size(piece[0]))
            order = ch.numbers(held)
        else:
            source, order = self._joined(device, value, part)
        if order == wanted:
            return source
        place = {number: position for position, number in reversed(list(enumerate(order)))}
        if as_value is not None:
            name = self._name(device, *as_value)
        elif for_device is None and wanted == ch.numbers(part) and value not in self.addends:
            name = self._name(device, value, part)
        else:
            owner = self.names[device if for_device is None else for_device]
            name = self.program.tensors.new(f"{value}@{owner}", self.addends.get(value, value), part)
        index = f"{name}_channels"
        numbers = numpy_helper.from_array(np.asarray([place[number] for number in wanted], np.int64), index)
        node = helper.make_node("Gather", [source, index], [name], name=f"Gather_{name}", axis=1)
        key, share = "", 1.0
        if as_value is not None:  # the network's own Gather
            key, share = as_value[0], len(wanted) / self.network.channels(as_value[0])
        self._add(device, Op(node, own=(numbers,), key=key, share=share, is_cut=for_device is not None))
        if as_value is None and wanted == ch.numbers(part):
            pieces.append((part, name))
        return name

    def _joined(self, device: int, value: str, part: Channels) -> tuple[str, tuple[int, ...]]:
        """A Concat of pieces that hold these channels, and the order in which it has them."""
        rest, chosen = part, []
        pieces = self.pieces[device][value]
        while rest:
            best = max(pieces, key=lambda piece: ch.size(piece[0] & rest))
            chosen.append(best)
            rest = ch.without(rest, best[0])
        chosen.sort(key=lambda piece: piece[0] & -piece[0])  # by the first channel of each
        order = tuple(number for own, _ in chosen for number in ch.numbers(own))
        held = ch.of_numbers(order)
        if order == ch.numbers(held):
            name = self._name(device, value, held)
        else:  # in another order, or some channels twice
            name = self.program.tensors.new(f"{value}@{self.names[device]}", value, ch.whole(len(order)))
        node = helper.make_node("Concat", [tensor for _, tensor in chosen], [name], name=f"Concat_{name}", axis=1)
        self._add(device, Op(node))
        if order == ch.numbers(held):
            pieces.append((held, name))
        return name, order


def _narrow(node: NodeProto, role: Role, part: Channels) -> None:
    """Fit a node's settings to a part of its result."""
    if role.kind == "flatten":
        node.op_type = "Flatten"
        node.ClearField("attribute")
        del node.input[1:]
        node.attribute.append(helper.make_attribute("axis", 1))
    for attribute in node.attribute:
        if role.kind == "grouped" and attribute.name == "group":
            attribute.i = ch.size(part) * role.units // role.channels
