"""The report for machines: every figure as JSON, and the layers as CSV."""

from __future__ import annotations

import csv
import io

import msgspec

from edgeprune.bundle import pretty_json
from edgeprune.report.contents import Contents
from edgeprune.report.formatting import clean
from edgeprune.report.headline import headline_rows

SCHEMA_VERSION = 1
_LAYER_FIELDS = (
    "name",
    "op_type",
    "lowering",
    "groups",
    "in_per_group",
    "out_per_group",
    "dense_macs",
    "macs",
    "executed_macs",
    "dense_ms",
    "pruned_ms",
    "gather_ms",
    "reorder_ms",
    "theoretical_speedup",
    "realistic_speedup",
    "efficiency",
    "cause",
)


def to_json(contents: Contents) -> str:
    """All that the other formats show, unrounded; null for what the bundle does not hold."""
    plan = contents.plan
    layers = [
        {"name": entry.name, "groups": entry.groups, "kept": entry.kept, "note": entry.note}
        for entry in (plan.layers if plan else ())
    ]
    return pretty_json(
        {
            "schema_version": SCHEMA_VERSION,
            "manifest": contents.manifest,
            "headline": dict(headline_rows(contents.manifest, contents.profile)),
            "plan": {"sha256": plan.sha256(), "layers": layers} if plan else None,
            "profile": contents.profile,
            "partition": contents.split,
            "method": contents.record,
        }
    ).decode()


def to_csv(contents: Contents) -> str:
    """One row for every layer of every result, with the result it belongs to in front."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("target", "batch_size", "threads", *_LAYER_FIELDS))
    for result in contents.profile.results if contents.profile else ():
        for layer in result.layers:
            fields = msgspec.structs.asdict(layer)
            row = (result.target, result.batch_size, result.threads, *(fields[name] for name in _LAYER_FIELDS))
            writer.writerow(_cell(value) for value in row)
    return text.getvalue()


def _cell(value: object) -> object:
    """Spreadsheets take text that starts with these characters for a formula, and run it."""
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
