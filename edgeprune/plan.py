"""The plan: what a method decided, as data. Readable, hashable, replayable; no weights in it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgeprune.errors import InputError, first_line
from edgeprune.graph import Graph, Layer
from edgeprune.permutation import Selection

SCHEMA_VERSION = 1


class LayerPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One layer's part of the plan. Without `filters` and `inputs` the layer stays dense, and `note` says why."""

    name: str
    filters: tuple[tuple[int, ...], ...] = ()
    """Per group, its filters (original output channels), in order."""
    inputs: tuple[tuple[int, ...], ...] = ()
    """Per group, the original input channels that it reads, in order. Groups may share channels."""
    note: str = ""

    @property
    def groups(self) -> int:
        return len(self.filters) or 1

    @property
    def is_dense(self) -> bool:
        return not self.filters

    @property
    def kept(self) -> int:
        """Input channels that each group reads; 0 for a dense layer."""
        return len(self.inputs[0]) if self.inputs else 0

    def writes(self) -> Selection:
        """The channels in the order in which the grouped convolution writes them."""
        return Selection.permutation(f for group in self.filters for f in group)

    def reads(self, in_channels: int) -> Selection:
        """The input channels in the order in which the grouped convolution reads them: group after group."""
        return Selection.concatenated(self.inputs, in_channels)


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one run of a method decided for every layer of a network, in forward order."""

    method: str
    settings: dict[str, Any]
    """Every setting of the method with the value that was used."""
    seed: int
    layers: tuple[LayerPlan, ...]
    schema_version: int = SCHEMA_VERSION

    def grouped(self) -> dict[str, LayerPlan]:
        """The layers that become grouped convolutions, by name."""
        return {layer.name: layer for layer in self.layers if not layer.is_dense}

    def to_json(self) -> bytes:
        """Canonical JSON: the same plan gives the same bytes."""
        return msgspec.json.encode(self, order="sorted")

    def to_readable_json(self) -> bytes:
        """The same JSON with one layer a line."""
        head = msgspec.json.encode({name: getattr(self, name) for name in self.__struct_fields__ if name != "layers"})
        layers = b",\n  ".join(msgspec.json.encode(layer) for layer in self.layers)
        return head[:-1] + b',"layers":[\n  ' + layers + b"\n]}\n"

    def sha256(self) -> str:
        return hashlib.sha256(self.to_json()).hexdigest()


def load_plan(path: Path) -> Plan:
    """Read a plan from JSON; InputError if the file is missing, no plan, or of another schema."""
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, expected="a plan (plan.json)") from error
    except msgspec.DecodeError as error:
        raise InputError(
            f"is not a plan: {first_line(error)}", where=path, expected="a plan.json of edgeprune"
        ) from error
    if plan.schema_version != SCHEMA_VERSION:
        raise InputError(
            f"has plan schema {plan.schema_version}",
            where=path,
            expected=f"schema {SCHEMA_VERSION}",
            remedy="prune again with this version of edgeprune",
        )
    return plan


def check_plan(plan: Plan, graph: Graph) -> list[str]:
    """Hold a plan against a network: a list of sentences, one a fault; empty if the plan can be carried out."""
    faults: list[str] = []
    seen: set[str] = set()
    for entry in plan.layers:
        if entry.name not in graph:
            faults.append(f"{entry.name}: the network has no such layer.")
            continue
        if entry.name in seen:
            faults.append(f"{entry.name}: the plan names this layer twice.")
        seen.add(entry.name)
        if not entry.is_dense or entry.inputs:
            faults.extend(f"{entry.name}: {fault}" for fault in _layer_faults(entry, graph.layer(entry.name)))
    faults.extend(
        f"{layer.name}: the plan says nothing of this layer." for layer in graph.layers if layer.name not in seen
    )
    return faults


def _layer_faults(entry: LayerPlan, layer: Layer) -> Iterator[str]:
    if layer.kind != "conv" or layer.groups != 1:
        yield "only a convolution with one group can be made grouped."
    if layer.refusal:
        yield f"this layer cannot be changed: {layer.refusal}."
    if len(entry.filters) != len(entry.inputs):
        yield f"{len(entry.filters)} groups of filters but {len(entry.inputs)} groups of input channels."
    for what, groups in (("have {} filters", entry.filters), ("read {} input channels", entry.inputs)):
        sizes = sorted({len(group) for group in groups})
        if len(sizes) > 1:
            yield f"groups {what.format(sizes)}, expected the same number in each."
    if any(not group for group in entry.inputs):
        yield "a group reads no input channel."
    if sorted(f for group in entry.filters for f in group) != list(range(layer.out_channels)):
        yield f"the groups do not hold each of the {layer.out_channels} filters exactly once."
    for number, group in enumerate(entry.inputs):
        if len(set(group)) != len(group):
            yield f"group {number} reads an input channel twice."
        if any(not 0 <= channel < layer.in_channels for channel in group):
            yield f"group {number} reads a channel outside 0..{layer.in_channels - 1}."


def planned_macs(plan: Plan, graph: Graph) -> dict[str, int]:
    """Multiply-adds a sample of every layer under the plan: |filters| |inputs| k k positions for each group."""
    by_name: Mapping[str, LayerPlan] = plan.grouped()
    macs = {}
    for layer in graph.layers:
        entry = by_name.get(layer.name)
        macs[layer.name] = (
            layer.macs if entry is None else _kernels(entry) * math.prod(layer.kernel_size) * layer.positions
        )
    return macs


def planned_params(plan: Plan, graph: Graph) -> int:
    """Parameters of the network under the plan."""
    by_name = plan.grouped()
    weights = sum(
        _kernels(by_name[layer.name]) * math.prod(layer.kernel_size) if layer.name in by_name else layer.weight_count
        for layer in graph.layers
    )
    return weights + graph.other_params


def off_block_note(plan: Plan, block: int) -> str:
    """A sentence on the grouped layers whose channels a group miss a target's block; empty if none does."""
    grouped = plan.grouped()
    missed = [e.name for e in grouped.values() if e.kept % block or len(e.filters[0]) % block]
    if not missed:
        return ""
    named = ", ".join(missed[:2]) + (", ..." if len(missed) > 2 else "")
    return (
        f"{len(missed)} of {len(grouped)} grouped layers ({named}) have channels a group that are no multiple of "
        f"{block}, the block of this machine's fast kernels: they may run slower than dense. Choose --groups and "
        f"--rate so that filters and kept channels a group are multiples of {block} (often --groups 2 --rate 0.5), or "
        "leave narrow layers dense with --skip."
    )


def _kernels(entry: LayerPlan) -> int:
    return sum(len(filters) * len(inputs) for filters, inputs in zip(entry.filters, entry.inputs, strict=True))
