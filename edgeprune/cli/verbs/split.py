"""`edgeprune split`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from edgeprune.cli.flags.common import Common, OutFlags
from edgeprune.cli.flags.kinds import EXPORT, OptionalText, parse_open_size
from edgeprune.cli.tables import facts, table

if TYPE_CHECKING:
    from edgeprune.bundles.bundle import Bundle
    from edgeprune.partitioning.manifest import PartitionManifest


def split(
    model: Path,
    /,
    *,
    devices: Annotated[str, Parameter(group=EXPORT)],
    device_profile: Annotated[OptionalText, Parameter(group=EXPORT)] = "",
    input_size: Annotated[OptionalText, Parameter(group=EXPORT)] = "",
    out: OutFlags,
    common: Common = Common(),
) -> None:
    """Split the groups of any ONNX CNN with grouped convolutions over several devices.

    **Examples**

    - `edgeprune split out/ --devices 2 -o split`
    - `edgeprune split resnext.onnx --devices cluster.toml -o split`

    Parameters
    ----------
    model
        An ONNX file, or a bundle.
    devices
        Number of devices, or a TOML file with a [[device]] table for each.
    device_profile
        Device type that the prediction is for, where the TOML file names none.
    input_size
        Sizes of the input's last axes, such as H,W or C,H,W, for an ONNX file that leaves more open than the batch.
    """
    from edgeprune.pipeline import split as steps

    bundle, manifest = steps.split(
        model, steps.SplitOptions(devices, device_profile, parse_open_size(input_size)), out.output()
    )
    show(manifest, bundle)
    common.write(manifest)


def show(manifest: PartitionManifest, bundle: Bundle) -> None:
    """Devices, stages, and what the split is predicted to bring."""
    from edgeprune.io.formatting import speed_change

    rows = [(d.name, d.profile, len(d.subgraphs), d.macs, d.weight_bytes) for d in manifest.devices]
    table("Devices", ("device", "profile", "subgraphs", "MACs", "weight bytes"), rows)
    predicted = manifest.predicted
    pairs = [
        ("stages", str(len(manifest.stages))),
        ("moved per inference", f"{predicted.bytes_per_inference:,} bytes in {len(manifest.transfers)} transfers"),
        ("predicted latency (estimate)", f"{predicted.latency_ms:.3f} ms"),
        ("against the host alone (estimate)", speed_change(predicted.speedup)),
        ("basis", predicted.basis),
    ]
    facts(str(bundle.folder), pairs)
