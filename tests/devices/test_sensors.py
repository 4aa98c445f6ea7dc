"""Clock, temperature and energy, from trees of files as Linux and JetPack lay them out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgeprune.devices.sensors import MachineState, energy_meter, energy_per_run_mj, machine_state

RAPL = {
    "class/powercap/intel-rapl/enabled": "1",
    "class/powercap/intel-rapl:0/name": "package-0",
    "class/powercap/intel-rapl:0/energy_uj": "1000000",
    "class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850",
    "class/powercap/intel-rapl:0:0/name": "core",
    "class/powercap/intel-rapl:0:0/energy_uj": "500000",
    "class/powercap/intel-rapl:1/name": "package-1",
    "class/powercap/intel-rapl:1/energy_uj": "262143328000",
    "class/powercap/intel-rapl:1/max_energy_range_uj": "262143328850",
}
ORIN_NX = {
    f"bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/{name}": text
    for name, text in {
        "in1_label": "VDD_IN",
        "in1_input": "5000",
        "curr1_input": "2000",
        "in2_label": "VDD_CPU_GPU_CV",
        "in2_input": "5000",
        "curr2_input": "500",
        "in7_label": "sum of shunt voltages",
        "in7_input": "12",
    }.items()
}
AGX_ORIN = {
    f"bus/i2c/drivers/ina3221/1-004{chip}/hwmon/hwmon{chip}/{name}": text
    for chip, files in enumerate(
        (
            {"in1_label": "VDD_GPU_SOC", "in1_input": "20000", "curr1_input": "100"},
            {"in2_label": "VIN_SYS_5V0", "in2_input": "5000", "curr2_input": "600"},
            {"in2_label": "VDDQ_VDD2_1V8AO", "in2_input": "5000", "curr2_input": "200"},
        )
    )
    for name, text in files.items()
}
NANO = {
    f"bus/i2c/drivers/ina3221x/6-0040/iio:device0/{name}": text
    for name, text in {
        "rail_name_0": "POM_5V_IN",
        "in_power0_input": "2500",
        "rail_name_1": "POM_5V_GPU",
        "in_power1_input": "900",
    }.items()
}


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_clock_and_temperature_are_those_of_the_cores_that_are_used(tmp_path: Path) -> None:
    cpu = "devices/system/cpu/cpu"
    root = tree(
        tmp_path,
        {
            f"{cpu}0/cpufreq/scaling_cur_freq": "3400000",
            f"{cpu}1/cpufreq/scaling_cur_freq": "3000000",
            f"{cpu}2/cpufreq/scaling_cur_freq": "800000",
            f"{cpu}0/thermal_throttle/core_throttle_count": "3",
            f"{cpu}1/thermal_throttle/core_throttle_count": "4",
            "class/thermal/thermal_zone0/temp": "45500",
            "class/thermal/thermal_zone1/temp": "61250",
            "class/thermal/thermal_zone2/temp": "disabled",
        },
    )
    assert machine_state((0, 1), root) == MachineState(3200.0, 61.2, 7)


def test_a_machine_that_tells_nothing_has_no_state_and_no_meter(tmp_path: Path) -> None:
    assert machine_state((0,), tmp_path) == MachineState()
    assert energy_meter(tmp_path) is None


def test_energy_is_that_of_whole_packages_also_when_a_counter_begins_anew(tmp_path: Path) -> None:
    meter = energy_meter(tree(tmp_path, RAPL))
    assert meter is not None
    assert "RAPL" in meter.source
    meter.start()
    tree(
        tmp_path,
        {"class/powercap/intel-rapl:0/energy_uj": "3000000", "class/powercap/intel-rapl:1/energy_uj": "999150"},
    )
    assert meter.stop() == pytest.approx(2.0 + 1.0)


def test_counters_that_may_not_be_read_are_none(tmp_path: Path) -> None:
    root = tree(tmp_path, {**RAPL, "class/powercap/intel-rapl:1/name": "psys"})
    (root / "class/powercap/intel-rapl:0/energy_uj").unlink()
    assert energy_meter(root) is None


def test_counters_that_vanish_give_no_energy(tmp_path: Path) -> None:
    meter = energy_meter(tree(tmp_path, RAPL))
    assert meter is not None
    meter.start()
    (tmp_path / "class/powercap/intel-rapl:0/energy_uj").unlink()
    assert meter.stop() is None


@pytest.mark.parametrize(
    ("files", "watts", "rails"),
    [
        (ORIN_NX, 10.0, "(VDD_IN)"),
        (AGX_ORIN, 5.0, "(VDD_GPU_SOC, VIN_SYS_5V0)"),
        (NANO, 2.5, "(POM_5V_IN)"),
        ({**RAPL, **NANO}, 2.5, "(POM_5V_IN)"),
    ],
)
def test_a_jetsons_energy_is_the_power_of_the_rails_that_feed_the_board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Mapping[str, str], watts: float, rails: str
) -> None:
    meter = energy_meter(tree(tmp_path, files))
    assert meter is not None
    assert rails in meter.source
    clock = iter((10.0, 13.0))
    monkeypatch.setattr("edgeprune.devices.sensors.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    meter.start()
    assert meter.stop() == pytest.approx(3 * watts)


def test_energy_is_spread_over_the_runs(tmp_path: Path) -> None:
    class Counted:
        source = "test"

        def start(self) -> None:
            self.runs = 0

        def stop(self) -> float:
            return 0.005 * self.runs

    meter = Counted()

    def run() -> None:
        meter.runs += 1

    assert energy_per_run_mj(run, meter, seconds=0.0, runs=7) == pytest.approx(5.0)
