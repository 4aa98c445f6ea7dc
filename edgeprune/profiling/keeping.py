"""What a bundle keeps of its profiles: the results, the networks in other precisions, and engines; and what a new
profile means for those of before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeprune import progress
from edgeprune.bundle import ENGINES, PROFILE, copy_files, pretty_json, updated_bundle, write_manifest
from edgeprune.devices.device_profile import DeviceProfile
from edgeprune.errors import InputError
from edgeprune.profiling.result import ProfileResult, load_profile_result
from edgeprune.profiling.subject import Subject
from edgeprune.profiling.sweep import Sweep
from edgeprune.tuning.tuner import is_tuned_for

MOST_NAMED = 6
"""Results that are named one by one."""


def fetch_engines(subject: Subject, folder: Path) -> Path:
    """Copy what runtimes built for the bundle's networks before; returns the folder of that inside `folder`."""
    if subject.bundle is not None:
        names = (name for name in subject.bundle.manifest.files if name.startswith(f"{ENGINES}/"))
        copy_files(names, subject.bundle.folder, folder)
    return folder / ENGINES


def keep(subject: Subject, result: ProfileResult, folder: Path) -> None:
    """Put the result, and all that is in `folder`, into the bundle; nothing where there is none."""
    if subject.bundle is None:
        return
    made = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    with updated_bundle(subject.bundle.folder, replacing=(PROFILE,)) as stage:
        copy_files(made, folder, stage)
        (stage / PROFILE).write_bytes(pretty_json(result))
        write_manifest(stage, subject.bundle.manifest)


def note_replaced(subject: Subject, sweep: Sweep, devices: Sequence[DeviceProfile]) -> None:
    """A word to the user on results of the bundle that are replaced and not measured again."""
    if subject.bundle is None or not subject.bundle.has(PROFILE):
        return
    try:
        old = load_profile_result(subject.bundle.path(PROFILE))
    except InputError:  # of another schema: it tells nothing that could be lost
        return
    wanted, estimated = set(sweep.settings()), {device.name for device in devices}
    lost = [
        f"{', '.join((r.target, *((r.precision,) if r.precision != 'fp32' else ())))}, threads {r.threads}, "
        f"batch {r.batch_size}"
        for r in old.results
        if (r.target, r.precision, r.threads, r.batch_size) not in wanted
    ]
    lost += [
        f"estimates for {name}" for name in dict.fromkeys(e.device for e in old.estimates) if name not in estimated
    ]
    if lost:
        more = [f"and {len(lost) - MOST_NAMED} more"] if len(lost) > MOST_NAMED else []
        named = "; ".join([*lost[:MOST_NAMED], *more])
        progress.note(f"replaces the bundle's profile, in which this is not measured again: {named}")


def note_tuned_for_other(subject: Subject, sweep: Sweep) -> None:
    """A word to the user if the forms were measured on another machine or runtime, or for other threads or batches."""
    lowering = subject.lowering
    if lowering is None or lowering.chosen_by != "measured":
        return
    uses = {(target, threads, size) for target, _, threads, size in sweep.settings()}
    if not all(is_tuned_for(lowering, *use) for use in uses):
        progress.note(
            f"this bundle was tuned on {lowering.device}, {lowering.runtime}, threads {lowering.threads}, batch "
            f"{lowering.batch_size}: run `edgeprune tune` to choose its layers' forms for what is measured here"
        )
