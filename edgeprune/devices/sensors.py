"""What Linux tells of a machine's clock, temperature and energy, from documented files below /sys.

Nothing here is needed to measure: where a file is missing, or may not be read, the value is None. Clouds' virtual
machines tell nothing at all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Protocol

SYS = Path("/sys")
TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")
"""Jetson's rails that feed all others."""
PART_OF_OTHERS = ("VDDQ_VDD2_1V8AO",)
"""Jetson's rails that another one feeds, where there is no total: that of AGX Orin's memory is within VIN_SYS_5V0."""
ENERGY_SECONDS = 2.0
"""Energy is counted over so long at least: counters move every millisecond, power sensors some 20 times a second."""
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class MachineState:
    """Clock and temperature at one moment."""

    clock_mhz: float | None = None
    """Mean of the cores."""
    temperature_c: float | None = None
    """Of the hottest zone."""
    throttled: int | None = None
    """Times that a core was slowed down because of heat since the system started."""


def machine_state(cores: Iterable[int], root: Path = SYS) -> MachineState:
    """The state of these cores now. Reads `cpufreq`, `thermal_throttle` and the zones of `class/thermal`."""
    folders = [root / f"devices/system/cpu/cpu{core}" for core in cores]
    clocks = _numbers(folder / "cpufreq/scaling_cur_freq" for folder in folders)  # kHz
    throttles = _numbers(folder / "thermal_throttle/core_throttle_count" for folder in folders)
    heats = _numbers(sorted((root / "class/thermal").glob("thermal_zone*/temp")))  # thousandths of a degree
    return MachineState(
        round(fmean(clocks) / 1e3, 1) if clocks else None,
        round(max(heats) / 1e3, 1) if heats else None,
        int(sum(throttles)) if throttles else None,
    )


class EnergyMeter(Protocol):
    """Counts energy between `start` and `stop`."""

    @property
    def source(self) -> str:
        """What is counted, in words."""

    @property
    def whole_board(self) -> bool:
        """Whether accelerators are counted, too."""

    def start(self) -> None: ...

    def stop(self) -> float | None:
        """Joules since `start`; None if they could not be read."""


def energy_meter(root: Path = SYS) -> EnergyMeter | None:
    """The machine's meter: the whole board's power sensors of a Jetson, else the processor's energy counters."""
    rails = _jetson_rails(root)
    if rails:
        return PowerRails(tuple(rails))
    zones = [_Zone.of(folder) for folder in sorted((root / "class/powercap").glob("*-rapl:*"))]
    packages = tuple(zone for zone in zones if zone is not None)
    return RaplCounter(packages) if packages else None


def energy_per_run_mj(
    run: Callable[[], object], meter: EnergyMeter, *, seconds: float = ENERGY_SECONDS, runs: int = 10
) -> float | None:
    """Millijoules of one run, out of as many as take `seconds`, and of no fewer than `runs`."""
    done, begun = 0, time.perf_counter()
    meter.start()
    try:
        while done < runs or time.perf_counter() - begun < seconds:
            run()
            done += 1
    finally:
        joules = meter.stop()
    return None if joules is None else joules / done * 1e3


class RaplCounter:
    """Energy counters of the processor's packages (powercap, `intel-rapl`; AMD's have the same name), in microjoules.

    Many systems let only the administrator read them.
    """

    source = "energy counters of the processor (RAPL)"
    whole_board = False

    def __init__(self, zones: tuple[_Zone, ...]) -> None:
        self._zones, self._before = zones, [0.0] * len(zones)

    def start(self) -> None:
        self._before = [zone.read() or 0.0 for zone in self._zones]

    def stop(self) -> float | None:
        total = 0.0
        for zone, before in zip(self._zones, self._before, strict=True):
            after = zone.read()
            if after is None:
                return None
            total += after - before + (zone.range_uj if after < before else 0.0)  # a counter begins anew at its end
        return total / 1e6


@dataclass(frozen=True)
class _Zone:
    """One package of `class/powercap`."""

    folder: Path
    range_uj: float

    @staticmethod
    def of(folder: Path) -> _Zone | None:
        """None for a part of a package, or a counter that may not be read."""
        if not _text(folder / "name").startswith("package"):
            return None
        zone = _Zone(folder, _number(folder / "max_energy_range_uj") or 0.0)
        return None if zone.read() is None else zone

    def read(self) -> float | None:
        return _number(self.folder / "energy_uj")


@dataclass(frozen=True)
class Rail:
    """One supply of a Jetson: either a file of milliwatts, or one of millivolts and one of milliamperes."""

    name: str
    files: tuple[Path, ...]

    def watts(self) -> float | None:
        values = [_number(file) for file in self.files]
        if any(value is None for value in values):
            return None
        numbers = [value for value in values if value is not None]
        return numbers[0] / 1e3 if len(numbers) == 1 else numbers[0] * numbers[1] / 1e6


class PowerRails:
    """Power sensors of a board, read again and again by a thread of its own; energy is mean power x time."""

    whole_board = True

    def __init__(self, rails: tuple[Rail, ...]) -> None:
        self._rails = rails
        self.source = f"power sensors of the board ({', '.join(rail.name for rail in rails)})"
        self._ended = threading.Event()
        self._watts: list[float] = []

    def start(self) -> None:
        self._ended.clear()
        self._watts, self._begun = [], time.perf_counter()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def stop(self) -> float | None:
        seconds = time.perf_counter() - self._begun
        self._ended.set()
        self._thread.join()
        return fmean(self._watts) * seconds if self._watts else None

    def _poll(self) -> None:
        while True:
            watts = [rail.watts() for rail in self._rails]
            if all(value is not None for value in watts):
                self._watts.append(sum(value for value in watts if value is not None))
            if self._ended.wait(POLL_SECONDS):
                return


def _jetson_rails(root: Path) -> list[Rail]:
    """The rails whose power adds up to the board's: those that NVIDIA's developer guides name for the INA3221."""
    chips = root / "bus/i2c/drivers"
    rails = []
    for label in sorted(chips.glob("ina3221/*/hwmon/hwmon*/in?_label")):  # JetPack 5 and 6
        number = label.name[2]
        rails.append(Rail(_text(label), (label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input"))))
    for label in sorted(chips.glob("ina3221x/*/iio:device*/rail_name_?")):  # JetPack 4
        rails.append(Rail(_text(label), (label.with_name(f"in_power{label.name[-1]}_input"),)))
    rails = [rail for rail in rails if rail.watts() is not None]
    total = [rail for rail in rails if rail.name in TOTAL_RAILS]
    return total[:1] or [rail for rail in rails if rail.name not in (*PART_OF_OTHERS, "NC")]


def _numbers(paths: Iterable[Path]) -> list[float]:
    return [number for path in paths if (number := _number(path)) is not None]


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None


def _text(path: Path) -> str:
    """The file's text; empty where it is missing or may not be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
