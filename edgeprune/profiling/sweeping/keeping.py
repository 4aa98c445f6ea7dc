"""What a bundle keeps of its profiles: the results, the networks in other precisions, and engines; and what a new
profile means for those of before."""

from __future__ import annotations

import shlex
from pathlib import Path

from edgeprune.bundles.bundle import Bundle
from edgeprune.bundles.names import ENGINES, PROFILE
from edgeprune.bundles.writing import copy_files, updated_bundle, write_manifest
from edgeprune.errors import InputError
from edgeprune.io import progress
from edgeprune.io.files import pretty_json
from edgeprune.io.formatting import some
from edgeprune.profiling.result import ProfileResult, load_profile_result
from edgeprune.profiling.subject import Subject
from edgeprune.profiling.sweeping.sweep import Sweep
from edgeprune.profiling.tuned_for import RUNTIMES, is_tuned_for

MOST_NAMED = 6
"""Results that are named one by one."""


def fetch_engines(subject: Subject, folder: Path) -> Path:
    """Copy what runtimes built for the bundle's networks before; returns the folder of that inside `folder`."""
    if subject.bundle is not None:
        names = (name for name in subject.bundle.manifest.files if name.startswith(f"{ENGINES}/"))
        copy_files(names, subject.bundle.folder, folder)
    return folder / ENGINES


def keep(subject: Subject, result: ProfileResult, folder: Path) -> None:
    """Put the result, and all that is in `folder`, into the bundle, with a word to the user on what it had of a profile
    before and has no more; nothing where there is no bundle."""
    if subject.bundle is None:
        return
    made = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    lost = _lost(subject.bundle, result)
    with updated_bundle(subject.bundle.folder, replacing=(PROFILE,)) as stage:
        copy_files(made, folder, stage)
        (stage / PROFILE).write_bytes(pretty_json(result))
        write_manifest(stage, subject.bundle.manifest)
    if lost:
        named = some(lost, MOST_NAMED, "; ")
        progress.note(f"replaces the bundle's profile, in which this was not measured again: {named}")


def note_tuned_for_other(subject: Subject, sweep: Sweep) -> None:
    """A word to the user if the forms were measured on another machine or runtime, or for other threads or batches."""
    lowering = subject.lowering
    if subject.bundle is None or lowering is None or lowering.chosen_by != "measured":
        return
    uses = dict.fromkeys((target, threads, size) for target, _, threads, size in sweep.settings())
    others = [use for use in uses if not is_tuned_for(lowering, *use)]
    if not others:
        return
    for_others = some([_use_words(*use) for use in others], MOST_NAMED, "; ")
    tunable = next((use for use in others if use[0] in RUNTIMES), None)
    first = " the first of these" if len(others) > 1 else " that"
    command = f": `{_tune_command(subject.bundle.folder, *tunable)}` chooses its layers' forms for" if tunable else ""
    progress.note(
        f"this bundle was tuned on {lowering.device}, {lowering.runtime}, for "
        f"{_use_words(lowering.target, lowering.threads, lowering.batch_size)}, and not here for {for_others}"
        f"{command}{first if tunable else ''}"
    )


def _lost(bundle: Bundle, result: ProfileResult) -> list[str]:
    """What the bundle's profile has and the new result has not, in words."""
    if not bundle.has(PROFILE):
        return []
    try:
        old = load_profile_result(bundle.path(PROFILE))
    except InputError:  # of another schema: it tells nothing that could be lost
        return []
    measured = {(r.target, r.precision, r.threads, r.batch_size) for r in result.results}
    estimated = {estimate.device for estimate in result.estimates}
    lost = [
        _use_words(r.target if r.precision == "fp32" else f"{r.target}, {r.precision}", r.threads, r.batch_size)
        for r in old.results
        if (r.target, r.precision, r.threads, r.batch_size) not in measured
    ]
    devices = dict.fromkeys(estimate.device for estimate in old.estimates)
    return [*lost, *(f"estimates for {name}" for name in devices if name not in estimated)]


def _use_words(target: str, threads: int, batch_size: int) -> str:
    return f"{target}, threads {threads}, batch {batch_size}"


def _tune_command(folder: Path, target: str, threads: int, batch_size: int) -> str:
    """With the flags that are not as by default."""
    flags = {"--target": (target, "cpu"), "--threads": (threads, 1), "--batch-size": (batch_size, 1)}
    given = [f"{flag} {value}" for flag, (value, default) in flags.items() if value != default]
    return " ".join(["edgeprune tune", shlex.quote(str(folder)), *given])
