"""How figures are written, everywhere: MACs, milliseconds, speed-ups, bytes; and text out of files made harmless."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

NONE = "–"
"""Stands where there is no figure."""
_LONGEST = 240  # characters of a text out of a file


def count(value: float | None) -> str:
    """MACs or parameters with three or four digits: 980, 41.2 k, 1.82 G."""
    if value is None:
        return NONE
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return f"{_three_digits(value / limit)} {unit}"
    return f"{value:.0f}"


def milliseconds(value: float | None) -> str:
    """1.92 ms; three digits, nanoseconds at the least."""
    return NONE if value is None else f"{_three_digits(value)} ms"


def bare_ms(value: float | None) -> str:
    """As `milliseconds`, for a column that names the unit."""
    return NONE if value is None else _three_digits(value)


def times(value: float | None) -> str:
    """A speed-up or ratio: 1.78x."""
    return NONE if value is None else f"{value:.2f}x"


def interval(value: tuple[float, float] | None) -> str:
    return NONE if value is None else f"{value[0]:.2f} to {value[1]:.2f}x"


def percent(value: float | None) -> str:
    """A share in [0, 1]: 84 %."""
    return NONE if value is None else f"{value * 100:.0f} %"


def signed_ms(value: float) -> str:
    """A difference of times, for a column that names the unit: -0.120."""
    return f"{'+' if value > 0 else '-' if value < 0 else ''}{bare_ms(abs(value))}"


def signed_percent(value: float) -> str:
    """A relative change: +4.2 %."""
    return f"{value * 100:+.1f} %"


def top1(value: float | None) -> str:
    """An accuracy that is in per cent already."""
    return NONE if value is None else f"{value:.2f} %"


def score(value: float | None, metric: str = "") -> str:
    """What a metric says, in its own unit; top-1 without one."""
    return top1(value) if not metric else NONE if value is None else f"{value:.4g}"


def score_change(value: float, metric: str = "") -> str:
    """A difference of two scores."""
    return points(value) if not metric else f"{value:+.4g}"


def points(value: float | None) -> str:
    """A difference of two accuracies."""
    return NONE if value is None else f"{value:+.2f} points"


def size(value: float | None) -> str:
    """Bytes, in decimal units as links are rated: 1.05 MB."""
    if value is None:
        return NONE
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{_three_digits(value / limit)} {unit}"
    return f"{value:.0f} B"


def plural(number: int, word: str) -> str:
    """1 thread, 2 threads, 3 batches."""
    ending = "es" if word.endswith(("ch", "s", "x")) else "s"
    return f"{number} {word}{'' if number == 1 else ending}"


def some(names: Sequence[str], most: int = 6, between: str = ", ") -> str:
    """The first few names, and how many more there are."""
    return between.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def harmless(text: object) -> str:
    """Text out of a file in one line, without control and formatting characters (which can turn text around)."""
    line = " ".join(str(text).split())
    return "".join(character for character in line if unicodedata.category(character)[0] != "C")


def clean(text: object) -> str:
    """A name or figure out of a file: as `harmless`, and cut. Sentences are not: they end where they end."""
    kept = harmless(text)
    return kept if len(kept) <= _LONGEST else f"{kept[: _LONGEST - 1]}…"


def shortened(text: str, longest: int) -> str:
    """The text with its middle left out if it is long: the end of a layer's name tells most."""
    if len(text) <= longest:
        return text
    head = (longest - 1) // 3
    return f"{text[:head]}…{text[len(text) - (longest - 1 - head) :]}"


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    digits = 0 if magnitude >= 99.95 else 1 if magnitude >= 9.995 else 2 if magnitude >= 0.9995 else 3
    return f"{value:.{digits if magnitude >= 0.00095 or not magnitude else 6}f}"


def speed_change(speedup: float | None) -> str:
    """`1.50 times as fast`, or `2.00 times as slow` for a speed-up of 0.5."""
    if not speedup:
        return NONE
    return f"{speedup:.2f} times as fast" if speedup >= 1 else f"{1 / speedup:.2f} times as slow"
