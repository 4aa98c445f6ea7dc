"""What the pictures of measurements show, as numbers: each view is made from results, or None where data are missing.

Times are milliseconds, rates GMAC/s (10^9 multiply-adds a second), intensities FLOPs a byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from edgeprune.io import formatting as f
from edgeprune.profiling.result import LayerResult, Result
from edgeprune.report.words.results import is_settled, precision_words, setting

MOST_STEPS = 24
"""Layers at most that get a step of their own in a waterfall; the others share one."""
MOST_DISTRIBUTIONS = 6
MOST_LINES = 6
FEWEST_SAMPLES = 5
"""Runs from which on their distribution says something."""


@dataclass(frozen=True)
class Step:
    """A part of the way from the dense time to the pruned time."""

    name: str
    saved_ms: float
    """Less than 0 where it got slower."""
    is_layer: bool = True
    """False for what several layers, or all that is no layer, come to."""


@dataclass(frozen=True)
class Waterfall:
    """From the dense network's time to the pruned one's, as the runtime's profiler tells them."""

    dense_ms: float
    steps: tuple[Step, ...]
    """In the network's order; `dense_ms` less all that they save is `pruned_ms`."""
    pruned_ms: float

    @staticmethod
    def of(result: Result) -> Waterfall | None:
        """None unless every layer was timed both dense and pruned, as is the case where the target tells them."""
        pairs = [(x, x.dense_ms, x.pruned_ms) for x in result.layers]
        timed = [(x, before, after) for x, before, after in pairs if before is not None and after is not None]
        if not timed or len(timed) < len(pairs):
            return None
        saved = [(x, before - after) for x, before, after in timed]
        large = sorted(saved, key=lambda pair: abs(pair[1]), reverse=True)[:MOST_STEPS]
        names = {x.name for x, _ in large}
        steps = [Step(f.clean(x.name), value) for x, value in saved if x.name in names]
        others = [value for x, value in saved if x.name not in names]
        if others:
            steps.append(Step(f.plural(len(others), "other layer"), sum(others), False))
        dense, pruned = sum(before for _, before, _ in timed), sum(after for _, _, after in timed)
        if result.dense_other_ms is not None and result.pruned_other_ms is not None:
            steps.append(Step("all that is no layer", result.dense_other_ms - result.pruned_other_ms, False))
            dense, pruned = dense + result.dense_other_ms, pruned + result.pruned_other_ms
        return Waterfall(dense, tuple(steps), pruned)


@dataclass(frozen=True)
class RooflinePoint:
    """One layer of the pruned network."""

    name: str
    intensity: float
    """2 x executed MACs over the bytes that the layer moves at least."""
    achieved: float
    """GMAC/s."""
    bound: float | None
    """GMAC/s that the device's roofline allows at this intensity."""


@dataclass(frozen=True)
class Roofline:
    """How fast the layers compute, against what the device can."""

    points: tuple[RooflinePoint, ...]

    @property
    def roof(self) -> tuple[float, float] | None:
        """Peak (GMAC/s), and the slope that memory allows (GMAC/s for each FLOP a byte): the lowest that are over all
        bounds of the layers. None where no bound is known."""
        bounded = [(point.intensity, point.bound) for point in self.points if point.bound is not None]
        if not bounded:
            return None
        return max(bound for _, bound in bounded), max(bound / intensity for intensity, bound in bounded)

    @staticmethod
    def of(result: Result) -> Roofline | None:
        """None unless at least two layers tell their time and their intensity."""
        points = tuple(
            RooflinePoint(
                f.clean(layer.name),
                layer.intensity,
                _rate(layer, layer.pruned_ms),
                _rate(layer, layer.bound_ms) if layer.bound_ms else None,
            )
            for layer in result.layers
            if layer.intensity and layer.pruned_ms and layer.executed_macs
        )
        return Roofline(points) if len(points) > 1 else None


@dataclass(frozen=True)
class Samples:
    """All runs of one network in one setting, in ms."""

    where: str
    which: str
    milliseconds: tuple[float, ...]


@dataclass(frozen=True)
class Distribution:
    """Runs of dense and pruned beside each other, one panel a setting."""

    panels: tuple[tuple[Samples, ...], ...]
    left_out: int = 0
    """Settings that would not fit."""

    @staticmethod
    def of(results: Sequence[Result]) -> Distribution | None:
        """None where no result kept its raw times."""
        panels = []
        for result in results:
            both = (("dense", result.dense), ("pruned", result.pruned))
            held = [Samples(setting(result), which, taken.samples_ms) for which, taken in both if taken is not None]
            if held and all(len(samples.milliseconds) >= FEWEST_SAMPLES for samples in held):
                panels.append(tuple(held))
        shown = tuple(panels[:MOST_DISTRIBUTIONS])
        return Distribution(shown, len(panels) - len(shown)) if shown else None


Axis = Literal["batch size", "threads"]


@dataclass(frozen=True)
class Line:
    """One target through the values of a sweep."""

    label: str
    x: tuple[int, ...]
    results: tuple[Result, ...]
    """At each value of x."""


@dataclass(frozen=True)
class Sweep:
    """How speed depends on the batch size or the number of threads, all else the same."""

    axis: Axis
    lines: tuple[Line, ...]
    left_out: int = 0
    """Lines that would not fit."""


def sweep(results: Iterable[Result], axis: Axis) -> Sweep | None:
    """None unless something was measured with at least two values, all else the same."""
    grouped: dict[str, dict[int, Result]] = {}
    for result in results:
        value, other = result.batch_size, f.plural(result.threads, "thread")
        if axis == "threads":
            value, other = result.threads, f"batch {result.batch_size}"
        label = ", ".join((f.clean(result.target), *precision_words(result.precision), other))
        grouped.setdefault(label, {}).setdefault(value, result)
    lines = tuple(
        Line(label, tuple(sorted(found)), tuple(found[value] for value in sorted(found)))
        for label, found in grouped.items()
        if len(found) > 1
    )
    return Sweep(axis, lines[:MOST_LINES], max(len(lines) - MOST_LINES, 0)) if lines else None


@dataclass(frozen=True)
class TrendPoint:
    """One run; None where it did not measure the setting."""

    label: str
    theoretical: float | None = None
    realistic: float | None = None
    realistic_interval: tuple[float, float] | None = None
    p50_ms: float | None = None
    p50_interval_ms: tuple[float, float] | None = None
    settled: bool = True


@dataclass(frozen=True)
class Trend:
    """One setting through all runs, in the order in which they were given."""

    points: tuple[TrendPoint, ...]

    @staticmethod
    def of(runs: Iterable[tuple[str, Result | None]]) -> Trend | None:
        """None unless two runs measured the setting."""
        points = tuple(_trend_point(f.clean(label), result) for label, result in runs)
        return Trend(points) if sum(point.p50_ms is not None for point in points) > 1 else None


def typical_share(view: Roofline) -> float | None:
    """Median share of its bound that a layer reaches; None where no bound is known."""
    shares = [point.achieved / point.bound for point in view.points if point.bound]
    return median(shares) if shares else None


def _rate(layer: LayerResult, milliseconds: float | None) -> float:
    return layer.executed_macs / milliseconds / 1e6 if milliseconds else 0.0


def _trend_point(label: str, result: Result | None) -> TrendPoint:
    if result is None:
        return TrendPoint(label)
    return TrendPoint(
        label,
        result.theoretical_speedup,
        result.realistic_speedup,
        result.paired_interval,
        result.pruned.p50_ms,
        result.pruned.p50_interval_ms,
        is_settled(result),
    )
