"""What a device profile says of other runtimes, and who goes by it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Literal

import pytest

from edgeprune.cli import main
from edgeprune.cli.flags.method import PruneFlags
from edgeprune.devices.device_profile import channel_block_for, device_on, list_profiles, load_profile, runtime_name
from edgeprune.devices.prices import DevicePrices
from edgeprune.errors import InputError
from edgeprune.io import progress
from edgeprune.io.toml_files import toml_text
from edgeprune.pipeline.profile import _estimated_as
from edgeprune.profiling.profiler import machine_facts


def test_a_runtime_behind_an_at_has_its_own_block_and_table() -> None:
    plain, litert = load_profile("x86-avx2"), load_profile("x86-avx2@litert")
    assert litert.name == "x86-avx2@litert"
    assert litert.convolution == plain.runtimes["litert"].convolution != plain.convolution
    assert litert.execution == plain.execution
    assert channel_block_for("auto", "raspberry-pi-5@litert") == 8
    assert channel_block_for("auto", "raspberry-pi-5") == 4
    assert DevicePrices.of(litert).macs_per_element > 10 * DevicePrices.of(plain).macs_per_element


def test_a_runtime_that_has_no_gather_has_no_price_for_one() -> None:
    ncnn = load_profile("x86-avx2@ncnn")
    assert ncnn.convolution
    assert ncnn.convolution.gather_macs(0) == 0
    assert ncnn.convolution.gather_macs(1) == float("inf")
    assert DevicePrices.of(ncnn).macs_per_element == 0


@pytest.mark.parametrize("name", ["x86-avx2@tflite", "raspberry-pi-5@litert-int8", "intel-n100@litert"])
def test_what_nobody_measured_is_refused_with_what_is_known(name: str) -> None:
    with pytest.raises(InputError, match="nothing is known of") as raised:
        load_profile(name)
    assert "--calibrate" in str(raised.value)


def test_a_profile_of_ones_own_keeps_its_runtimes(tmp_path: Path) -> None:
    folder = tmp_path / "of@home"
    folder.mkdir()
    (folder / "mine.toml").write_text(toml_text(load_profile("x86-avx2")))
    text = str(folder / "mine.toml")
    assert load_profile(text) == load_profile("x86-avx2") == load_profile(folder / "mine.toml")
    assert load_profile(f"{text}@ncnn").convolution == load_profile("x86-avx2@ncnn").convolution


def test_every_figure_of_a_runtime_has_a_source() -> None:
    for name in list_profiles():
        profile = load_profile(name)
        told = [key for key in profile.figures() if key.startswith("runtimes.")]
        tables = sum(costs.convolution is not None for costs in profile.runtimes.values())
        assert len(told) == len(profile.runtimes) + tables


def test_a_device_names_its_runtime_only_where_that_is_known() -> None:
    assert device_on("x86-avx2", "litert-int8") == "x86-avx2@litert-int8"
    assert device_on("raspberry-pi-5", "litert-int8") == "raspberry-pi-5"
    assert device_on("x86-avx2@ncnn", "litert") == "x86-avx2@ncnn"
    assert runtime_name("cpu", "int8") == "cpu-int8"


@pytest.mark.parametrize(
    ("formats", "precision", "device"),
    [
        (("tflite",), "fp32", "x86-avx2@litert"),
        (("tflite",), "int8", "x86-avx2@litert-int8"),
        (("tflite", "ncnn"), "fp32", "x86-avx2"),
        ((), "fp32", "x86-avx2"),
    ],
)
def test_align_auto_goes_by_the_one_runtime_that_is_written_for(
    formats: tuple[str, ...], precision: str, device: str
) -> None:
    asked = PruneFlags(align="auto", device_profile="x86-avx2")
    request = asked.options(0, formats=formats, precision=precision).request  # type: ignore[arg-type]
    assert request.prices
    assert request.prices.device == device


def test_a_budget_of_time_is_counted_in_onnx_runtime() -> None:
    asked = PruneFlags(align="auto", device_profile="x86-avx2", method="gkp-cal", budget="latency=0.6")
    request = asked.options(0, "digits", formats=("tflite",)).request
    assert request.prices
    assert request.prices.device == "x86-avx2"


def test_causes_go_by_the_runtimes_table() -> None:
    facts = machine_facts("litert", 1, "x86-avx2")
    assert facts.filter_rates[8] == 0.39
    assert machine_facts("cpu", 1, "x86-avx2", "int8").filter_rates[8] == 0.09
    unknown = machine_facts("torch-cpu", 1, "x86-avx2").filter_rates
    assert machine_facts("ncnn", 1, "intel-n100").filter_rates == unknown


def test_the_list_of_devices_says_which_runtimes_are_known(tmp_path: Path) -> None:
    assert main(["list", "devices", "--json", str(tmp_path / "devices.json")]) == 0
    assert "litert-int8" in (tmp_path / "devices.json").read_text()


@pytest.mark.parametrize(
    ("before", "broken", "words"),
    [
        ("channel_block = { value = 8,", "channel_block = { value = 0.3,", "of 0.3 is no whole number"),
        ("channel_block = { value = 8,", "channel_block = { value = inf,", "of inf is no whole number"),
        ("rates = { 4 =", "rates = {} # { 4 =", "length >= 1"),
    ],
)
def test_a_broken_runtime_is_refused(before: str, broken: str, words: str, tmp_path: Path) -> None:
    text = resources.files("edgeprune.device_profiles").joinpath("x86-avx2.toml").read_text()
    at = text.index("[runtimes.litert]")
    (tmp_path / "mine.toml").write_text(text[:at] + text[at:].replace(before, broken, 1))
    with pytest.raises(InputError, match=f"is not a device profile: .*{words}"):
        load_profile(f"{tmp_path / 'mine.toml'}@litert")


def test_a_runtime_without_gathers_is_given_none() -> None:
    def allowed(device: str, gathers: Literal["auto", "any"] = "auto") -> bool:
        return PruneFlags(device_profile=device, gathers=gathers).options(0).request.allows_gathers

    assert not allowed("x86-avx2@ncnn")
    assert allowed("x86-avx2@ncnn", "any")
    assert allowed("x86-avx2@litert")
    assert allowed("x86-avx2")


def test_estimates_are_of_the_device_whatever_runtime_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown(True):
        assert _estimated_as("x86-avx2@litert") == load_profile("x86-avx2")
    assert "estimates are of ONNX Runtime alone: x86-avx2@litert is estimated as x86-avx2" in capsys.readouterr().err
    assert _estimated_as("x86-avx2") == load_profile("x86-avx2")
    with pytest.raises(InputError, match="nothing is known of 'tflite'"):
        _estimated_as("x86-avx2@tflite")
