"""The devices that a network is divided over: how many, of which type, how fast, and how they are linked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from edgeprune.devices.device_profile import DeviceProfile, load_profile
from edgeprune.devices.figures import Positive
from edgeprune.devices.this_machine import default_profile_name
from edgeprune.errors import InputError
from edgeprune.io.toml_files import read_toml

MAX_DEVICES = 256
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?")
_TAKEN = (".json", ".onnx")  # a device's name is that of its folder, beside the files of a bundle


@dataclass(frozen=True)
class LinkRate:
    """A device's connection to the host."""

    bandwidth_mbit_per_s: float
    round_trip_ms: float

    def seconds(self, size: float) -> float:
        """Time to move `size` bytes, without the round trip."""
        return size * 8 / (self.bandwidth_mbit_per_s * 1e6)


@dataclass(frozen=True)
class Device:
    """One device. The first of several is the host, which feeds the others."""

    name: str
    profile: DeviceProfile | None = None
    """None: not known; estimates take the profile of this machine."""
    share: float | None = None
    """Its share of the groups, relative to the other devices' shares; None: by the profiles' rates."""
    link: LinkRate | None = None
    """None: that of the profile."""
    address: str = ""
    """Where its worker listens, such as tcp/192.168.0.11:7447; empty: not known, or it is the host."""

    @property
    def known_profile(self) -> DeviceProfile:
        return self.profile or load_profile(default_profile_name())

    @property
    def link_rate(self) -> LinkRate:
        link = self.known_profile.link
        return self.link or LinkRate(link.bandwidth_mbit_per_s.value, link.round_trip_ms.value)


def load_devices(spec: str | int | Path, *, default_profile: str = "") -> tuple[Device, ...]:
    """`--devices`: a number N gives N equal devices device0, device1 ...; else a TOML file that lists them.

    The file holds one `[[device]]` table a device, the host first, with `name`, `profile` (a name, or the path of a
    profile relative to the file) and optionally `share`; and optionally one `[link]` table with
    `bandwidth_mbit_per_s` and `round_trip_ms`, in place of the profiles' figures. `default_profile`: of the devices
    for which none is given; without it their type counts as not known.
    """
    usual = load_profile(default_profile) if default_profile else None
    text = str(spec).strip()
    if re.fullmatch(r"[+-]?\d+", text):
        count = int(text)
        if not 1 <= count <= MAX_DEVICES:
            raise InputError(
                f"--devices {text} is out of range", expected=f"1 to {MAX_DEVICES} devices, or a TOML file"
            )
        return tuple(Device(f"device{number}", usual) for number in range(count))
    path = Path(text)
    if not path.exists() and not text.endswith(".toml"):
        raise InputError(
            f"--devices {text!r} is neither a number nor a file", expected="a number, or a TOML file of devices"
        )
    file = read_toml(path, _DevicesFile, what="a list of devices")
    devices = tuple(_device(entry, file.link, path, usual) for entry in file.device)
    check_devices(devices, where=path)
    return devices


def check_devices(devices: Sequence[Device], *, where: object = "") -> None:
    """InputError if there are none, too many, a name is unfit or used twice, or only some have a share."""
    if not 1 <= len(devices) <= MAX_DEVICES:
        raise InputError(f"{len(devices)} devices", where=where, expected=f"1 to {MAX_DEVICES}")
    seen: set[str] = set()
    for device in devices:
        if not _NAME.fullmatch(device.name) or device.name.lower().endswith(_TAKEN):
            raise InputError(
                f"device name {device.name!r} cannot name a folder",
                where=where,
                expected="up to 64 letters, digits, dots, dashes and underscores, with no ending like a file's",
            )
        if device.name.lower() in seen:
            raise InputError(f"two devices are named {device.name!r}", where=where, expected="a name for each device")
        seen.add(device.name.lower())
        if device.share is not None and not 0 < device.share < float("inf"):
            raise InputError(
                f"device {device.name!r} has share {device.share}", where=where, expected="a number above 0"
            )
    if len({device.share is None for device in devices}) > 1:
        bare = next(device.name for device in devices if device.share is None)
        raise InputError(
            f"device {bare!r} has no share, others have one",
            where=where,
            expected="a share for each device or for none",
        )


def rates(devices: Sequence[Device]) -> tuple[float, ...]:
    """What the groups are divided by: the shares, else the profiles' peak rates, else equal parts."""
    if all(device.share is not None for device in devices):
        return tuple(device.share or 1.0 for device in devices)
    if all(device.profile is None for device in devices):
        return (1.0,) * len(devices)
    return tuple(device.known_profile.macs_per_s for device in devices)


class _LinkTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bandwidth_mbit_per_s: Positive | None = None
    round_trip_ms: Annotated[float, msgspec.Meta(ge=0)] | None = None


class _DeviceTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    profile: str | None = None
    share: Positive | None = None
    address: str = ""


class _DevicesFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device: tuple[_DeviceTable, ...]
    link: _LinkTable = _LinkTable()
    tls: dict[str, str] = {}
    """Certificates; `cluster/roster.py` reads them."""


def _device(entry: _DeviceTable, link: _LinkTable, path: Path, profile: DeviceProfile | None) -> Device:
    if entry.profile is not None:
        own = entry.profile.endswith(".toml")
        profile = load_profile(path.parent / entry.profile if own else entry.profile)
    device = Device(entry.name, profile, entry.share, address=entry.address)
    if link.bandwidth_mbit_per_s is None and link.round_trip_ms is None:
        return device
    own_link = device.link_rate
    rate = LinkRate(
        own_link.bandwidth_mbit_per_s if link.bandwidth_mbit_per_s is None else link.bandwidth_mbit_per_s,
        own_link.round_trip_ms if link.round_trip_ms is None else link.round_trip_ms,
    )
    return Device(entry.name, profile, entry.share, rate, entry.address)
