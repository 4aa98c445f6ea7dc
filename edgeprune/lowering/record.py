"""`lowering.json`: the form of each grouped layer, how it was chosen, and what the other forms cost. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from edgeprune.bundles.manifest import ParityRecord
from edgeprune.errors import InputError, first_line
from edgeprune.io.json_files import read_json
from edgeprune.lowering.forms import GROUPED, Form, executed_macs
from edgeprune.lowering.layers import GroupedLayer

SCHEMA_VERSION = 1


class LayerChoice(msgspec.Struct, frozen=True):
    """One grouped layer's form."""

    name: str
    form: str
    """`grouped`, `merged:GROUPS`, `padded:BLOCK`, `split` or `dense`."""
    macs: int
    """Multiply-adds a sample under the plan."""
    executed_macs: int
    """Those that the form computes, zeros filled in included."""
    costs: dict[str, float] = {}
    """Form -> milliseconds measured in place, or (chosen by a cost table) predicted ones."""

    @property
    def kind(self) -> str:
        return Form.parse(self.form).kind


class NetworkTime(msgspec.Struct, frozen=True):
    """A whole network that was measured for the last choice."""

    what: str
    p50_ms: float
    speedup: float
    """Over the dense network: ratio of the medians of one run in turn."""


class FromCache(msgspec.Struct, frozen=True):
    """How many times were measured by an earlier run and remembered."""

    forms: int = 0
    """Of layers in their forms, equal layers counted once."""
    networks: int = 0


class LoweringRecord(msgspec.Struct, frozen=True):
    """`lowering.json`."""

    chosen_by: Literal["measured", "predicted"]
    device: str
    """Processor that it was measured on, or the device profile with the cost table."""
    threads: int
    batch_size: int
    runtime: str
    """Name and version of the runtime; empty if nothing was measured."""
    layers: tuple[LayerChoice, ...]
    networks: tuple[NetworkTime, ...] = ()
    """What was measured whole, the dense network first."""
    chosen: str = ""
    """Which of `networks` was taken."""
    pointwise: tuple[str, ...] = ()
    """Linear layers that are written as 1x1 convolutions."""
    from_cache: FromCache = FromCache()
    notes: tuple[str, ...] = ()
    planned_parity: ParityRecord | None = None
    """Of the model with every layer as planned."""
    target: str = "cpu"
    """For which the forms were chosen."""
    schema_version: int = SCHEMA_VERSION

    def planned_macs(self) -> dict[str, int]:
        """Layer -> multiply-adds a sample under the plan."""
        return {layer.name: layer.macs for layer in self.layers}

    def forms(self) -> dict[str, Form]:
        return {layer.name: Form.parse(layer.form) for layer in self.layers}


def layer_choices(
    layers: Mapping[str, GroupedLayer], forms: Mapping[str, Form], costs: Mapping[str, Mapping[Form, float]]
) -> tuple[LayerChoice, ...]:
    """The record's entry of every layer; `costs` in milliseconds."""
    return tuple(
        LayerChoice(
            name,
            str(forms[name]),
            executed_macs(layer, GROUPED),
            executed_macs(layer, forms[name]),
            {str(form): round(ms, 6) for form, ms in costs.get(name, {}).items()},
        )
        for name, layer in layers.items()
    )


def load_lowering(path: Path) -> LoweringRecord:
    """Read `lowering.json`; InputError if it is missing, none, or of another schema."""
    remedy, what = "tune the bundle again", "a bundle's lowering"
    record = read_json(path, LoweringRecord, SCHEMA_VERSION, what="lowering", expected=what, remedy=remedy)
    try:
        record.forms()
    except ValueError as error:
        raise InputError(f"is no lowering: {first_line(error)}", where=path, expected=what, remedy=remedy) from error
    return record
