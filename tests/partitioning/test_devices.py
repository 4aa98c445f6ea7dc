import pytest

from edgeprune.devices.device_profile import load_profile
from edgeprune.errors import InputError
from edgeprune.partitioning.devices import Device, LinkRate, check_devices, load_devices, rates

TWO = """
[[device]]
name = "hub"
profile = "raspberry-pi-5"
[[device]]
name = "cam.local"
profile = "raspberry-pi-4"
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "devices.toml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("spec", [3, "3", " 3 "])
def test_a_number_gives_equal_devices(spec):
    devices = load_devices(spec)
    assert [device.name for device in devices] == ["device0", "device1", "device2"]
    assert rates(devices) == (1.0, 1.0, 1.0)
    assert devices[0].link_rate.bandwidth_mbit_per_s > 0


def test_a_number_can_come_with_a_profile():
    assert {device.known_profile.name for device in load_devices(2, default_profile="rk3588")} == {"rk3588"}


def test_a_file_names_devices_and_profiles(write):
    devices = load_devices(write(TWO))
    assert [device.name for device in devices] == ["hub", "cam.local"]
    assert rates(devices) == (77e9, 29e9)
    assert devices[1].link_rate == LinkRate(941, 0.3)


def test_the_link_of_the_file_replaces_the_profiles(write):
    devices = load_devices(write(TWO + "[link]\nbandwidth_mbit_per_s = 360.0\n"))
    assert {device.link_rate for device in devices} == {LinkRate(360, 0.3)}
    assert devices[0].link_rate.seconds(45_000_000) == pytest.approx(1.0)


def test_a_profile_of_ones_own_lies_beside_the_file(write, tmp_path):
    shipped = load_profile("raspberry-pi-4")
    text = """name = "slow"\ndescription = "x"\nkind = "cpu"\ncores = 1
peak_gflops_fp32 = { value = 1, certainty = "measured", source = "x" }
memory_gb_per_s = { value = 1, certainty = "measured", source = "x" }
[channel_block]\nfp32 = 4\ncertainty = "measured"\nsource = "x"
[link]\nbandwidth_mbit_per_s = { value = 10, certainty = "measured", source = "x" }
round_trip_ms = { value = 1, certainty = "measured", source = "x" }"""
    (tmp_path / "slow.toml").write_text(text)
    devices = load_devices(
        write('[[device]]\nname = "a"\nprofile = "slow.toml"\n[[device]]\nname = "b"\n'),
        default_profile="raspberry-pi-4",
    )
    assert [device.profile.name for device in devices] == ["slow", shipped.name]


def test_shares_come_before_rates(write):
    devices = load_devices(write(TWO.replace("[[device]]", "[[device]]\nshare = 2.0", 1) + "share = 6.0"))
    assert rates(devices) == (2.0, 6.0)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("0", "--devices 0"),
        ("-2", "--devices -2"),
        ("257", "--devices 257"),
        ("many", "neither a number nor a file"),
        ("missing.toml", "missing.toml"),
    ],
)
def test_impossible_numbers_and_missing_files_are_refused(spec, words):
    with pytest.raises(InputError) as error:
        load_devices(spec)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "device"),
        ("device = []", "0 devices"),
        ("[[device]]\nprofile = 'rk3588'", "name"),
        ("[[device]]\nname = 'a'\nprofile = 'rk3589'", "did you mean rk3588"),
        ("[[device]]\nname = 'a'\n[[device]]\nname = 'A'", "two devices"),
        ("[[device]]\nname = 'a'\nspeed = 3", "speed"),
        ("[[device]]\nname = 'a'\nshare = -1.0", "share"),
        ("[[device]]\nname = 'a'\nshare = 1.0\n[[device]]\nname = 'b'", "'b' has no share"),
        ("[[device]]\nname = '../a'", "cannot name a folder"),
        ("[[device]]\nname = 'a'\n[link]\nbandwidth_mbit_per_s = 0.0", "bandwidth_mbit_per_s"),
        ("= 3", "is not TOML"),
    ],
)
def test_faulty_files_are_refused_with_the_reason(write, text, words):
    with pytest.raises(InputError) as error:
        load_devices(write(text))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "/a", "a b", "plan.json", "m.onnx", "a.", "x" * 65, "ä", "a\n"]
)
def test_a_name_that_is_unfit_for_a_folder_is_refused(name):
    with pytest.raises(InputError, match="cannot name a folder"):
        check_devices([Device(name)])
