"""The zenoh session of a node: everything that zenoh would decide by itself is decided here.

No discovery unless it is asked for, no shared memory (it leaks segments when a process is killed), no listening but
where it was told to. A connection to an address that is lost is built up again several times a second; one that stalls
is closed after `LEASE_MS`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil

from edgeprune.cluster.transport.frames import MOST_FRAME
from edgeprune.errors import InputError, first_line

LEASE_MS = 1500
RETRY_MS = 200
OPEN_MS = 2000
"""How long a handshake may take: a frozen process accepts connections and says nothing, and closing waits for it."""
SCOUT_GROUP = "224.0.0.224:7448"
"""Where nodes that look for each other ask, by UDP: the group of zenoh, at a port of edgeprune's own, so that other
applications of zenoh in the same network are not met. Routers do not pass it on."""
_ENDPOINT = re.compile(r"(tcp|tls)/(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})")
_SOURCE = re.compile(r" at /\S+:\d+\.?")
"""Where in its own source zenoh noticed an error."""
_LOOPBACK_NAMES = {"localhost"}


@dataclass(frozen=True)
class Network:
    """Where a node listens, whom it connects to, and whom it admits."""

    listen: tuple[str, ...] = ()
    connect: tuple[str, ...] = ()
    access: Mapping[str, Any] = field(default_factory=dict)
    """zenoh settings that say who is admitted; empty: whoever can reach the address."""
    discover: bool = False
    """Whether it looks for other nodes by multicast, and one that listens answers to those that look for it."""


def check_endpoint(endpoint: str, *, where: object = "") -> str:
    """The address as zenoh takes it; InputError if it is none."""
    found = _ENDPOINT.fullmatch(endpoint)
    if found is None or not 1 <= int(found[3]) <= 65535:
        raise InputError(f"{endpoint!r} is no address", where=where, expected="such as tcp/192.168.0.11:7447")
    return endpoint


def free_addresses(count: int) -> list[str]:
    """Addresses on loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"tcp/127.0.0.1:{one.getsockname()[1]}" for one in sockets]


def is_loopback(endpoint: str) -> bool:
    """Whether only this machine can reach the address."""
    found = _ENDPOINT.fullmatch(endpoint)
    host = found[2].strip("[]") if found else ""
    if host in _LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def settings(network: Network) -> dict[str, Any]:
    """The whole configuration by zenoh's keys."""
    return {
        "mode": "peer",
        "listen/endpoints": list(network.listen),
        "listen/exit_on_failure": True,
        "connect/endpoints": list(network.connect),
        "connect/timeout_ms": -1,  # for ever, in the background: a worker may start later, or come back
        "connect/exit_on_failure": False,
        "connect/retry": {"period_init_ms": RETRY_MS, "period_max_ms": RETRY_MS, "period_increase_factor": 1},
        **_scouting(network),
        "scouting/delay": 1,
        "open/return_conditions": {"connect_scouted": False, "declares": False},
        "transport/shared_memory/enabled": False,
        "transport/unicast/open_timeout": OPEN_MS,
        "transport/unicast/accept_timeout": OPEN_MS,
        "transport/link/tx/lease": LEASE_MS,
        "transport/link/tx/queue/congestion_control/block/wait_before_close": LEASE_MS * 1000,
        "transport/link/rx/max_message_size": MOST_FRAME,
        "transport/link/protocols": sorted(_protocols(network)),
        **network.access,
    }


def _protocols(network: Network) -> set[str]:
    named = {end.partition("/")[0] for end in (*network.listen, *network.connect)}
    return named or {"tcp"}  # of those that are found; with certificates `access` says tls


def _scouting(network: Network) -> dict[str, Any]:
    if not network.discover:
        return {"scouting/multicast/enabled": False, "scouting/gossip/enabled": False}
    return {
        "scouting/multicast/enabled": True,
        "scouting/multicast/address": SCOUT_GROUP,
        "scouting/multicast/interface": ",".join(scouted_on(network.listen)),
        "scouting/multicast/listen": bool(network.listen),
        "scouting/multicast/autoconnect": ["peer"],
        "scouting/gossip/enabled": True,  # who has found one node is told of the others
        "scouting/gossip/autoconnect": ["peer"],
    }


def scouted_on(listen: tuple[str, ...]) -> list[str]:
    """This machine's IPv4 addresses on whose networks a node looks and is found: those that it listens on, where they
    say so much, and else all."""
    found: set[str] = set()
    for endpoint in listen:
        match = _ENDPOINT.fullmatch(endpoint)
        host = match[2].strip("[]") if match else ""
        if is_loopback(endpoint):
            found.add("127.0.0.1")
        elif _is_own_ipv4(host):
            found.add(host)
        else:
            return _own_addresses()
    return sorted(found) or _own_addresses()


def _is_own_ipv4(host: str) -> bool:
    try:
        return not ipaddress.IPv4Address(host).is_unspecified
    except ValueError:
        return False


def _own_addresses() -> list[str]:
    """zenoh's own choice, "auto", leaves loopback out, where nothing but that is up."""
    return sorted(
        entry.address for own in psutil.net_if_addrs().values() for entry in own if entry.family == socket.AF_INET
    )


def open_session(network: Network) -> Any:
    """A session on this network; InputError if zenoh is not installed, or an address cannot be listened on."""
    zenoh = import_zenoh()
    for endpoint in (*network.listen, *network.connect):
        check_endpoint(endpoint)
    config = zenoh.Config()
    for key, value in settings(network).items():
        config.insert_json5(key, json.dumps(value))
    try:
        return zenoh.open(config)
    except zenoh.ZError as error:
        where = ", ".join(network.listen) or "the network"
        expected = "a free address of this machine" + ", and certificates that can be read" * bool(network.access)
        reason = _SOURCE.sub("", first_line(error))
        raise InputError(f"cannot be opened: {reason}", where=where, expected=expected) from error


def import_zenoh() -> Any:
    """The package zenoh; InputError with what to install where it is missing."""
    try:
        import zenoh
    except ImportError as error:
        raise InputError(
            "several devices need the package eclipse-zenoh", remedy="pip install 'edgeprune[cluster]'"
        ) from error
    return zenoh
