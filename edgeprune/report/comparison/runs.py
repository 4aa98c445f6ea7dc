"""Profiles of one network at several times, on several machines, or pruned in several ways: the runs to compare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.manifest import Manifest
from edgeprune.bundles.names import DENSE_MODEL, LOWERING, PARTITION, PROFILE
from edgeprune.errors import InputError
from edgeprune.lowering.record import LoweringRecord, load_lowering
from edgeprune.profiling.result import Environment, ProfileResult, Result, Settings, load_profile_result
from edgeprune.report.contents import SplitPlan, load_split
from edgeprune.report.words.results import Setting

UNMEASURED = ProfileResult(Environment("", 0, 0, {}, "", ""), Settings(0, 0, 0), ())
"""In place of the profile of a bundle that has none."""


@dataclass(frozen=True)
class Run:
    """One profile, with what its bundle tells of the network."""

    name: str
    """Its own among the runs."""
    profile: ProfileResult
    manifest: Manifest | None = None
    """None where the profile alone was given."""
    lowering: LoweringRecord | None = None
    split: SplitPlan | None = None
    """Of a bundle that was split over devices."""

    @property
    def is_measured(self) -> bool:
        """False for a split bundle without latencies, which is compared by what it exchanges."""
        return self.profile is not UNMEASURED

    def result(self, setting: Setting) -> Result | None:
        """What was measured in a setting; None if nothing was."""
        return next((result for result in self.profile.results if Setting.of(result) == setting), None)

    @property
    def dense_hash(self) -> str:
        """SHA-256 of the dense ONNX file; empty where it is not known."""
        return self.manifest.files.get(DENSE_MODEL, "") if self.manifest else ""


def read_runs(paths: Sequence[Path]) -> tuple[Run, ...]:
    """A run for every bundle or `profile.json`, in the order given.

    InputError for a path that is given twice, is neither, or is a bundle that was neither measured nor split.
    """
    resolved = [path.resolve() for path in paths]
    for path, place in zip(paths, resolved, strict=True):
        if resolved.count(place) > 1:
            raise InputError("is given twice", where=path, expected="different runs")
    return tuple(_read(path, name) for path, name in zip(paths, _names(resolved), strict=True))


def all_settings(runs: Iterable[Run]) -> tuple[Setting, ...]:
    """Every setting that any run measured, in the order in which they are met."""
    return tuple(dict.fromkeys(Setting.of(result) for run in runs for result in run.profile.results))


def _read(path: Path, name: str) -> Run:
    if not path.exists():
        raise InputError("no such file or folder", where=path, expected="a bundle, or a profile.json")
    if not path.is_dir():
        return Run(name, load_profile_result(path))
    bundle = open_bundle(path)
    if not (bundle.has(PROFILE) or bundle.has(PARTITION)):
        remedy = f"measure it with `edgeprune profile {path}`, or split it over devices"
        raise InputError("was not measured", where=path, expected="a bundle with latencies", remedy=remedy)
    return Run(
        name,
        load_profile_result(bundle.path(PROFILE)) if bundle.has(PROFILE) else UNMEASURED,
        bundle.manifest,
        load_lowering(bundle.path(LOWERING)) if bundle.has(LOWERING) else None,
        load_split(bundle.path(PARTITION)) if bundle.has(PARTITION) else None,
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as few as tell all apart; a profile.json is called by its folder."""
    parts = [(path.parent if path.name == PROFILE else path).parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]  # a bundle, and the profile.json in it
