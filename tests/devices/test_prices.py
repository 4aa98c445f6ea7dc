"""What Gathers cost on a device, from whatever its profile tells."""

from __future__ import annotations

import msgspec
import pytest

from edgeprune.devices.device_profile import list_profiles, load_profile
from edgeprune.devices.prices import DevicePrices, prices_for
from edgeprune.errors import InputError


def test_the_cost_table_is_taken_as_it_is() -> None:
    price = DevicePrices.of(load_profile("x86-avx512"))
    assert (price.device, price.macs_per_element, price.macs_per_gather) == ("x86-avx512", 28, 3 * 300_000)
    assert price.gather(1000) == 28 * 1000 + 900_000
    assert price.gather(0) == 0
    assert price.convolution(900, filters=16) == pytest.approx(900 / 0.75)
    assert price.convolution(900, filters=48) == pytest.approx(900 / 0.9)
    assert price.convolution(900, filters=8) == pytest.approx(900 / 0.75)  # the lowest rate that is known


def test_without_a_table_bandwidths_and_the_peak_decide() -> None:
    # 48 GMAC/s a core; all moves at 50 GB/s, 2 MiB at 48.57; a node 1 us
    profile = msgspec.structs.replace(load_profile("x86-avx2"), convolution=None)
    price = DevicePrices.of(profile)
    rate = (50 - 10 / 7) * 1e9
    assert price.macs_per_element == pytest.approx(3 * 8 / rate * 48e9)
    assert price.macs_per_gather == pytest.approx(3 * 48_000)
    assert price.convolution(900, filters=16) == pytest.approx(900 / 0.75)


def test_a_device_that_does_not_reorder_pays_for_the_gather_alone() -> None:
    price = DevicePrices.of(load_profile("raspberry-pi-5"))
    assert price.macs_per_gather == pytest.approx(2e-6 * 19.25e9)
    assert price.macs_per_element < DevicePrices.of(load_profile("x86-avx2")).macs_per_element


def test_a_profile_of_peaks_alone_moves_at_the_bandwidth_of_memory() -> None:
    profile = msgspec.structs.replace(load_profile("raspberry-pi-5"), execution=None)
    price = DevicePrices.of(profile)
    assert price == DevicePrices("raspberry-pi-5", pytest.approx(8 / 17.1e9 * 19.25e9))
    assert price.convolution(900, filters=1) == 900


@pytest.mark.parametrize("name", list_profiles())
def test_every_shipped_profile_prices_gathers(name: str) -> None:
    price = prices_for("auto", name)
    assert price is not None
    assert price.device == name
    assert 0 < price.gather(1) < price.gather(1000)


def test_only_an_alignment_to_a_device_has_a_price() -> None:
    assert prices_for("none", "x86-avx512") is None
    assert prices_for(16, "x86-avx512") is None
    with pytest.raises(InputError, match="nothing"):
        prices_for("auto", "nothing")
