"""Why nobody may have been heard at an address."""

from __future__ import annotations

import socket

PROBE_S = 1.0


def probed(endpoint: str) -> str:
    """What a connection to an address says, for an error; takes up to `PROBE_S` an IP address that its name has."""
    host, _, port = endpoint.partition("/")[2].rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S):
            certified = ", or one side takes the other's certificate for bad" if endpoint.startswith("tls/") else ""
            return f"something listens there, but no worker of this name and version answers{certified}"
    except socket.gaierror:
        return "there is no machine of this name"
    except TimeoutError:
        return f"no answer within {PROBE_S:g} s"
    except OSError as error:
        return (error.strerror or type(error).__name__).lower()
