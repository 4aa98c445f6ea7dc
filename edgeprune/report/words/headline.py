"""The figures that matter most, for the report's top and the command line's last table."""

from __future__ import annotations

from edgeprune.bundles.manifest import Accuracy, Count, Manifest
from edgeprune.io import formatting as f
from edgeprune.lowering.record import LoweringRecord
from edgeprune.profiling.result import ProfileResult, Result
from edgeprune.report.words.forms import forms_row
from edgeprune.report.words.results import setting


def headline_rows(
    manifest: Manifest, profile: ProfileResult | None, lowering: LoweringRecord | None = None
) -> list[tuple[str, str]]:
    """Label and value of what a bundle promises and what was measured; what is not known has no row."""
    rows: list[tuple[str, str]] = []
    if manifest.arch:
        method = f", pruned with {f.clean(manifest.method)}" if manifest.method else ""
        rows.append(("Network", f"{f.clean(manifest.arch)}{method}"))
    if manifest.is_plain:
        return rows + plain_rows(manifest)
    if accuracy := manifest.accuracy:
        rows.append((f"{f.clean(accuracy.label)}, dense to pruned", accuracy_change(accuracy)))
        if accuracy.pruned_before_finetune is not None:
            before = f.score(accuracy.pruned_before_finetune, accuracy.metric)
            rows.append((f"{f.clean(accuracy.label)} before fine-tuning", before))
        for name, score in accuracy.others:
            change = f"{f.score(score.dense, name)} to {f.score(score.pruned, name)}"
            rows.append((f"{f.clean(name)}, dense to pruned", change))
    elif manifest.macs:
        rows.append(("Top-1", "not measured: pass --data (and --finetune-epochs) to export"))
    if healing := manifest.healing:
        rows.append((f"On {manifest.calibration_images} images without labels", healing.words))
    for label, counted in (("MACs", manifest.macs), ("Parameters", manifest.params)):
        if counted:
            rows.append((f"{label}, dense to pruned", _change(counted)))
    if lowering:
        rows.append(("Forms", forms_row(lowering, manifest)))
    for result in profile.results if profile else ():
        rows.extend(_speed_rows(result, several=len(profile.results) > 1 if profile else False))
    if parity := manifest.parity:
        verdict = "passed" if parity.passed else "FAILED"
        difference = f"{parity.max_rel:.1e} of the output's range"
        rows.append(("Parity", f"{difference}, {verdict} (tolerance {parity.tolerance:.0e})"))
    if gathers := manifest.gathers:
        steps = "folding and lowering" if lowering else "folding"
        rows.append((f"Gathers, before to after {steps}", f"{gathers.before_fold} to {gathers.after_fold}"))
    return rows


def plain_rows(manifest: Manifest) -> list[tuple[str, str]]:
    """Accuracy and size of a trained network that is not pruned."""
    accuracy, macs, params = manifest.accuracy, manifest.macs, manifest.params
    where = f" ({accuracy.n} images of {f.clean(accuracy.data)})" if accuracy and accuracy.n else ""
    label = f.clean(accuracy.label) if accuracy else ""
    found = (
        (f"{label}{where}", accuracy and f.score(accuracy.dense, accuracy.metric)),
        ("MACs (one sample)", macs and f.count(macs.dense)),
        ("Parameters", params and f.count(params.dense)),
    )
    return [(label, value) for label, value in found if value]


def accuracy_change(accuracy: Accuracy) -> str:
    """91.20 % to 90.80 % (-0.40 points), or in the user's own metric."""
    metric = accuracy.metric
    change = f.score_change(accuracy.pruned - accuracy.dense, metric)
    return f"{f.score(accuracy.dense, metric)} to {f.score(accuracy.pruned, metric)} ({change})"


def ratio(counted: Count) -> float | None:
    """How many times less the pruned network needs."""
    return counted.dense / counted.pruned if counted.pruned else None


def _change(counted: Count) -> str:
    return f"{f.count(counted.dense)} to {f.count(counted.pruned)} ({f.times(ratio(counted))} less)"


def _speed_rows(result: Result, *, several: bool) -> list[tuple[str, str]]:
    where = f" ({setting(result)})"
    if result.dense is None:
        return [(f"Latency p50{where}", f"{f.milliseconds(result.pruned.p50_ms)}; no baseline")]
    change = f"{f.milliseconds(result.dense.p50_ms)} to {f.milliseconds(result.pruned.p50_ms)}"
    rows = [(f"Latency p50, dense to pruned{where}", change)]
    suffix = where if several else ""
    rows.append((f"Theoretical speed-up{suffix}", f.times(result.theoretical_speedup)))
    rows.append((f"Realistic speed-up{suffix}", f.times(result.realistic_speedup)))
    rows.append((f"Efficiency{suffix}", f.percent(result.efficiency)))
    return rows
