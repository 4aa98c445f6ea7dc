"""What `realistic.py` measures: the rows, their files, and the table, plot and summary that are made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from matplotlib.figure import Figure

from edgeprune.io.files import pretty_json, write_atomically

PLAIN, PREDICTED, TUNED = "plain", "predicted", "tuned"
THINNED, THINNED_ALIGNED = "torch-pruning", "torch-pruning aligned"
VARIANTS = (PLAIN, PREDICTED, TUNED, THINNED, THINNED_ALIGNED)
COLOURS = dict(zip(VARIANTS, ("#9a9a9a", "#3b7dd8", "#d1495b", "#e0a030", "#5b8c3a"), strict=True))
MARKERS = dict(zip(VARIANTS, "xo^sD", strict=True))
TARGET = 0.99
"""Speed-up that no exported model may fall below."""


class Setting(msgspec.Struct, frozen=True, order=True):
    """How a model was run."""

    runtime: str
    threads: int
    batch_size: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.runtime}, {threads}, batch {self.batch_size}"


class Row(msgspec.Struct, frozen=True):
    """One variant of one case in one setting."""

    network: str
    method: str
    groups: int
    setting: Setting
    variant: str
    theoretical: float
    """MACs of the dense network over those of the plan."""
    realistic: float
    """Median of the paired ratios of dense to this variant."""
    interval: tuple[float, float]
    """95% interval of that median."""
    efficiency: float
    bound_speedup: float
    """What the roofline allows: bound of the dense network over bound of the plan."""
    realistic_over_bound: float
    dense_ms: float
    p50_ms: float
    rounds: int
    noise: float
    """Interquartile range over median, the dense network's or this variant's, whichever is larger."""
    load: float | None
    """Load average of the machine before."""
    macs: int
    """Under the plan, a sample."""
    executed_macs: int
    gathers: int
    parity: float
    """Largest difference from the pruned network over the largest output."""
    forms: dict[str, int]
    """How many grouped layers were written in which form; pointwise: linear ones as 1x1 convolutions."""
    same_as: str
    """The variant that has the same structure and was timed in this one's place; empty if it was timed itself."""


class CaseResult(msgspec.Struct, frozen=True):
    """One case's file."""

    case: str
    machine: str
    """Processor, cores, system, and versions of what made and ran the models."""
    notes: tuple[str, ...] = ()
    """The method's own words."""
    left_out: dict[str, str] = {}
    """What could not be made -> why; under the case's own name if it could not be pruned."""
    rows: tuple[Row, ...] = ()

    def settings(self) -> set[Setting]:
        return {row.setting for row in self.rows}

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{self.case}.json", pretty_json(self))

    @staticmethod
    def load(folder: Path, case: str) -> CaseResult | None:
        path = folder / f"{case}.json"
        return msgspec.json.decode(path.read_bytes(), type=CaseResult) if path.is_file() else None


def write_results(cases: Path, out: Path) -> list[Row]:
    """Write results.json, results.md and results.svg of all cases in a folder; returns their rows."""
    results = [msgspec.json.decode(path.read_bytes(), type=CaseResult) for path in sorted(cases.glob("*.json"))]
    rows = [row for result in results for row in result.rows]
    left_out = {result.case: result.left_out for result in results if result.left_out}
    data = {"rows": rows, "left_out": left_out, "summary": list(summary(rows))}
    write_atomically(out / "results.json", pretty_json(data))
    write_atomically(out / "results.md", "\n".join(_markdown(results, rows)).encode() + b"\n")
    if rows:
        plot(rows).savefig(out / "results.svg", metadata={"Date": None})
    return rows


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """Geometric mean efficiency over the ResNets per setting, method and groups; the slowest exported models."""
    for setting, in_setting in _by(rows, lambda row: row.setting).items():
        resnets = [row for row in in_setting if "resnet" in row.network and row.variant in (PLAIN, TUNED)]
        for (method, groups), same in _by(resnets, lambda row: (row.method, row.groups)).items():
            means = {
                variant: math.exp(math.fsum(map(math.log, found)) / len(found))
                for variant in (TUNED, PLAIN)
                if (found := [row.efficiency for row in same if row.variant == variant])
            }
            networks = len({row.network for row in same})
            yield (
                f"{setting}: {method}, {groups} groups: geometric mean efficiency over {networks} ResNets "
                f"{means[TUNED]:.3f} (plain {means[PLAIN]:.3f})"
            )
    for (setting, variant), same in _by(rows, lambda row: (row.setting, row.variant)).items():
        if variant in (PREDICTED, TUNED):
            worst = min(same, key=lambda row: row.realistic)
            verdict = "" if worst.realistic >= TARGET else f", below {TARGET}"
            yield (
                f"{setting}: worst paired speed-up of a {variant} model {worst.realistic:.3f} "
                f"({worst.network}, {worst.method}, {worst.groups} groups){verdict}"
            )


def plot(rows: Sequence[Row]) -> Figure:
    """Theoretical against realistic speed-up, a panel a setting, a mark a variant; the diagonal is the promise."""
    panels = _by(rows, lambda row: row.setting)
    columns = min(len(panels), 4)
    figure = Figure(figsize=(4.2 * columns, 4.4 * math.ceil(len(panels) / columns)), layout="constrained")
    grid = figure.subplots(math.ceil(len(panels) / columns), columns, squeeze=False).flat
    values = [value for row in rows for value in (row.theoretical, row.realistic)]
    low, high = min(0.9, *values) / 1.05, max(values) * 1.05
    for axes, (setting, in_panel) in zip(grid, panels.items(), strict=False):
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), title=str(setting), aspect="equal")
        axes.plot([low, high], [low, high], color="black", linewidth=0.8)
        axes.axhline(1.0, color="black", linewidth=0.6, linestyle=":")
        for variant in dict.fromkeys(row.variant for row in in_panel):
            same = [row for row in in_panel if row.variant == variant]
            points = [row.theoretical for row in same], [row.realistic for row in same]
            axes.scatter(*points, marker=MARKERS[variant], color=COLOURS[variant], s=26, alpha=0.8, label=variant)
        for axis in (axes.xaxis, axes.yaxis):
            ticks = [tick for tick in (0.25, 0.5, 1, 2, 4, 8, 16) if low <= tick <= high]
            axis.set_ticks(ticks, [f"{tick:g}x" for tick in ticks])
            axis.minorticks_off()
        axes.set(xlabel="theoretical speed-up (MACs)", ylabel="realistic speed-up (measured)")
        axes.legend(fontsize=8)
    for axes in list(grid)[len(panels) :]:
        axes.remove()
    return figure


def _markdown(results: Sequence[CaseResult], rows: Sequence[Row]) -> Iterator[str]:
    heads = "network, method, groups, variant, theoretical, realistic, 95 %, efficiency, roofline, of it, executed MACs"
    columns = [*heads.split(", "), "Gathers", "parity", "forms", "dense ms", "noise"]
    for setting, in_setting in _by(rows, lambda row: row.setting).items():
        yield from (f"### {setting}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}")
        yield from (f"| {' | '.join(_cells(row))} |" for row in in_setting)
        yield ""
    yield from (f"- {line}" for line in summary(rows))
    yield ""
    for result in results:
        yield from (f"- {result.case}: {what} left out: {why}" for what, why in result.left_out.items())
    yield ""
    yield from sorted({result.machine for result in results})


def _cells(row: Row) -> tuple[str, ...]:
    forms = " ".join(f"{kind} {count}" for kind, count in sorted(row.forms.items()))
    return (
        row.network.removeprefix("torchvision:"),
        row.method,
        str(row.groups),
        f"{row.variant} (= {row.same_as})" if row.same_as else row.variant,
        f"{row.theoretical:.2f}x",
        f"{row.realistic:.2f}x",
        "{:.2f}-{:.2f}".format(*row.interval),
        f"{row.efficiency:.2f}",
        f"{row.bound_speedup:.2f}x",
        f"{row.realistic_over_bound:.2f}",
        f"{row.executed_macs / row.macs:.2f}",
        str(row.gathers),
        f"{row.parity:.0e}",
        forms or "-",
        f"{row.dense_ms:.2f}",
        f"{row.noise:.0%}",
    )


def _by(rows: Iterable[Row], key: Callable[[Row], Any]) -> Mapping[Any, list[Row]]:
    """The rows by a key, keys and rows in a fixed order."""
    found: dict[Any, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.network, row.method, row.groups, VARIANTS.index(row.variant))):
        found.setdefault(key(row), []).append(row)
    return dict(sorted(found.items()))
