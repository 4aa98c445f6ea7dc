"""`edgeprune report`: a bundle's measurements as pages, or several runs lined up, with a gate."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.writing import check_update, updated_bundle, write_manifest
from edgeprune.errors import InputError
from edgeprune.report import write_comparison, write_report
from edgeprune.report.comparison.changes import ChangeRecord, changes
from edgeprune.report.comparison.compared import Compared, differences, failures, other_networks
from edgeprune.report.comparison.gate import Gate, nothing_shared, passed, regressions, unchecked
from edgeprune.report.comparison.runs import read_runs


def report(folder: Path, formats: Sequence[str], run: Path | None = None) -> list[Path]:
    """`edgeprune report`: the report files, written into the bundle; returns their paths.

    `run`: what `run --json` wrote, for the timeline of a split network.
    """
    if folder.is_file():
        remedy = "a profile.json is compared with other runs: edgeprune report OLD NEW"
        raise InputError("is a file", where=folder, expected="a bundle", remedy=remedy)
    bundle = open_bundle(folder)
    check_update(folder)
    with updated_bundle(folder) as stage:
        names = [path.name for path in write_report(folder, formats, into=stage, run=run)]
        write_manifest(stage, bundle.manifest)
    return [folder / name for name in names]


class CompareResult(msgspec.Struct, frozen=True):
    """`report --json`, where runs are compared."""

    files: tuple[str, ...]
    baseline: str
    """The run that the others were held against."""
    changes: tuple[ChangeRecord, ...]
    """Of the last run against the baseline."""
    differences: tuple[str, ...]
    """What differs between the runs besides their figures."""
    other_networks: str
    """A warning where their dense networks differ; else empty."""
    not_compared: tuple[str, ...]
    """Settings that the baseline or the last run alone measured."""
    nothing_shared: str
    """A sentence where that is all of them, with what other runs have in common; else empty."""
    failures: tuple[str, ...]
    """What could not be measured in any of the runs."""
    regressions: tuple[str, ...]
    """What got worse in the last run by more than the gate accepts."""
    passed: str
    """What the gate looked at, in a sentence, where it found nothing; else empty."""


def compare(paths: Sequence[Path], out: Path | None, formats: Sequence[str], gate: Gate | None) -> CompareResult:
    """`edgeprune report A B ...`: runs (bundles or profiles) lined up, the first as what the others are held against.

    Written to `out` with the ending of each format; `None` writes nothing. With a gate, the result says in what the
    last run is worse than the first. InputError if the runs cannot be read or, with a gate, have nothing in common.
    """
    if len(paths) < 2:
        raise InputError("a single run", where=paths[0], expected="two runs or more to compare")
    if out is not None and out.is_dir():
        raise InputError("is a folder", where=out, expected="a file for the page, such as comparison.html")
    runs = read_runs(paths)
    compared = Compared(runs, metadata.version("edgeprune"))
    found = regressions(runs[0], runs[-1], gate) if gate else ()
    files = {name: out.with_suffix(f".{name}") for name in formats} if out else {}
    if files:
        write_comparison(compared, files)
    left_out = tuple(map(str, unchecked(runs[0], runs[-1])))
    changed = tuple(map(ChangeRecord.of, changes(runs[0], runs[-1])))
    told = differences(runs), other_networks(runs), left_out, nothing_shared(runs), failures(runs)
    fine = passed(runs[0], runs[-1], gate) if gate and not found else ""
    return CompareResult(tuple(map(str, files.values())), runs[0].name, changed, *told, found, fine)
