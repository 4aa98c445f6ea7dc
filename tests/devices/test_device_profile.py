import msgspec
import pytest

from edgeprune.devices import device_profile, this_machine
from edgeprune.devices.device_profile import DeviceProfile, channel_block_for, list_profiles, load_profile
from edgeprune.devices.this_machine import default_profile_name, this_machine_block
from edgeprune.errors import InputError


def as_toml(data, prefix=""):
    lines, tables = [], []
    for key, value in data.items():
        if isinstance(value, dict):
            tables.append((f"{prefix}{key}", value))
        elif value is not None:
            lines.append(f"{key} = {msgspec.json.encode(value).decode()}")
    for name, table in tables:
        lines += ["", f"[{name}]", as_toml(table, f"{name}.")]
    return "\n".join(lines)


@pytest.fixture
def profile_data():
    return msgspec.to_builtins(load_profile("raspberry-pi-5"))


def test_the_shipped_profiles_are_the_known_devices():
    assert list_profiles() == (
        "intel-n100",
        "jetson-agx-orin-64",
        "jetson-nano",
        "jetson-orin-nano-super",
        "nvidia-h200",
        "nvidia-l4",
        "nvidia-t4",
        "raspberry-pi-4",
        "raspberry-pi-5",
        "rk3588",
        "x86-avx2",
        "x86-avx512",
    )


@pytest.mark.parametrize("name", list_profiles())
def test_every_shipped_profile_is_valid_and_gives_a_source_for_every_figure(name):
    profile = load_profile(name)
    assert profile.name == name
    figures = profile.figures()
    assert figures.keys() >= {"peak_gflops_fp32", "memory_gb_per_s", "channel_block", "link.round_trip_ms"}
    assert figures.keys() >= {"execution.dispatch_us", "execution.rates.spatial"}
    for key, figure in figures.items():
        assert len(figure.source) > 5, key
        assert figure.certainty in ("measured", "published", "derived", "uncertain"), key
        assert figure.certainty == "uncertain" or "assumed" not in figure.source, key
    assert profile.channel_block.fp32 in (4, 8, 16)


def test_rates_are_in_macs():
    assert load_profile("raspberry-pi-5").macs_per_s == 77e9


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match=r"unknown device profile 'raspberry-pi-6'.*did you mean raspberry-pi-"):
        load_profile("raspberry-pi-6")


def test_a_file_that_is_no_toml_file_is_not_taken_for_an_unknown_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fixed.onnx").touch()
    with pytest.raises(InputError, match=r"fixed.onnx: is no .toml file; expected a device profile as a .toml file"):
        load_profile("fixed.onnx")


def test_a_profile_of_ones_own_is_read_from_its_path(tmp_path, profile_data):
    path = tmp_path / "mine.toml"
    path.write_text(as_toml(profile_data | {"name": "mine"}))
    assert load_profile(path).name == "mine"
    assert load_profile(str(path)) == load_profile(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cores": 0}, "$.cores"),
        ({"speed": 3}, "speed"),
        ({"peak_gflops_fp32": 3}, "$.peak_gflops_fp32"),
        ({"peak_gflops_fp32": {"value": -1.0, "certainty": "derived", "source": "x"}}, "$.peak_gflops_fp32.value"),
        ({"memory_gb_per_s": {"value": 1.0, "certainty": "guessed", "source": "x"}}, "$.memory_gb_per_s.certainty"),
        ({"memory_gb_per_s": {"value": 1.0, "certainty": "derived"}}, "source"),
        ({"channel_block": None}, "channel_block"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path, profile_data, change, words):
    path = tmp_path / "mine.toml"
    path.write_text(as_toml(profile_data | change))
    with pytest.raises(InputError) as error:
        load_profile(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"= nonsense", b"\xff\xfe", b""])
def test_what_is_no_profile_is_refused(tmp_path, data):
    path = tmp_path / "mine.toml"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"mine.toml: is not"):
        load_profile(path)


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(InputError, match="TOML file"):
            load_profile(path)


@pytest.mark.parametrize(
    ("flags", "machine", "board", "block", "profile"),
    [
        ({"avx512f", "avx2"}, "x86_64", "", 16, "x86-avx512"),
        ({"avx2"}, "x86_64", "", 8, "x86-avx2"),
        ({"asimd"}, "aarch64", "Raspberry Pi 4 Model B Rev 1.4", 4, "raspberry-pi-4"),
        ({"asimd", "asimdhp"}, "aarch64", "Raspberry Pi 5 Model B", 4, "raspberry-pi-5"),
        ({"asimd", "asimdhp"}, "aarch64", "Orange Pi 5 rockchip,rk3588", 4, "rk3588"),
        ({"asimd", "asimdhp"}, "aarch64", "", 4, "raspberry-pi-5"),
        ({"asimd"}, "aarch64", "", 4, "raspberry-pi-4"),
    ],
)
def test_this_machine_is_recognised(monkeypatch, flags, machine, board, block, profile):
    monkeypatch.setattr(this_machine, "_cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(this_machine, "_board", lambda: board)
    monkeypatch.setattr(this_machine.platform, "machine", lambda: machine)
    assert this_machine_block() == block
    assert default_profile_name() == profile
    assert isinstance(load_profile(profile), DeviceProfile)


def test_a_block_is_asked_for_by_a_profile_or_a_number(monkeypatch):
    assert channel_block_for("auto", "x86-avx2") == 8
    assert channel_block_for("auto", "raspberry-pi-5") == 4
    assert channel_block_for("none", "x86-avx2") == 1
    assert channel_block_for("12") == channel_block_for(12) == 12
    monkeypatch.setattr(device_profile, "default_profile_name", lambda: "x86-avx512")
    assert channel_block_for("auto") == 16
    with pytest.raises(InputError, match="unknown device profile 'x86-avx3'"):
        channel_block_for("none", "x86-avx3")
    for align in ("some", "", 2.5, None):
        with pytest.raises(InputError, match="is no block; expected auto, none, or a number such as 16"):
            channel_block_for(align)


def test_the_machine_that_runs_the_tests_has_a_profile():
    assert default_profile_name() in list_profiles()
    assert this_machine_block() in (4, 8, 16)
