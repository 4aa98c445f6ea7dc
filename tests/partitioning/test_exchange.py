"""Pruning for several devices: channels mix between groups only where that is worth the exchange."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeprune.cli import main
from edgeprune.cli.flags.method import PruneFlags
from edgeprune.devices.device_profile import load_profile
from edgeprune.devices.prices import DevicePrices, Exchange
from edgeprune.errors import InputError
from edgeprune.onnx_files.model import load_model
from edgeprune.partitioning.devices import load_devices
from edgeprune.partitioning.exchange import mixing_price
from edgeprune.partitioning.executor import LocalExecutor
from edgeprune.partitioning.partition import load_partition
from edgeprune.plans.plan import load_plan
from edgeprune.runners.onnxruntime.runner import OrtRunner

PI = "raspberry-pi-5"


def devices_file(folder: Path, bandwidth: float) -> str:
    path = folder / f"devices-{bandwidth:g}.toml"
    path.write_text(
        f'[[device]]\nname = "a"\nprofile = "{PI}"\n[[device]]\nname = "b"\nprofile = "{PI}"\n'
        f"[link]\nbandwidth_mbit_per_s = {bandwidth}\nround_trip_ms = 0.5\n"
    )
    return str(path)


def test_an_element_that_mixes_costs_its_way_over_the_link(tmp_path: Path) -> None:
    price, profile = mixing_price(load_devices(devices_file(tmp_path, 100))), load_profile(PI)
    alone = DevicePrices.of(profile)
    seconds = 4 * (1 - 1 / 2) / (100e6 / 8)
    assert price.macs_per_element - alone.macs_per_element == pytest.approx(seconds * profile.macs_per_s)
    assert price.macs_per_gather - alone.macs_per_gather == pytest.approx(0.5e-3 * profile.macs_per_s)
    assert price.device == "2 devices"


def test_of_more_devices_more_comes_from_elsewhere() -> None:
    alone = DevicePrices("a device", 0.0)
    four, two = (alone.over(Exchange((1.0,) * count, 8.0, 0.0)).macs_per_element for count in (4, 2))
    assert four == pytest.approx(1.5 * two)


def test_an_exchange_costs_its_start_and_its_elements_times_the_weight(tmp_path: Path) -> None:
    devices, rate = load_devices(devices_file(tmp_path, 100)), load_profile(PI).macs_per_s
    whole, tenth = (mixing_price(devices, weight) for weight in (1.0, 0.1))
    assert whole.exchange.cost(1000) == pytest.approx((0.5e-3 + 1000 * 4 / 12.5e6) * rate)
    assert tenth.exchange.cost(1000) == pytest.approx(0.1 * whole.exchange.cost(1000))
    assert whole.exchange.cost(0) == 0
    assert whole.exchange.shares == (rate, rate)
    assert mixing_price(devices, 0.0) is None


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_a_weight_that_is_no_price_is_refused(weight: float) -> None:
    with pytest.raises(InputError, match="--exchange-weight"):
        PruneFlags(method="gconv", groups=4, for_devices="2", exchange_weight=weight).options(0)


def test_a_weight_without_devices_is_refused() -> None:
    with pytest.raises(InputError, match="--exchange-weight without devices"):
        PruneFlags(method="gconv", groups=4, exchange_weight=0.5).options(0)


def test_the_link_of_a_pair_and_the_threads_of_a_device_count(tmp_path: Path) -> None:
    path = Path(devices_file(tmp_path, 1000))
    slow = 'between = ["a", "b"]\nbandwidth_mbit_per_s = 10\nround_trip_ms = 0.5\n'
    text = path.read_text().replace("[link]\n", "[[link]]\n").replace('name = "b"\n', 'name = "b"\nthreads = 1\n')
    path.write_text(f"{text}[[link]]\n{slow}")
    price, profile = mixing_price(load_devices(str(path))), load_profile(PI)
    moved = 4 * (1 - 1 / 2) / (10e6 / 8) * profile.macs_per_s_of(1)
    assert price.macs_per_element - DevicePrices.of(profile).macs_per_element == pytest.approx(moved)


@pytest.mark.parametrize("devices", ["1", "nothing.toml"])
def test_what_are_no_several_devices_is_refused(devices: str) -> None:
    with pytest.raises(InputError):
        PruneFlags(method="gconv", groups=4, for_devices=devices).options(0)


@pytest.mark.parametrize("method", ["csgd", "fpgm"])
def test_methods_that_do_not_look_at_devices_say_so(method: str) -> None:
    with pytest.raises(InputError, match="takes no --for-devices"):
        PruneFlags(method=method, for_devices="2").options(0)


def test_the_plan_tells_the_price_of_its_devices(tmp_path: Path) -> None:
    network = (
        "--arch",
        "resnet8-w32",
        "--random-init",
        "--input-size",
        "3,16,16",
        "--method",
        "gconv",
        "--groups",
        "4",
    )
    told = {}
    for bandwidth in (1, 1e9):
        out = tmp_path / f"{bandwidth:g}"
        flags = ("--for-devices", devices_file(tmp_path, bandwidth))
        assert main(["prune", *network, *flags, "-o", str(out), "--quiet"]) == 0
        plan = load_plan(out / "plan.json")
        told[bandwidth] = plan.settings["prices"]
        assert plan.settings["prices"]["device"] == "2 devices"
    assert told[1]["macs_per_element"] > 1e4 * told[1e9]["macs_per_element"]


NETWORK = ("--arch", "resnet8-w32", "--random-init", "--input-size", "3,16,16", "--num-classes", "10", "--groups", "4")


@pytest.mark.parametrize("method", ["tmi-gkp", "gconv"])
def test_exchange_for_nothing_leaves_the_plan_as_it_is_without_devices(method: str, tmp_path: Path) -> None:
    plans = []
    for number, flags in enumerate(((), ("--for-devices", "2", "--exchange-weight", "0"))):
        out = tmp_path / str(number)
        assert main(["prune", *NETWORK, "--method", method, *flags, "-o", str(out), "--quiet"]) == 0
        plans.append((out / "plan.json").read_bytes())
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    "method",
    [("tmi-gkp", "--rate", "0.5", "--set", "scheme=kpca"), ("gconv",)],
    ids=["tmi-gkp", "gconv"],
)
def test_a_network_for_two_devices_is_split_with_hardly_any_exchange(method: tuple[str, ...], tmp_path: Path) -> None:
    """No layer in groups reads from afar, but for zero-channel shortcuts; the parts compute what the whole does."""
    devices, moved = devices_file(tmp_path, 100), {}
    for weight in ("0", "1"):
        out, parts = tmp_path / weight, tmp_path / f"parts-{weight}"
        flags = ("--for-devices", devices, "--exchange-weight", weight)
        assert main(["export", *NETWORK, "--method", *method, *flags, "-o", str(out), "--quiet"]) == 0
        assert main(["split", str(out), "--devices", devices, "--force", "-o", str(parts), "--quiet"]) == 0
        moved[weight] = load_partition(parts).manifest.predicted.bytes_per_inference
        x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
        with OrtRunner(
            load_model(out / "plain.onnx" if (out / "plain.onnx").exists() else out / "model.onnx")
        ) as whole:
            expected = whole.run({"input": x})["output"]
        with LocalExecutor(parts) as executor:
            found = executor.run({"input": x})["output"]
        assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)
    assert moved["1"] < 0.35 * moved["0"]
