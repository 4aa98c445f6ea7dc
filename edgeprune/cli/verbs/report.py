"""`edgeprune report`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from edgeprune.cli.flags.common import Common
from edgeprune.cli.flags.kinds import COMMON, MEASURING, OptionalNumber, OptionalPath, OptionalText, flags
from edgeprune.cli.tables import say, table
from edgeprune.errors import GateError, InputError, unknown_name

if TYPE_CHECKING:
    from edgeprune.pipeline.report import CompareResult
    from edgeprune.report.comparison.gate import Gate


@Parameter(name="*", group=MEASURING)
@flags
class CompareFlags:
    """What runs are held against, and what is still accepted."""

    baseline: OptionalPath = None
    """Bundle or profile.json that the others are held against; by default the first one."""
    fail_on_regression: OptionalText = ""
    """Gate: fail (exit 3) if the last run is worse than the baseline by more than this, such as 5%, and beyond noise,
    on any target, with any precision, batch size and number of threads that both measured; or if it could not
    measure what the baseline did."""
    regression_in: str = "realistic,p50"
    """Figures that the gate looks at, separated by commas: realistic (speed-up), p50 (of the pruned network),
    efficiency."""
    max_drop: OptionalNumber = None
    """Gate: fail (exit 3) if the last run's top-1 (or its data's own metric) is worse than the baseline's
    by more points."""

    def runs(self, bundle: Path, more: Sequence[Path]) -> tuple[Path, ...]:
        """What is held against what: the first against all others."""
        return (*((self.baseline,) if self.baseline else ()), bundle, *more)

    def gate(self) -> Gate | None:
        """InputError for a limit or a figure that cannot be read."""
        from edgeprune.report.comparison.changes import FIGURES
        from edgeprune.report.comparison.gate import Gate

        if self.max_drop is not None and not math.isfinite(self.max_drop):
            raise InputError(f"--max-drop {self.max_drop} is out of range", expected="points of top-1, such as 1.0")
        if not self.fail_on_regression:
            if self.regression_in != CompareFlags().regression_in:
                raise InputError("--regression-in without a limit", remedy="pass --fail-on-regression 5%")
            return None if self.max_drop is None else Gate(None, (), self.max_drop)
        figures = tuple(name.strip() for name in self.regression_in.split(","))
        for name in figures:
            if name not in FIGURES:
                raise unknown_name("figure of --regression-in", name, FIGURES)
        return Gate(_percent("--fail-on-regression", self.fail_on_regression), figures, self.max_drop)

    def page(self, out: Path | None) -> Path | None:
        """Where the comparison is written; None where a gate alone was asked for."""
        gated = self.fail_on_regression or self.max_drop is not None
        return out or (None if gated else Path("comparison.html"))

    def formats(self, page: Path | None) -> tuple[str, ...]:
        """What the page's name says."""
        return (page.suffix.removeprefix(".") or "html",) if page else ()

    def require_unused(self, out: Path | None) -> None:
        """InputError for flags that say nothing of a single run."""
        unset = CompareFlags()
        given = {
            "-o/--out": out is not None,
            "--fail-on-regression": self.fail_on_regression != unset.fail_on_regression,
            "--regression-in": self.regression_in != unset.regression_in,
            "--max-drop": self.max_drop != unset.max_drop,
        }
        if flags := [flag for flag, there in given.items() if there]:
            one = len(flags) == 1
            told = f"{' and '.join(flags)} {'is' if one else 'are'} for comparing runs, and there is one"
            raise InputError(told, remedy=f"give a second run or --baseline, or leave {'it' if one else 'them'} out")


def _percent(flag: str, text: str) -> float:
    """5% or 5 as 0.05; a bare number below 1 could be meant as a share."""
    number = text.strip().removesuffix("%")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf") or (number == text.strip() and value < 1):
        raise InputError(f"{flag} {text!r} is no percentage", expected="such as 5%")
    return value / 100


def report(
    bundle: Path,
    /,
    *more: Path,
    format: Annotated[OptionalText, Parameter(group=COMMON)] = "",
    out: Annotated[OptionalPath, Parameter(alias="-o", group=COMMON)] = None,
    run_json: Annotated[OptionalPath, Parameter(group=COMMON)] = None,
    comparing: CompareFlags = CompareFlags(),
    common: Common = Common(),
) -> None:
    """Write report.html (one file, opens offline), report.md and report.json into a bundle; or compare several.

    With several runs, or a baseline, one page lines them up: what got faster or slower against the first, whether that
    exceeds noise, and what else differs between them (machine, versions, settings).

    **Examples**

    - `edgeprune report out/ --format html`
    - `edgeprune report split/ --run-json run.json`
    - `edgeprune report monday/ tuesday/ wednesday/ -o week.html`
    - `edgeprune report new/ --baseline old/ --fail-on-regression 5%`
    - `edgeprune report parts-a/ parts-b/ -o exchange.html` (split bundles: accuracy against the bytes exchanged)

    Parameters
    ----------
    bundle
        A bundle; profile it first, to have latencies in the report. To compare, a profile.json will do.
    more
        Bundles or profile.json files to compare with the first, in the order of their making.
    format
        html, md, json, csv, separated by commas; by default html,md,json, and of a comparison what -o ends with.
    out
        File for a comparison, comparison.html by default; with a gate, by default none is written.
    run_json
        What `edgeprune run BUNDLE --repeat N --json FILE` wrote of a split bundle: the report draws when which device
        did what, beside the prediction.
    """
    from edgeprune.pipeline import report as steps

    formats = tuple(name.strip() for name in format.split(",")) if format else ()
    if not more and comparing.baseline is None:
        comparing.require_unused(out)
        paths = steps.report(bundle, formats or ("html", "md", "json"), run_json)
        for path in paths:
            print(path)
        common.write({"files": [str(path) for path in paths]})
        return
    if run_json is not None:
        raise InputError("--run-json is for the report of one split bundle", remedy="leave it out, or the other runs")
    gate, page = comparing.gate(), comparing.page(out)
    result = steps.compare(comparing.runs(bundle, more), page, formats or comparing.formats(page), gate)
    show(result)
    common.write(result)
    if result.regressions:
        raise GateError(f"worse than {result.baseline}: {'; '.join(result.regressions)}")


def show(result: CompareResult) -> None:
    """What changed, what else differs between the runs, what could not be compared, and where the page lies."""
    from edgeprune.io.formatting import signed_percent

    rows = [
        (
            c.target,
            c.precision,
            c.batch_size,
            c.threads,
            c.figure,
            f"{c.before:.3f}",
            f"{c.after:.3f}",
            signed_percent(c.relative),
            c.verdict,
        )
        for c in result.changes
    ]
    names = ("target", "precision", "batch", "threads", "figure", "before", "after", "change", "")
    if result.other_networks:
        say(f"warning: {result.other_networks}")
    if rows:
        table(f"the last run against {result.baseline}", names, rows)
    if result.nothing_shared:
        say(result.nothing_shared)
    for text in result.failures:
        say(text)
    for text in result.differences:
        say(f"not alike: {text}")
    for setting in () if result.nothing_shared else result.not_compared:
        say(f"not compared, measured in one run only: {setting}")
    if result.passed:
        say(result.passed)
    for path in result.files:
        say(path)
