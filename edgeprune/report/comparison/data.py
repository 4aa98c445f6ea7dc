"""Several runs for machines: every figure as JSON, and the settings as CSV."""

from __future__ import annotations

import csv
import io

import msgspec

from edgeprune.io.files import pretty_json
from edgeprune.profiling.result import Latency, Result
from edgeprune.report.comparison.changes import ChangeRecord, changes
from edgeprune.report.comparison.compared import Compared, differences, other_networks
from edgeprune.report.page.data import SCHEMA_VERSION, cell
from edgeprune.report.words.results import is_settled

_RUN_FIELDS = (
    *("target", "precision", "batch_size", "threads"),
    *("theoretical_speedup", "realistic_speedup", "realistic_low", "realistic_high", "efficiency"),
    *("dense_p50_ms", "pruned_p50_ms", "pruned_p50_low_ms", "pruned_p50_high_ms", "settled"),
    *("dense_macs", "pruned_macs"),
)


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
            "exchanged_bytes": run.split.predicted.bytes_per_inference if run.split else None,
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
            writer.writerow(map(cell, (run.name, run.profile.environment.date, *row)))
    return text.getvalue()


def _without_details(result: Result) -> dict[str, object]:
    """A result without its layers and single runs: the runs' own profiles hold them."""
    fields = {name: value for name, value in msgspec.structs.asdict(result).items() if name != "layers"}
    for which in ("dense", "pruned"):
        if isinstance(taken := fields[which], Latency):
            fields[which] = {name: v for name, v in msgspec.structs.asdict(taken).items() if name != "samples_ms"}
    return fields
