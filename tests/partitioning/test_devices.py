import pytest

from edgeprune.devices.device_profile import load_profile
from edgeprune.errors import InputError
from edgeprune.partitioning.devices import (
    Device,
    LinkRate,
    check_devices,
    link_between,
    links_in_words,
    load_devices,
    shares,
)

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
    assert shares(devices) is None
    assert devices[0].link_rate.bandwidth_mbit_per_s > 0


def test_a_number_can_come_with_a_profile():
    assert {device.known_profile.name for device in load_devices(2, default_profile="rk3588")} == {"rk3588"}


def test_a_file_names_devices_and_profiles(write):
    devices = load_devices(write(TWO))
    assert [device.name for device in devices] == ["hub", "cam.local"]
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
    assert shares(devices) == (2.0, 6.0)


def test_links_of_pairs_lie_beside_the_one_for_all_others(write):
    links = """
[[device]]
name = "far"
[[link]]
bandwidth_mbit_per_s = 100.0
[[link]]
between = ["hub", "cam.local"]
bandwidth_mbit_per_s = 2000.0
round_trip_ms = 0.1
"""
    hub, cam, far = load_devices(write(TWO + links), default_profile="rk3588")
    assert link_between(hub, cam) == link_between(cam, hub) == LinkRate(2000, 0.1)
    assert link_between(hub, far) == LinkRate(100, hub.link_rate.round_trip_ms)


def test_where_links_come_from_is_said(write):
    third = '[[device]]\nname = "far"\n'
    between = '[[link]]\nbetween = ["hub", "cam.local"]\nround_trip_ms = 0.1\n'
    for_all = "[[link]]\nround_trip_ms = 0.2\n"
    assert links_in_words(load_devices(1)) == "no links"
    assert links_in_words(load_devices(write(TWO))) == "links of the profiles"
    assert links_in_words(load_devices(write(TWO + between))) == "links as told"
    assert links_in_words(load_devices(write(TWO + third + for_all))) == "links as told"
    words = links_in_words(load_devices(write(TWO + third + between)))
    assert words == "links as told, those that are not from the profiles"
    assert load_devices(3)[0].link is None


def test_without_a_link_of_their_own_the_slower_end_decides():
    fast, slow = Device("a", link=LinkRate(1000, 0.1)), Device("b", link=LinkRate(100, 0.5))
    assert link_between(fast, slow) == LinkRate(100, 0.5)


def test_memory_and_threads_are_read(write):
    hub, cam = load_devices(write(TWO + "memory_mb = 64\nthreads = 2\n"))
    assert (hub.memory_bytes, cam.memory_bytes) == (None, 64e6)
    assert (hub.used_threads, cam.used_threads) == (4, 2)


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
        ("[[device]]\nname = 'a'\nprofile = 'rk3589'", "devices.toml: device 'a': unknown device profile 'rk3589'"),
        ("[[device]]\nname = 'a'\nprofile = 'none.toml'", "devices.toml: device 'a': "),
        ("[[device]]\nname = 'a'\n[link]", "the link of all devices says nothing"),
        (
            "[[device]]\nname = 'a'\n[[device]]\nname = 'b'\n[[link]]\nbetween = ['a', 'b']",
            "the link of 'a' and 'b' says nothing; expected bandwidth_mbit_per_s, round_trip_ms or both",
        ),
        ("[[device]]\nname = 'a'\n[[device]]\nname = 'A'", "two devices"),
        ("[[device]]\nname = 'a'\nspeed = 3", "speed"),
        ("[[device]]\nname = 'a'\nshare = -1.0", "share"),
        ("[[device]]\nname = 'a'\nshare = 1.0\n[[device]]\nname = 'b'", "'b' has no share"),
        ("[[device]]\nname = '../a'", "cannot name a folder"),
        ("[[device]]\nname = 'a'\n[link]\nbandwidth_mbit_per_s = 0.0", "bandwidth_mbit_per_s"),
        ("= 3", "is not TOML"),
        ("[[device]]\nname = 'a'\nmemory_mb = 0", "memory_mb"),
        ("[[device]]\nname = 'a'\nprofile = 'raspberry-pi-5'\nthreads = 5", "1 to 4, one a core of raspberry-pi-5"),
        ("[[device]]\nname = 'a'\n[[link]]\nbetween = ['a', 'b']", "a link names the unknown device 'b'"),
        ("[[device]]\nname = 'a'\n[[link]]\nbetween = ['a', 'a']", "a link of 'a' with itself"),
        ("[[device]]\nname = 'a'\n[[link]]\nbetween = ['a']", "between"),
        (
            "[[device]]\nname = 'a'\n[[link]]\nround_trip_ms = 1.0\n[[link]]\nround_trip_ms = 2.0",
            "two links of all devices",
        ),
        (
            "[[device]]\nname = 'a'\n[[device]]\nname = 'b'\n[[link]]\nbetween = ['a', 'b']\nround_trip_ms = 1.0\n[[link]]\nbetween = ['b', 'a']\nround_trip_ms = 1.0",
            "two links of 'b' and 'a'",
        ),
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
