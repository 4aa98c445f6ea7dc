"""The report for machines: every figure as JSON, and the layers as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import msgspec

from edgeprune.io.files import pretty_json
from edgeprune.io.formatting import clean
from edgeprune.profiling.result import Latency, Result
from edgeprune.report.comparison.changes import ChangeRecord, changes
from edgeprune.report.comparison.compared import Compared, differences, other_networks
from edgeprune.report.contents import Contents
from edgeprune.report.words.headline import headline_rows
from edgeprune.report.words.results import is_settled

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
_RUN_FIELDS = (
    *("target", "precision", "batch_size", "threads"),
    *("theoretical_speedup", "realistic_speedup", "realistic_low", "realistic_high", "efficiency"),
    *("dense_p50_ms", "pruned_p50_ms", "pruned_p50_low_ms", "pruned_p50_high_ms", "settled"),
    *("dense_macs", "pruned_macs"),
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
    writer.writerows(map(_cell, row) for row in _rows(contents))
    return text.getvalue()


def comparison_to_json(compared: Compared) -> str:
    """Every figure of every run, and the changes against the first run, unrounded."""
    first, *others = compared.runs
    runs = [
        {
            "name": run.name,
            "arch": run.manifest.arch if run.manifest else None,
            "method": run.manifest.method if run.manifest else None,
            "accuracy": run.manifest.accuracy if run.manifest else None,
            "macs": run.manifest.macs if run.manifest else None,
            "params": run.manifest.params if run.manifest else None,
            "environment": run.profile.environment,
            "settings": run.profile.settings,
            "failures": run.profile.failures,
            "results": [_without_details(result) for result in run.profile.results],
        }
        for run in compared.runs
    ]
    found = {run.name: [ChangeRecord.of(one) for one in changes(first, run)] for run in others}
    alike = {"differences": differences(compared.runs), "other_networks": other_networks(compared.runs)}
    told = {"baseline": first.name, "runs": runs, "changes": found, **alike}
    return pretty_json({"schema_version": SCHEMA_VERSION, **told}).decode()


def comparison_to_csv(compared: Compared) -> str:
    """One row for every run and setting."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("run", "date", *_RUN_FIELDS))
    for run in compared.runs:
        for result in run.profile.results:
            dense, (low, high) = result.dense, result.pruned.p50_interval_ms
            speed = result.paired_interval or ("", "")
            row = (
                *(result.target, result.precision, result.batch_size, result.threads),
                *(result.theoretical_speedup, result.realistic_speedup, *speed, result.efficiency),
                *(dense.p50_ms if dense else "", result.pruned.p50_ms, low, high, is_settled(result)),
                *(result.dense_macs, result.pruned_macs),
            )
            writer.writerow(map(_cell, (run.name, run.profile.environment.date, *row)))
    return text.getvalue()


def _without_details(result: Result) -> dict[str, object]:
    """A result without its layers and single runs: the runs' own profiles hold them."""
    fields = {name: value for name, value in msgspec.structs.asdict(result).items() if name != "layers"}
    for which in ("dense", "pruned"):
        if isinstance(taken := fields[which], Latency):
            fields[which] = {name: v for name, v in msgspec.structs.asdict(taken).items() if name != "samples_ms"}
    return fields


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


def _cell(value: object) -> object:
    """Spreadsheets take text that starts with these characters for a formula, and run it."""
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
