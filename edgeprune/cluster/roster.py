"""Who is in the cluster: what a devices file says of addresses and certificates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeprune.cluster.transport.access import Certificates, rights, secured
from edgeprune.cluster.transport.network import Network, check_endpoint, is_loopback
from edgeprune.cluster.transport.peers import device_of
from edgeprune.errors import InputError, unknown_name
from edgeprune.partitioning.devices import TlsTable, read_devices_file


@dataclass(frozen=True)
class Roster:
    """The devices of a cluster, the host first."""

    names: tuple[str, ...]
    addresses: Mapping[str, str] = field(default_factory=dict)
    """Device -> where its worker listens."""
    folder: Path = Path()
    """That of the file, to which its paths are relative."""
    tls: TlsTable | None = None

    def access_of(self, device: str) -> dict[str, Any]:
        """The certificates and rights of one device as zenoh's settings; empty where the file has no `[tls]`.
        InputError if a certificate is not there."""
        if self.tls is None:
            return {}
        paths = (self.tls.ca, self.tls.certificate, self.tls.key)
        ca, certificate, key = (self.folder / path.replace("{name}", device) for path in paths)
        return {**secured(Certificates(ca, certificate, key)), **rights(device, self.names)}

    def network_of_worker(self, device: str, listen: str, *, discover: bool = False) -> Network:
        """Where a worker listens, and the workers that it connects to: of two, the later one in the file does."""
        if device not in self.names:
            raise unknown_name("device", device, self.names, remedy="name the worker as the devices file does")
        before = self.names[: self.names.index(device)]
        connect = tuple(self.addresses[name] for name in before if name in self.addresses)
        return Network((listen,), connect, self.access_of(device), discover)

    def workers(self, *, discover: bool = False) -> dict[str, str]:
        """Device -> where its worker listens; with `discover` also an empty text for each that has no address and is to
        be found. Of the first device, the host, no worker is expected."""
        found = dict.fromkeys(self.names[1:], "") if discover else {}
        return {**found, **self.addresses}

    def peers_of(self, device: str, *, discover: bool = False) -> tuple[str, ...]:
        """The devices with workers that a worker keeps in touch with."""
        return tuple(name for name in self.workers(discover=discover) if name != device)

    def elsewhere(self, device: str, listen: str) -> str:
        """What to say where a worker does not listen at the port that the others are told; empty if it does."""
        told = self.addresses.get(device, listen)
        if told.rpartition(":")[2] == listen.rpartition(":")[2]:
            return ""
        return f"{device} listens on {listen}, and the devices file sends the others to {told}"

    def of_host(self, device: str) -> str:
        """What to say to who starts a worker for the host; empty for any other device."""
        if len(self.names) < 2 or device != self.names[0]:
            return ""
        return (
            f"{device} is the file's first device, the host: `edgeprune run` computes its part, and no worker is asked"
        )

    def admits(self, address: str) -> bool:
        """Whether a sender's address is that of a device of the file."""
        return device_of(address) in self.names


def load_roster(path: Path) -> Roster:
    """The cluster that a devices file describes; InputError if it is none, or an address is no address, or one that the
    certificates do not protect."""
    file = read_devices_file(path)
    addresses = {entry.name: check_endpoint(entry.address, where=path) for entry in file.device if entry.address}
    if len(set(addresses.values())) < len(addresses):
        raise InputError("two devices have the same address", where=path, expected="an address for each device")
    kinds = {address.partition("/")[0] for address in addresses.values()}
    if file.tls is not None and kinds - {"tls"}:
        raise InputError("has [tls], but addresses without it", where=path, expected="addresses such as tls/NAME:7447")
    if file.tls is None and "tls" in kinds:
        raise InputError(
            "has addresses with TLS, but no certificates",
            where=path,
            expected="a table [tls] with ca, certificate, key",
        )
    return Roster(tuple(entry.name for entry in file.device), addresses, path.parent, file.tls)


def warning_of(network: Network) -> str:
    """What someone who starts a worker should know about where it listens; empty if there is nothing."""
    bare = [end for end in network.listen if not is_loopback(end) and not network.access]
    if not bare:
        return ""
    found = ", and found by everyone in its network" if network.discover else ""
    return f"{', '.join(bare)} is open to everyone who can reach it{found}: give the devices file a [tls] table"
