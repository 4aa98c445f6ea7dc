"""What is said of one measured result: where it was measured, and whether to trust it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgeprune.io import formatting as f
from edgeprune.profiling.result import Environment, Latency, Result, SweepFailure

MOST_PLACES = 4
"""Settings that are named behind a sentence."""
_FIGURE = re.compile(r"\d[\d.,]*")
_PERCENTAGE = re.compile(r"\d+(?:\.\d+)?(?= ?%)")


@dataclass(frozen=True, order=True)
class Setting:
    """What must be the same for two results to be held against each other."""

    target: str
    precision: str
    batch_size: int
    threads: int

    @staticmethod
    def of(result: Result) -> Setting:
        return Setting(result.target, result.precision, result.batch_size, result.threads)

    def __str__(self) -> str:
        """cpu, batch 1, 2 threads; with the precision where it is not the usual FP32."""
        size, threads = f"batch {self.batch_size}", f.plural(self.threads, "thread")
        return ", ".join((f.clean(self.target), *precision_words(self.precision), size, threads))


def setting(result: Result) -> str:
    """Where a result was measured, in words."""
    return str(Setting.of(result))


def failure_words(failure: SweepFailure) -> str:
    """What could not be measured, and why."""
    return f"{f.clean(failure.setting)}: could not be measured: {f.harmless(failure.error)}"


def without_percentage(text: str) -> str:
    """The same for sentences that differ in their only percentage alone."""
    return _PERCENTAGE.sub("", text) if len(_PERCENTAGE.findall(text)) == 1 else text


def without_figures(text: str) -> str:
    """The same for sentences that differ in their figures alone."""
    return _FIGURE.sub("0", text)


def placed(
    found: Iterable[tuple[str, Result]], settings: int, *, alike: Callable[[str], str] = without_percentage
) -> tuple[str, ...]:
    """Every text once, with the settings that it holds for, where it is not all of several.

    Texts with the same `alike` are told as one: with the least and the largest where they differ by their only
    percentage; else the first of them, and where the others hold.
    """
    places: dict[str, dict[str, dict[str, None]]] = {}
    for raw, result in found:
        text = f.harmless(raw)
        places.setdefault(alike(text), {}).setdefault(text, {})[setting(result)] = None
    return tuple(_placed(texts, settings) for texts in places.values())


def _placed(texts: Mapping[str, Mapping[str, None]], settings: int) -> str:
    """The first text with its settings, and those of the others."""
    if len({without_percentage(text) for text in texts}) == 1:
        texts = {_joined(list(texts)): {name: None for names in texts.values() for name in names}}
    (text, where), *others = texts.items()
    elsewhere = list(dict.fromkeys(name for _, names in others for name in names))
    if len(where) == settings > 1 and not elsewhere:
        return text
    more = f"; likewise, with other figures: {f.some(elsewhere, MOST_PLACES, '; ')}" if elsewhere else ""
    return f"{text} ({f.some(list(where), MOST_PLACES, '; ')}{more})"


def _joined(texts: Sequence[str]) -> str:
    """One text of several that differ by their only percentage, if at all."""
    if len(texts) == 1:
        return texts[0]
    shares = sorted((share for text in texts for share in _PERCENTAGE.findall(text)), key=float)
    return _PERCENTAGE.sub(f"{shares[0]}–{shares[-1]}", texts[0])


def precision_words(precision: str) -> tuple[str, ...]:
    """Nothing for FP32."""
    return () if precision == "fp32" else (f.clean(precision),)


def machine_words(machine: Environment) -> dict[str, str]:
    """The machine as it was, by what is told of it; empty text for what it does not tell."""
    return {
        "date (UTC)": machine.date,
        "processor": machine.cpu,
        "instruction sets": " ".join(machine.flags),
        "cores": str(machine.cores),
        "memory": f"{machine.memory_gb:g} GB" if machine.memory_gb else "",
        "GPU": machine.gpu,
        "system": machine.platform,
        "clock governor": machine.governor,
        "load average before": "" if machine.load_average is None else str(machine.load_average),
    }


def samples_per_second(batch_size: int, taken: Latency | None) -> float | None:
    """At the median latency; None where there is none."""
    return batch_size / taken.p50_ms * 1e3 if taken is not None and taken.p50_ms else None


def is_settled(result: Result) -> bool:
    """Whether the times of both networks came to rest within their time limit."""
    return result.pruned.settled and (result.dense is None or result.dense.settled)


def unsettled_mark(settled: bool) -> str:
    """Goes behind a figure that did not settle."""
    return "" if settled else " (unsettled)"
