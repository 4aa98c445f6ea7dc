"""`edgeprune tune --target all`: the forms that are fastest here, then dense and pruned in every runtime in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.names import MODEL, RUNTIMES
from edgeprune.bundles.writing import check_update, updated_bundle, write_manifest
from edgeprune.deployment.candidates import (
    RuntimeOptions,
    full_candidates,
    has_choice,
    known_accuracies,
    metric_and_source,
    quantised_candidates,
)
from edgeprune.deployment.keep_runtime import keep_best
from edgeprune.deployment.lower_bundle import LowerOptions
from edgeprune.deployment.parity import TOLERANCE
from edgeprune.errors import GateError, InputError
from edgeprune.io import progress
from edgeprune.io.files import pretty_json
from edgeprune.onnx_files.inputs import static_batch
from edgeprune.onnx_files.model import load_model
from edgeprune.pipeline.tune import tune
from edgeprune.profiling.agreement import References
from edgeprune.profiling.environment import current_environment
from edgeprune.profiling.runtimes.apart import run_together
from edgeprune.profiling.runtimes.joint import Candidate, Job
from edgeprune.profiling.runtimes.record import RuntimeRow, RuntimesRecord, files_left_by
from edgeprune.profiling.runtimes.rows import best_of, rows_of
from edgeprune.profiling.setup import Which
from edgeprune.profiling.subject import Subject


def tune_runtimes(
    folder: Path, options: RuntimeOptions, *, keeps_best: bool = False, input_size: Sequence[int] = ()
) -> RuntimesRecord:
    """Write the bundle's model with the forms that are fastest in ONNX Runtime (or in the first of the targets that
    forms can be chosen for), and then as `measure_runtimes`."""
    options.check()
    own = options.own_target
    if own and _has_choice(folder):
        chosen = LowerOptions(options.device_profile, replace(options.tune, target=own))
        try:
            tune(folder, chosen, input_size)
        except GateError as error:  # it may be right as planned, and others may be right anyway
            progress.note(f"no forms are chosen for {own}: {error}")
    return measure_runtimes(folder, options, keeps_best=keeps_best, input_size=input_size)


def measure_runtimes(
    folder: Path, options: RuntimeOptions, *, keeps_best: bool = False, input_size: Sequence[int] = ()
) -> RuntimesRecord:
    """Time dense and pruned in all of these runtimes in turn, and keep the record in the bundle; with `keeps_best` also
    the files of the fastest, in its runtime's format.

    A runtime that refuses the network, gives other outputs than ONNX Runtime, or fails is a row with the reason. Where
    that is all of them, the first reason is raised, and nothing is written.
    """
    options.check()
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as text:
        temporary = Path(text)
        subject = Subject.of(folder).with_input_size(input_size, temporary / "sized")
        check_update(folder)
        batch = static_batch(load_model(subject.pruned))
        if batch and options.tune.batch_size == 1:
            options = replace(options, tune=replace(options.tune, batch_size=batch))
        measured = _measured(subject, options, temporary)
        record, left = measured.record, files_left_by(folder)
        if not any(row.pruned for row in record.rows):
            raise _first_error(record)
        _keep(folder, record)
        if keeps_best and record.best is None:
            progress.note("nothing is kept: no network that was measured may be used")
        if keeps_best and record.best is not None:
            files = measured.files[f"{record.best.target} {record.best.precision}"]
            manifest = open_bundle(folder).manifest
            tolerance = manifest.parity.tolerance if manifest.parity else TOLERANCE
            with updated_bundle(folder) as stage:
                for name in set(left) & manifest.files.keys():
                    (stage / name).unlink()
                record = keep_best(stage, record, files, tolerance)
                (stage / RUNTIMES).write_bytes(pretty_json(record))
                write_manifest(stage, manifest)
    return record


@dataclass(frozen=True)
class _Measured:
    record: RuntimesRecord
    files: Mapping[str, Mapping[Which, Path]]
    """Candidate's key -> the networks that ran."""


def _measured(subject: Subject, options: RuntimeOptions, temporary: Path) -> _Measured:
    settings, references = options.profile_options(), temporary / "references"
    references.mkdir()
    References(subject.networks, settings.seed, settings.threads, references).write(settings.batch_sizes)
    full = full_candidates(subject, options, temporary / "forms")
    known = known_accuracies(subject, options, full)
    ready, refused, unusable = list[Candidate](), tuple[RuntimeRow, ...](), tuple[str, ...]()
    warnings: tuple[str, ...] = ()
    if "fp32" in options.precisions:
        ready += full
    if "int8" in options.precisions:
        quantised = quantised_candidates(subject, options, full, temporary / "int8")
        ready += quantised.ready
        refused, unusable, warnings = quantised.refused, quantised.unusable, quantised.warnings
        known += quantised.accuracies
    environment = current_environment(settings.threads)
    together = run_together(Job(tuple(ready), subject, settings, references))
    rows, fastest = rows_of(ready, together, refused, unusable)
    rows = tuple(_with_accuracy(row, known) for row in rows)
    best, ties = best_of(rows)
    metric, data = metric_and_source(subject, options)
    record = RuntimesRecord(
        environment=environment,
        batch_size=options.tune.batch_size,
        seed=options.tune.seed,
        time_limit_s=settings.time_limit_s,
        rows=rows,
        fastest_dense=fastest,
        best=best,
        ties=ties,
        metric=metric,
        data=data,
        missing=options.missing,
        warnings=(*warnings, *together.warnings),
    )
    return _Measured(record, {candidate.key: candidate.files for candidate in ready})


def _with_accuracy(row: RuntimeRow, known: Sequence[tuple[str, str, float]]) -> RuntimeRow:
    found = {which: value for key, which, value in known if key == f"{row.target} {row.precision}"}
    if row.error or not found:
        return row
    return msgspec.structs.replace(row, accuracy_dense=found.get("dense"), accuracy_pruned=found.get("pruned"))


def _first_error(record: RuntimesRecord) -> Exception:
    """Of rows none of which has figures."""
    row = record.rows[0]
    if row.kind == "bug":
        return RuntimeError(row.error)
    return GateError(row.error) if row.kind == "gate" else InputError(row.error)


def _keep(folder: Path, record: RuntimesRecord) -> None:
    """The record goes into the bundle; reports that do not know of it go."""
    bundle = open_bundle(folder)
    with updated_bundle(folder, replacing=(RUNTIMES,)) as stage:
        (stage / RUNTIMES).write_bytes(pretty_json(record))
        for name in bundle.manifest.files:
            if name.startswith("report."):
                (stage / name).unlink()
        write_manifest(stage, bundle.manifest)


def _has_choice(folder: Path) -> bool:
    bundle = open_bundle(folder)
    if not bundle.has(MODEL):
        raise InputError(
            "holds no ONNX model yet", where=folder, remedy=f"edgeprune export {folder} --tune -o OUT exports and tunes"
        )
    return has_choice(Subject.of(folder))
