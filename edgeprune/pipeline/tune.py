"""`edgeprune tune`: the forms that are fastest here, and the bundle's model written anew with them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.names import ENGINES, LOWERING, MODEL, PARTITION, PROFILE
from edgeprune.bundles.writing import check_update, updated_bundle, write_manifest
from edgeprune.deployment.lower_bundle import LowerOptions, lower_into
from edgeprune.deployment.parity import TOLERANCE
from edgeprune.errors import InputError
from edgeprune.io import progress
from edgeprune.io.files import sha256_of
from edgeprune.lowering.record import LoweringRecord, load_lowering
from edgeprune.profiling.precise_models import is_converted


def tune(folder: Path, options: LowerOptions) -> tuple[Bundle, LoweringRecord]:
    """`edgeprune tune`: measures here which forms are fastest, and writes the bundle's model anew with them.

    If that changes the model, what was measured of it before is removed; reports are in any case, for they show how
    the forms were chosen before.
    """
    options.check()
    bundle = open_bundle(folder)
    if bundle.has(PARTITION):
        raise InputError("is split already", where=folder, remedy="tune the bundle that it was made from")
    if not bundle.has(MODEL):
        raise InputError(
            "holds no ONNX model yet", where=folder, remedy=f"edgeprune export {folder} --tune -o OUT exports and tunes"
        )
    check_update(folder)
    with updated_bundle(folder) as stage:
        tolerance = bundle.manifest.parity.tolerance if bundle.manifest.parity else TOLERANCE
        manifest = lower_into(stage, bundle.manifest, options, tolerance)
        if not (stage / LOWERING).is_file():
            raise InputError("has no grouped layer", where=folder, expected="a network that was pruned into groups")
        stale = _stale(bundle.manifest.files, stage)
        for name in stale:
            (stage / name).unlink()
        write_manifest(stage, manifest)
    if told := [name for name in stale if name == PROFILE or name.startswith("report.")]:
        verb, why = ("profile", "the model") if PROFILE in told else ("report", "the choice of forms")
        progress.note(
            f"removed {', '.join(told)}, which told of {why} before: `edgeprune {verb} {shlex.quote(str(folder))}` "
            "writes it anew"
        )
    tuned = open_bundle(folder)
    return tuned, load_lowering(tuned.path(LOWERING))


def _stale(before: Mapping[str, str], stage: Path) -> list[str]:
    """Which of a bundle's files (name -> SHA-256 before its model was written anew) tell of what is no more."""
    model = (MODEL, f"{MODEL}.data")
    now = {name: sha256_of(stage / name) for name in model if (stage / name).is_file()}
    is_same = now == {name: before[name] for name in model if name in before}

    def is_of_model(name: str) -> bool:
        return name == PROFILE or name.startswith(f"{ENGINES}/") or is_converted(name)

    return [name for name in before if name.startswith("report.") or (is_of_model(name) and not is_same)]
