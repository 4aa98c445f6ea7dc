"""`edgeprune deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from edgeprune.cli.flags.common import Common
from edgeprune.cli.flags.kinds import COMMON, Switch
from edgeprune.cli.tables import table

if TYPE_CHECKING:
    from edgeprune.cluster.deploy import Deployed


def deploy(
    bundle: Path,
    /,
    *,
    devices: Annotated[Path, Parameter(group=COMMON)],
    whole: Annotated[Switch, Parameter(group=COMMON)] = False,
    discover: Annotated[Switch, Parameter(group=COMMON)] = False,
    common: Common = Common(),
) -> None:
    """Copy a bundle's parts to the workers that run on the devices: to each what it needs and lacks.

    **Examples**

    - `edgeprune deploy split/ --devices shelf.toml`
    - `edgeprune deploy split/ --devices shelf.toml --whole`

    Parameters
    ----------
    bundle
        A split bundle; or any with a model, which then goes to every device.
    devices
        TOML file of all devices, with the `address` of each worker.
    whole
        The whole model, too, so that every device can run it (`run --for throughput`).
    discover
        Look for the workers that have no `address`, and were started with --discover; as `run --discover`.
    """
    from edgeprune.cluster.starting import deploy_bundle

    result = deploy_bundle(bundle, devices, whole=whole, discover=discover)
    show(result)
    common.write(result)


def show(result: list[Deployed]) -> None:
    """What each device was sent."""
    rows = [(one.device, len(one.files), one.sent_bytes) for one in result]
    table("Deployed", ("device", "files that it lacked", "bytes sent"), rows)
