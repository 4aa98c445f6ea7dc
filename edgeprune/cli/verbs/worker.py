"""`edgeprune worker`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from edgeprune.cli.flags.common import Common
from edgeprune.cli.flags.kinds import COMMON, Integer, OptionalPath, Switch


def worker(
    *,
    name: Annotated[str, Parameter(group=COMMON)],
    listen: Annotated[str, Parameter(group=COMMON)],
    bundle: Annotated[OptionalPath, Parameter(group=COMMON)] = None,
    devices: Annotated[OptionalPath, Parameter(group=COMMON)] = None,
    threads: Annotated[Integer, Parameter(group=COMMON)] = 1,
    target: Annotated[str, Parameter(group=COMMON)] = "cpu",
    discover: Annotated[Switch, Parameter(group=COMMON)] = False,
    common: Common = Common(),
) -> None:
    """Serve this device's part of a split bundle, or whole models, until stopped (Ctrl-C).

    **Examples**

    - `edgeprune worker --name pi2 --listen tcp/192.168.0.12:7447 --devices shelf.toml`
    - `edgeprune worker --name device1 --listen tcp/127.0.0.1:7447 --bundle split/`

    Parameters
    ----------
    name
        The device's name, as the split and the devices file have it.
    listen
        Where to listen: tcp/HOST:PORT or tls/HOST:PORT. With 127.0.0.1 only this machine can reach it.
    bundle
        A bundle that is here already; others can be deployed to it (`edgeprune deploy`).
    devices
        TOML file of all devices: which of them it sends to, whose frames it takes, and with which certificates.
    threads
        Threads of each session.
    target
        What its part runs on (`edgeprune list targets`).
    discover
        Let itself be found, and look for the others, so that the devices file needs no addresses. Opens UDP port 7448
        for the multicast group 224.0.0.224 in the network of --listen: whoever asks there is told where this worker
        listens, and it connects to whoever answers. Without [tls] in the devices file, nothing but a name tells who
        that is.
    """
    from edgeprune.cluster import starting

    if not common.quiet:
        starting.log_to_stderr()
    starting.run_worker(starting.WorkerStart(name, listen, bundle, devices, threads, target, discover=discover))
    common.write({"name": name, "listen": listen})
