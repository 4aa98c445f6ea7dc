"""The zenoh session of a node: everything that zenoh would decide by itself is decided here.

No discovery, no shared memory (it leaks segments when a process is killed), no listening but where it was told to. A
connection that is lost is built up again several times a second; one that stalls is closed after `LEASE_MS`.
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

from edgeprune.cluster.transport.frames import MOST_FRAME
from edgeprune.errors import InputError, first_line

LEASE_MS = 1500
RETRY_MS = 200
OPEN_MS = 2000
"""How long a handshake may take: a frozen process accepts connections and says nothing, and closing waits for it."""
_ENDPOINT = re.compile(r"(tcp|tls)/(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})")
_LOOPBACK_NAMES = {"localhost"}


@dataclass(frozen=True)
class Network:
    """Where a node listens, whom it connects to, and whom it admits."""

    listen: tuple[str, ...] = ()
    connect: tuple[str, ...] = ()
    access: Mapping[str, Any] = field(default_factory=dict)
    """zenoh settings that say who is admitted; empty: whoever can reach the address."""


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
        "scouting/multicast/enabled": False,
        "scouting/gossip/enabled": False,
        "scouting/delay": 1,
        "open/return_conditions": {"connect_scouted": False, "declares": False},
        "transport/shared_memory/enabled": False,
        "transport/unicast/open_timeout": OPEN_MS,
        "transport/unicast/accept_timeout": OPEN_MS,
        "transport/link/tx/lease": LEASE_MS,
        "transport/link/tx/queue/congestion_control/block/wait_before_close": LEASE_MS * 1000,
        "transport/link/rx/max_message_size": MOST_FRAME,
        "transport/link/protocols": sorted({end.partition("/")[0] for end in (*network.listen, *network.connect)}),
        **network.access,
    }


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
        raise InputError(
            f"cannot be opened: {first_line(error)}",
            where=where,
            expected="a free address of this machine, and certificates that can be read",
        ) from error


def import_zenoh() -> Any:
    """The package zenoh; InputError with what to install where it is missing."""
    try:
        import zenoh
    except ImportError as error:
        raise InputError(
            "several devices need the package eclipse-zenoh", remedy="pip install 'edgeprune[cluster]'"
        ) from error
    return zenoh
