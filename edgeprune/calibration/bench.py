"""Has the small models of calibration timed, and puts what they do over the time that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto

from edgeprune.calibration.probes import (
    MATRIX_SIDE,
    PROBE,
    WIDTH,
    ConvProbe,
    Varied,
    chain_probe,
    concat_probe,
    conv_probes,
    gather_probe,
    weights_probe,
)
from edgeprune.calibration.stopwatch import REORDERS, TICK_S, K, Stopwatch
from edgeprune.devices.figures import Bandwidths, ChannelBlock, Figure, KernelKind, KernelRates, MoveKind
from edgeprune.devices.prices import MOVED_BYTES
from edgeprune.io import progress
from edgeprune.profiling.estimating.node_work import node_works
from edgeprune.profiling.measurement import NOISY, Measurement

REPEATS = 3
"""A noisy figure is taken so many times at most."""
SWEEP = (32, 48, 40, 36, 34, 33)
"""Channels a group: multiples of 32, 16, 8, 4, 2 and 1, and of nothing larger."""
ON_BLOCK = 0.7
"""Share of the best rate in the sweep from which channels count as on the block: clear of the 0.75 and 0.625 that 48
and 40 channels come to where kernels fill up to 32."""
GROUPS = 4
MIB = (1, 2, 4, 8, 16, 32)
"""What operations touch whose bandwidth is measured; more comes from memory."""
EMPTY = (20, 120)
"""Nodes of two models whose difference tells what starting a node costs."""
NOISY_WORDS = "noisy: the middle half of the times spreads over"


@dataclass(frozen=True)
class Reading:
    """Seconds, or something a second, and the spread of the times that it comes from."""

    value: float
    noise: float = 0.0

    def rate(self, amount: float) -> Reading:
        """So much in these seconds."""
        return Reading(amount / self.value, self.noise)


@dataclass(frozen=True)
class Threaded:
    """What so many threads reach."""

    macs_per_s: Reading
    bytes_per_s: Reading


class Bench:
    """Has models timed, and puts what they do over the time that it takes."""

    def __init__(self, stopwatch: Stopwatch, what: str) -> None:
        self.stopwatch, self.what = stopwatch, what
        self.empty = 0.0
        """Seconds that starting a node takes, once known."""

    def figure(self, reading: Reading, scale: float, how: str) -> Figure:
        return Figure(rounded(reading.value * scale), "measured", self.source(how, reading.noise))

    def source(self, how: str, noise: float = 0.0) -> str:
        """How and with what it was measured, and whether the times agreed."""
        noisy = f"; {NOISY_WORDS} {noise:.0%}" if noise > NOISY else ""
        return f"{how}; {self.what}{noisy}"

    def dispatch(self) -> Reading:
        few, many = EMPTY
        taken = self.stopwatch.runs({count: chain_probe(count) for count in EMPTY}, 1)
        self.empty = max((_quick(taken[many]) - _quick(taken[few])) / (many - few), TICK_S)
        return Reading(self.empty, max(measured.noise for measured in taken.values()))

    def block(self) -> ChannelBlock:
        """From multiples of 32 channels a group downwards, for as long as they are fast."""
        probes = {count: ConvProbe(GROUPS, count, count, WIDTH // 2) for count in SWEEP}
        rates = self.speeds(probes, "the channel block")
        best, block = max(reading.value for reading in rates.values()), 1
        for count in SWEEP:
            if rates[count].value < ON_BLOCK * best:
                break
            block = count & -count
        told = ", ".join(f"{count}: {reading.value / best:.2f}" for count, reading in sorted(rates.items()))
        noise = max(reading.noise for reading in rates.values())
        return ChannelBlock(block, "measured", self.source(f"channels a group: share of the best rate, {told}", noise))

    def rates(self, block: int) -> tuple[float, dict[KernelKind, KernelRates]]:
        """Multiply-adds a second of the fastest convolution on one thread, and the shares of it that others reach."""
        found = self.speeds(conv_probes(block), "convolutions")
        peak = max(rate.value for rate in found.values())
        return peak, {
            kind: KernelRates(
                by_filters=_shares(found, kind, "filters", peak),
                certainty="measured",
                source=self.source("one thread", max(rate.noise for key, rate in found.items() if key[0] == kind)),
                by_width=_shares(found, kind, "width"),
                by_depth=_shares(found, kind, "depth"),
            )
            for kind in dict.fromkeys(kind for kind, _, _ in found)
        }

    def threads(self, block: int, count: int) -> Threaded:
        """What so many threads reach together."""
        conv = ConvProbe(1, 8 * max(block, 4), 8 * max(block, 4), WIDTH)
        models = {"conv": conv.model(), "weights": weights_probe()}
        times = self._times(models, f"{count} thread{'s' if count > 1 else ''}", count)
        return Threaded(times["conv"].rate(conv.macs), times["weights"].rate(4 * MATRIX_SIDE**2))

    def bandwidths(self, block: int) -> dict[MoveKind, Bandwidths]:
        """Of what only moves data, by how much it touches."""
        plain = self._times({size: concat_probe(size * 2**20) for size in MIB}, "cache and memory")
        models = {size: gather_probe(size * 2**20) for size in MIB}
        taken = self._nodes(models, "Gathers", 1)
        gathers = {size: self._time(nodes[PROBE]) for size, nodes in taken.items()}
        found: dict[MoveKind, Bandwidths] = {
            "operation": self._by_mib(plain, "a Concat"),
            "gather": self._by_mib(gathers, "a Gather over channels"),
        }
        if all(REORDERS in nodes for nodes in taken.values()):
            count = sum(work.reorders for work in node_works(models[MIB[0]], 1, block, reorders=True))
            around = {
                size: Reading(max(_quick(nodes[REORDERS]) / count - self.empty, TICK_S), nodes[REORDERS].noise)
                for size, nodes in taken.items()
            }
            found["reorder"] = self._by_mib(around, "reordering around a Gather")
        return found

    def moved_element(self) -> Reading:
        """Seconds in which a Gather moves one element, with whatever the runtime reorders around it."""
        size = 2**21
        [gathered] = self._times({size: gather_probe(size)}, "a Gather").values()
        return Reading(gathered.value / (size // MOVED_BYTES), gathered.noise)

    def _by_mib(self, times: Mapping[int, Reading], how: str) -> Bandwidths:
        by_mib = {size: rounded(size * 2**20 / time.value / 1e9) for size, time in times.items()}
        noise = max(time.noise for time in times.values())
        return Bandwidths(by_mib, "measured", self.source(f"{how}, one thread", noise))

    def speeds(self, probes: Mapping[K, ConvProbe], what: str) -> dict[K, Reading]:
        """Multiply-adds a second of each, on one thread."""
        times = self._times({key: probe.model() for key, probe in probes.items()}, what)
        return {key: times[key].rate(probe.macs) for key, probe in probes.items()}

    def _times(self, models: Mapping[K, ModelProto], what: str, threads: int = 1) -> dict[K, Reading]:
        return {key: self._time(nodes[PROBE]) for key, nodes in self._nodes(models, what, threads).items()}

    def _time(self, measured: Measurement) -> Reading:
        """What the node itself takes, besides being started."""
        return Reading(max(_quick(measured) - self.empty, TICK_S), measured.noise)

    def _nodes(self, models: Mapping[K, ModelProto], what: str, threads: int) -> dict[K, Mapping[str, Measurement]]:
        """The nodes of every model; a model whose probe is noisy is timed again until it is steady. If it never is, the
        fastest times count."""
        best: dict[K, Mapping[str, Measurement]] = {}
        for _ in progress.track(range(REPEATS), f"calibrating {what}"):
            wanted = {key: model for key, model in models.items() if key not in best or best[key][PROBE].is_noisy}
            for key, nodes in (self.stopwatch.nodes(wanted, threads) if wanted else {}).items():
                if key not in best or _rank(nodes[PROBE]) < _rank(best[key][PROBE]):
                    best[key] = nodes
        return best


def _shares(
    found: Mapping[tuple[KernelKind, Varied, int], Reading], kind: KernelKind, varied: Varied, peak: float = 0.0
) -> dict[int, float]:
    """The rates of one kind by what is varied, as shares of the peak; without one, relative to what all other probes of
    the kind have: the usual width, and the deepest sums."""
    rates = {at: rate.value for (own, what, at), rate in found.items() if (own, what) == (kind, varied)}
    usual = peak or rates.get(WIDTH if varied == "width" else max(rates, default=0), 1.0)
    return {at: rounded(rate / usual) for at, rate in sorted(rates.items())}


def _rank(measured: Measurement) -> tuple[bool, float]:
    return measured.is_noisy, _quick(measured)


def _quick(measured: Measurement) -> float:
    """The fastest run counts: other programs only ever make them slower."""
    return min(measured.seconds)


def rounded(value: float) -> float:
    """To four digits: more is noise."""
    return float(f"{value:.4g}")
