"""The report for machines: every figure as JSON, and the layers as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import msgspec

from edgeprune.io.files import pretty_json
from edgeprune.io.formatting import clean
from edgeprune.report.contents import Contents
from edgeprune.report.words.headline import headline_rows

SCHEMA_VERSION = 1
_RESULT_FIELDS = ("target", "batch_size", "threads")
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
    "bytes_moved",
    "intensity",
    "bound_ms",
    "bound_share",
    "provider",
    "cause",
)
_FORM_FIELDS = ("form", "form_chosen_by")


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
            "headline": dict(headline_rows(contents.manifest, contents.profile, contents.lowering)),
            "plan": {"sha256": plan.sha256(), "layers": layers} if plan else None,
            "lowering": contents.lowering,
            "profile": contents.profile,
            "runtimes": contents.runtimes,
            "run": contents.run,
            "partition": contents.split,
            "method": contents.record,
        }
    ).decode()


def to_csv(contents: Contents) -> str:
    """One row for every layer of every result, with the result it belongs to in front; of a bundle that was not
    measured, one for every layer whose form was chosen."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*_RESULT_FIELDS, *_LAYER_FIELDS, *_FORM_FIELDS))
    writer.writerows(map(cell, row) for row in _rows(contents))
    return text.getvalue()


def _rows(contents: Contents) -> Iterator[tuple[object, ...]]:
    record = contents.lowering
    chosen = {(x.name, x.kind): (x.form, record.chosen_by) for x in record.layers} if record else {}
    if contents.profile:
        for result in contents.profile.results:
            for layer in result.layers:
                fields = msgspec.structs.asdict(layer)
                where = (result.target, result.batch_size, result.threads)
                yield (
                    *where,
                    *(fields[name] for name in _LAYER_FIELDS),
                    *chosen.get((layer.name, layer.lowering), ("", "")),
                )
    elif record:
        for choice in record.layers:
            fields = {**msgspec.structs.asdict(choice), "lowering": choice.kind}
            yield ("", 1, "", *(fields.get(name, "") for name in _LAYER_FIELDS), choice.form, record.chosen_by)


def cell(value: object) -> object:
    """Spreadsheets take text that starts with these characters for a formula, and run it."""
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
