"""The devices that a network is divided over: how many, of which type, how fast, and how they are linked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import msgspec

from edgeprune.devices.device_profile import DeviceProfile, load_profile
from edgeprune.devices.figures import Count, Positive
from edgeprune.devices.this_machine import default_profile_name
from edgeprune.errors import InputError, unknown_name
from edgeprune.io.toml_files import read_toml

MAX_DEVICES = 256
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?")
_TAKEN = (".json", ".onnx")  # a device's name is that of its folder, beside the files of a bundle


@dataclass(frozen=True)
class LinkRate:
    """A device's connection to the others, or that of two devices."""

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
    links: Mapping[str, LinkRate] = field(default_factory=dict)
    """Other device's name -> what connects the two, where it is not the devices' own links."""
    memory_mb: float | None = None
    """10^6 bytes that weights and activations may take; None: as many as they need."""
    threads: int | None = None
    """That compute on it, one a core; None: one on each core."""
    address: str = ""
    """Where its worker listens, such as tcp/192.168.0.11:7447; empty: not known, or it is the host."""

    @property
    def memory_bytes(self) -> float | None:
        return None if self.memory_mb is None else self.memory_mb * 1e6

    @property
    def used_threads(self) -> int:
        profile = self.known_profile
        return profile.cores if self.threads is None or profile.kind == "gpu" else self.threads

    @property
    def known_profile(self) -> DeviceProfile:
        return self.profile or load_profile(default_profile_name())

    @property
    def link_rate(self) -> LinkRate:
        link = self.known_profile.link
        return self.link or LinkRate(link.bandwidth_mbit_per_s.value, link.round_trip_ms.value)


def link_between(one: Device, other: Device) -> LinkRate:
    """What connects two devices: their own link, else the slower of what each has."""
    own = one.links.get(other.name) or other.links.get(one.name)
    first, second = one.link_rate, other.link_rate
    return own or LinkRate(
        min(first.bandwidth_mbit_per_s, second.bandwidth_mbit_per_s), max(first.round_trip_ms, second.round_trip_ms)
    )


def links_in_words(devices: Sequence[Device]) -> str:
    """Where the figures of the links come from."""
    if len(devices) < 2:
        return "no links"
    told = {
        other.name in one.links or None not in (one.link, other.link)
        for number, one in enumerate(devices)
        for other in devices[:number]
    }
    return {frozenset({True}): "links as told", frozenset({False}): "links of the profiles"}.get(
        frozenset(told), "links as told, those that are not from the profiles"
    )


def load_devices(spec: str | int | Path, *, default_profile: str = "") -> tuple[Device, ...]:
    """`--devices`: a number N gives N equal devices device0, device1 ...; else a TOML file that lists them.

    The file holds one `[[device]]` table a device, the host first, with `name`, `profile` (a name, or the path of a
    profile relative to the file) and optionally `share`, `memory_mb` and `threads`. `[[link]]` tables with
    `bandwidth_mbit_per_s` and `round_trip_ms` replace the profiles' figures: for two devices where one names them with
    `between = ["a", "b"]`, else for all others. `default_profile`: of the devices for which none is given; without it
    their type counts as not known.
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
    file = read_devices_file(path)
    usual_link = next((link for link in file.links if link.between is None), LinkTable())
    devices = tuple(_device(entry, usual_link, path, usual) for entry in file.device)
    check_devices(devices, where=path)
    return _linked(devices, file.links)


def read_devices_file(path: Path) -> DevicesFile:
    """What a devices file says, without the profiles; InputError if it is none, or its names or links contradict each
    other."""
    file = read_toml(path, DevicesFile, what="a list of devices", fields=_FIELDS)
    check_devices([Device(entry.name) for entry in file.device], where=path)
    _check_links(file, path)
    return file


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
        if device.threads is not None and not 1 <= device.used_threads <= device.known_profile.cores:
            raise InputError(
                f"device {device.name!r} has {device.threads} threads",
                where=where,
                expected=f"1 to {device.known_profile.cores}, one a core of {device.known_profile.name}",
            )
    if len({device.share is None for device in devices}) > 1:
        bare = next(device.name for device in devices if device.share is None)
        raise InputError(
            f"device {bare!r} has no share, others have one",
            where=where,
            expected="a share for each device or for none",
        )


def shares(devices: Sequence[Device]) -> tuple[float, ...] | None:
    """What the user says that the work is divided by; None where nothing is said."""
    given = tuple(device.share for device in devices if device.share is not None)
    return given if len(given) == len(devices) else None


class LinkTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bandwidth_mbit_per_s: Positive | None = None
    round_trip_ms: Annotated[float, msgspec.Meta(ge=0)] | None = None
    between: tuple[str, str] | None = None


class DeviceTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    profile: str | None = None
    share: Positive | None = None
    memory_mb: Positive | None = None
    threads: Count | None = None
    address: str = ""


_FIELDS = (
    f"a [[device]] table for each, with name and maybe {', '.join(DeviceTable.__struct_fields__[1:])}; "
    f"maybe [link] or [[link]] with {', '.join(LinkTable.__struct_fields__)}; maybe [tls]"
)


class TlsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files in PEM; `{name}` in them is the device's."""

    ca: str
    certificate: str
    key: str


class DevicesFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device: tuple[DeviceTable, ...]
    link: LinkTable | tuple[LinkTable, ...] = ()
    tls: TlsTable | None = None

    @property
    def links(self) -> tuple[LinkTable, ...]:
        return (self.link,) if isinstance(self.link, LinkTable) else self.link


def _check_links(file: DevicesFile, path: Path) -> None:
    """InputError for a link that says nothing, is one of several for the same devices, or of devices that are none."""
    names, seen = [entry.name for entry in file.device], set[frozenset[str]]()
    for link in file.links:
        pair = frozenset(link.between or ())
        what = f"of {' and '.join(map(repr, link.between))}" if link.between else "of all devices"
        for name in link.between or ():
            if name not in names:
                error = unknown_name("device", name, names)
                raise InputError(f"a link names the {error.what}", where=path, expected=error.expected)
        if len(pair) == 1:
            raise InputError(f"a link of {min(pair)!r} with itself", where=path, expected="two devices")
        if link.bandwidth_mbit_per_s is None and link.round_trip_ms is None:
            expected = "bandwidth_mbit_per_s, round_trip_ms or both"
            raise InputError(f"the link {what} says nothing", where=path, expected=expected)
        if pair in seen:
            expected = 'one for each two devices, with between = ["a", "b"], and one without for all others'
            raise InputError(f"two links {what}", where=path, expected=expected)
        seen.add(pair)


def _device(entry: DeviceTable, link: LinkTable, path: Path, profile: DeviceProfile | None) -> Device:
    if entry.profile is not None:
        own = entry.profile.endswith(".toml")
        try:
            profile = load_profile(path.parent / entry.profile if own else entry.profile)
        except InputError as error:
            what = f"{error.where}: {error.what}" if error.where else error.what
            raise InputError(
                f"device {entry.name!r}: {what}", where=path, expected=error.expected, remedy=error.remedy
            ) from error
    device = Device(
        entry.name, profile, entry.share, memory_mb=entry.memory_mb, threads=entry.threads, address=entry.address
    )
    is_told = link.bandwidth_mbit_per_s is not None or link.round_trip_ms is not None
    return replace(device, link=_rate(link, device.link_rate)) if is_told else device


def _rate(link: LinkTable, otherwise: LinkRate) -> LinkRate:
    return LinkRate(
        otherwise.bandwidth_mbit_per_s if link.bandwidth_mbit_per_s is None else link.bandwidth_mbit_per_s,
        otherwise.round_trip_ms if link.round_trip_ms is None else link.round_trip_ms,
    )


def _linked(devices: Sequence[Device], links: Sequence[LinkTable]) -> tuple[Device, ...]:
    """The devices with the links of pairs."""
    by_name = {device.name: device for device in devices}
    found: dict[str, dict[str, LinkRate]] = {name: {} for name in by_name}
    for link in links:
        if link.between is not None:
            one, other = link.between
            rate = _rate(link, link_between(by_name[one], by_name[other]))
            found[one][other] = found[other][one] = rate
    return tuple(replace(device, links=found[device.name]) for device in devices)
