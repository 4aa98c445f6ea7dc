"""The plan: what a method decided, as data. Readable, hashable, replayable; no weights in it.

All channel and filter numbers are those of the original network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edgeprune.io.json_files import read_json
from edgeprune.plans.permutation import Selection

SCHEMA_VERSION = 2


class LayerPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One layer's part of the plan. Without `filters` and `inputs` the layer stays dense, and `note` says why.

    A dense layer may still become thinner: by the coupled sets that it reads and writes, or by `kept_filters`.
    """

    name: str
    filters: tuple[tuple[int, ...], ...] = ()
    """Per group, its filters (original output channels), in order."""
    inputs: tuple[tuple[int, ...], ...] = ()
    """Per group, the original input channels that it reads, in order. Groups may share channels."""
    note: str = ""
    kept_filters: tuple[int, ...] = ()
    """The filters that a layer at the end of a residual branch keeps, ascending, where the others are left out of the
    add (paper 004, eq. 4.8) and the coupled set stays whole; empty if the layer keeps what its set keeps."""
    left_out: bool = False
    """The branch that this layer ends is left out of the add, with all layers that only it needs (`Layer.branch`)."""
    asked_groups: int = 0
    """Groups that were asked for, where alignment took others; 0: as asked."""
    asked_kept: int = 0
    """Kept inputs a group that were asked for, where alignment took others; 0: as asked."""

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


class SetPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is left of one coupled set's channels. A set that the plan does not name keeps all of them.

    The set of a concatenation is never named: what it keeps follows from its parts.
    """

    name: str
    kept: tuple[int, ...]
    """Ascending."""
    merged: tuple[tuple[int, ...], ...] = ()
    """Clusters of equal channels, ascending: the first is kept, and those who read the set read it in place of the
    others (their input channels are summed; paper 001, C-SGD)."""
    constant: tuple[int, ...] = ()
    """Channels that hold one value everywhere, whatever the image, ascending: the first is kept and stands for all
    (the input channels of those who read the set are summed in proportion to the values)."""
    note: str = ""


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one run of a method decided for every layer of a network, in forward order."""

    method: str
    settings: dict[str, Any]
    """Every setting of the method with the value that was used."""
    seed: int
    layers: tuple[LayerPlan, ...]
    sets: tuple[SetPlan, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def grouped(self) -> dict[str, LayerPlan]:
        """The layers that become grouped convolutions, by name."""
        return {layer.name: layer for layer in self.layers if not layer.is_dense}

    @property
    def thins(self) -> bool:
        """Whether channels, filters or branches are left out, beside what is grouped."""
        return bool(self.sets) or any(layer.kept_filters or layer.left_out for layer in self.layers)

    def to_json(self) -> bytes:
        """Canonical JSON: the same plan gives the same bytes."""
        return msgspec.json.encode(self, order="sorted")

    def to_readable_json(self) -> bytes:
        """The same JSON with one layer or coupled set a line."""
        head = msgspec.json.encode(
            {name: getattr(self, name) for name in self.__struct_fields__ if name not in ("layers", "sets")}
        )
        return head[:-1] + b',"sets":' + _one_a_line(self.sets) + b',"layers":' + _one_a_line(self.layers) + b"}\n"

    def sha256(self) -> str:
        return hashlib.sha256(self.to_json()).hexdigest()


def _one_a_line(entries: Sequence[LayerPlan] | Sequence[SetPlan]) -> bytes:
    lines = b",\n  ".join(map(msgspec.json.encode, entries))
    return b"[\n  " + lines + b"\n]" if entries else b"[]"


def load_plan(path: Path) -> Plan:
    """Read a plan from JSON; InputError if the file is missing, no plan, or of another schema."""
    remedy = "prune again with this version of edgeprune"
    return read_json(path, Plan, SCHEMA_VERSION, what="plan", expected="a plan.json of edgeprune", remedy=remedy)
