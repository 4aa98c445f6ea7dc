"""Who may talk to whom: certificates and rights for zenoh, made from a devices file. What is not allowed is denied.

Every device shows a certificate (mutual TLS) whose common name is its own name. A device admits from another one only
what that says in its own name, to this device, and of whom the file knows nothing it admits nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.cluster.transport.peers import ALIVE, ROOT
from edgeprune.errors import InputError

_LIFE = ["liveliness_token", "declare_liveliness_subscriber"]


@dataclass(frozen=True)
class Certificates:
    """Files of one device, in PEM."""

    ca: Path
    """The authority that signed all devices' certificates; nobody else's are believed."""
    certificate: Path
    key: Path

    def check(self) -> None:
        """InputError if one of the files is not there."""
        for path in (self.ca, self.certificate, self.key):
            if not path.is_file():
                raise InputError("no such file", where=path, expected="a certificate or key in PEM ([tls])")


def secured(certificates: Certificates) -> dict[str, Any]:
    """zenoh's settings for mutual TLS and nothing else."""
    certificates.check()
    tls = "transport/link/tls/"
    return {
        f"{tls}root_ca_certificate": str(certificates.ca),
        f"{tls}listen_certificate": str(certificates.certificate),
        f"{tls}listen_private_key": str(certificates.key),
        f"{tls}connect_certificate": str(certificates.certificate),
        f"{tls}connect_private_key": str(certificates.key),
        f"{tls}enable_mtls": True,
        f"{tls}verify_name_on_connect": True,
        f"{tls}close_link_on_expiration": True,
        "transport/link/protocols": ["tls"],
    }


def rights(device: str, others: Iterable[str]) -> dict[str, Any]:
    """zenoh's settings by which `device` takes frames from `others`, each in its own name, and sends them such."""
    names = sorted(set(others) | {device})  # two processes of one device: its worker, and a client that is its host
    rules = []
    policies = []
    for name in names:
        heard, told = f"{ROOT}/{device}/*/{name}/*", f"{ROOT}/{name}/*/{device}/*"
        rules += [
            _rule(f"from-{name}", ["put"], ["ingress"], [heard]),
            _rule(f"to-{name}", ["put"], ["egress"], [told]),
            _rule(f"asked-by-{name}", ["declare_subscriber"], ["ingress"], [f"{ROOT}/{name}/**"]),
            _rule(f"asks-{name}", ["declare_subscriber"], ["egress"], [f"{ROOT}/{device}/**"]),
            _rule(f"life-of-{name}", _LIFE, ["ingress"], [f"{ALIVE}/{name}/*", f"{ALIVE}/{device}/*"]),
            _rule(f"life-for-{name}", _LIFE, ["egress"], [f"{ALIVE}/{name}/*", f"{ALIVE}/{device}/*"]),
        ]
        ways = ("from", "to", "asked-by", "asks", "life-of", "life-for")
        policies.append({"rules": [f"{way}-{name}" for way in ways], "subjects": [name]})
    return {
        "access_control": {
            "enabled": True,
            "default_permission": "deny",
            "rules": rules,
            "subjects": [{"id": name, "cert_common_names": [name]} for name in names],
            "policies": policies,
        }
    }


def _rule(name: str, messages: list[str], flows: list[str], keys: list[str]) -> dict[str, Any]:
    return {"id": name, "permission": "allow", "messages": messages, "flows": flows, "key_exprs": keys}
