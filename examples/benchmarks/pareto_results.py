"""What `pareto.py` measures: the files of a run, and the tables and plots that are made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec
from matplotlib.figure import Figure
from our_methods import By
from pareto_methods import FAMILIES, family

from edgeprune.io.files import pretty_json, write_atomically

DENSE = "dense"
STAGES = {
    "none": "no training",
    "bn": "BatchNorm estimated anew",
    "heal": "healed without labels",
    "1": "1 epoch",
    "3": "3 epochs",
}
SHARED_LATENCIES = (0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of the dense network's latency at which families of methods are compared."""
LINES = dict(zip(FAMILIES, ("-", "--", ":"), strict=True))
Curve = Sequence[tuple[float, float]]
"""(cost, top-1), cheapest first."""


class Speed(msgspec.Struct, frozen=True):
    """What one pruned network needs, whatever its weights are."""

    macs: float
    """Share of the dense network's."""
    latency: float
    """Median of the paired ratios of this network's time to the dense one's."""
    interval: tuple[float, float]
    """95% interval of that median."""
    dense_ms: float
    rounds: int
    noise: float
    """Interquartile range over median of the noisier of both."""
    load: float | None
    machine: str


class Point(msgspec.Struct, frozen=True):
    """One pruned network after one stage."""

    network: str
    method: str
    budget: float
    """The share that was asked for; 1 for the dense network."""
    stage: str
    top1: float
    images: int
    """That were tested."""
    seconds: float
    """That the stage took, pruning not counted."""
    speed: Speed
    by: By = "macs"
    """What it is a share of."""

    @property
    def case(self) -> str:
        """Which pruned network it is, whatever the stage."""
        return case_name(self.method, self.budget, self.by)


def case_name(method: str, budget: float, by: By) -> str:
    """METHOD-SHARE, or METHOD-latencySHARE."""
    return DENSE if method == DENSE else f"{method}-{'' if by == 'macs' else by}{budget:g}"


def load_point(path: Path) -> Point | None:
    return msgspec.json.decode(path.read_bytes(), type=Point) if path.is_file() else None


def save(path: Path, what: Point | Speed) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, pretty_json(what))


def all_points(out: Path) -> list[Point]:
    """Every point in the folder of a run, in a fixed order."""
    points = [msgspec.json.decode(path.read_bytes(), type=Point) for path in out.glob("points/*.json")]
    return sorted(points, key=lambda point: (point.network, _stage_number(point), point.method, -point.budget))


def _stage_number(point: Point) -> int:
    return list(STAGES).index(point.stage)


def front(curve: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no cheaper one matches in top-1, cheapest first."""
    found: list[tuple[float, float]] = []
    for cost, top1 in sorted(curve, key=lambda point: (point[0], -point[1])):
        if not found or top1 > found[-1][1]:
            found.append((cost, top1))
    return found


def envelope(curve: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The least concave curve over the points of the front: a point that a line between two others passes is chance."""
    found: list[tuple[float, float]] = []
    for point in front(curve):
        while len(found) > 1 and _slope(found[-2], found[-1]) <= _slope(found[-1], point):
            found.pop()
        found.append(point)
    return found


def _slope(one: tuple[float, float], other: tuple[float, float]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


def interpolated(curve: Curve, cost: float) -> float | None:
    """Top-1 at a cost, linear between two points of a curve; None outside of it."""
    for (low, below), (high, above) in pairwise(curve):
        if low <= cost <= high:
            return below + (above - below) * (cost - low) / (high - low)
    return next((top1 for at, top1 in curve if at == cost), None)


def write_results(out: Path, left_out: Iterable[str] = ()) -> str:
    """Write results.md and one plot a network from the points in the folder; returns the tables."""
    points = all_points(out)
    lines: list[str] = []
    for network in dict.fromkeys(point.network for point in points):
        own = [point for point in points if point.network == network]
        lines += [*table(network, own), *comparison(own)]
        plot(network, own).savefig(out / f"{network}.svg", metadata={"Date": None})
    lines += [f"- left out: {what}" for what in left_out]
    lines += ["", *sorted({point.speed.machine for point in points})]
    text = "\n".join(lines) + "\n"
    write_atomically(out / "results.md", text.encode())
    return text


def table(network: str, points: Sequence[Point]) -> Iterator[str]:
    """Each method and budget of a network, and its top-1 after each stage."""
    stages = [stage for stage in STAGES if any(point.stage == stage for point in points)]
    yield from (f"### {network}, {max(point.images for point in points)} test images", "")
    yield f"| method | asked for | MACs | latency | 95 % | {' | '.join(STAGES[stage] for stage in stages)} |"
    yield f"|{'---|' * (5 + len(stages))}"
    cases: dict[str, dict[str, Point]] = {}
    for point in sorted(points, key=lambda point: (point.method != DENSE, point.method, -point.budget)):
        cases.setdefault(point.case, {})[point.stage] = point
    for found in cases.values():
        one = next(iter(found.values()))
        speed = one.speed
        low, high = speed.interval
        top1 = (f"{found[stage].top1:.2f}" if stage in found else "-" for stage in stages)
        figures = (
            f"{one.budget:g} {'MACs' if one.by == 'macs' else one.by}",
            f"{speed.macs:.3f}",
            f"{speed.latency:.3f}",
            f"{low:.3f}-{high:.3f}",
        )
        yield f"| {' | '.join((one.method, *figures, *top1))} |"
    yield ""


def comparison(points: Sequence[Point]) -> Iterator[str]:
    """The best that each family of methods has at the same latency, between its points and the dense one."""
    yield "| training | latency | " + " | ".join((*FAMILIES, *(f"ours - {other}" for other in FAMILIES[1:]))) + " |"
    yield f"|{'---|' * (1 + 2 * len(FAMILIES))}"
    for stage, title in STAGES.items():
        curves = {name: _curve_of(points, name, stage) for name in FAMILIES}
        for latency in SHARED_LATENCIES:
            ours, *others = (interpolated(curves[name], latency) for name in FAMILIES)
            if ours is None or all(other is None for other in others):
                continue
            cells = ["-" if top1 is None else f"{top1:.2f}" for top1 in (ours, *others)]
            cells += ["-" if other is None else f"{ours - other:+.2f}" for other in others]
            yield f"| {title} | {latency:g} | {' | '.join(cells)} |"
    yield ""


def _curve_of(points: Sequence[Point], name: str, stage: str) -> Curve:
    """Latency and top-1 of one family after one stage, the dense network's among them."""
    own = [point for point in points if point.method == DENSE or (family(point.method), point.stage) == (name, stage)]
    return envelope((point.speed.latency, point.top1) for point in own)


def plot(network: str, points: Sequence[Point]) -> Figure:
    """Top-1 against latency and against multiply-adds, a row of panels a stage, a line a method."""
    stages = [stage for stage in STAGES if any(p.stage == stage and p.method != DENSE for p in points)] or ["none"]
    figure = Figure(figsize=(11, 4.2 * len(stages)), layout="constrained")
    grid = figure.subplots(len(stages), 2, squeeze=False)
    methods = sorted({point.method for point in points} - {DENSE})
    colours: Mapping[str, str] = {method: f"C{number % 10}" for number, method in enumerate(methods)}
    for row, stage in zip(grid, stages, strict=True):
        for axes, axis in zip(row, ("latency", "macs"), strict=True):
            for method in methods:
                own = [p for p in points if (p.method, p.stage) == (method, stage)]
                curve = sorted((getattr(point.speed, axis), point.top1) for point in own)
                if curve:
                    style = {"linestyle": LINES[family(method)], "color": colours[method], "marker": "o"}
                    axes.plot(*zip(*curve, strict=True), label=method, **style)
            for dense in (point for point in points if point.method == DENSE):
                axes.plot([1.0], [dense.top1], "k*", markersize=12, label=DENSE)
            what = "measured latency" if axis == "latency" else "multiply-adds"
            axes.set(xlabel=f"{what}, share of the dense network's", ylabel="top-1, %")
            axes.set_title(f"{network}, {STAGES[stage]}", fontsize=10)
            axes.grid(alpha=0.3)
        row[0].legend(fontsize=7)
    return figure
