"""`edgeprune split`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from edgeprune.cli.flags.common import Common, OutFlags
from edgeprune.cli.flags.kinds import EXPORT, OptionalText, Switch, flags, parse_open_size
from edgeprune.cli.tables import facts, milliseconds, table

if TYPE_CHECKING:
    from edgeprune.bundles.bundle import Bundle
    from edgeprune.partitioning.manifest import PartitionManifest


@Parameter(name="*", group=EXPORT)
@flags
class InputFlags:
    """What the network is fed with."""

    input_size: OptionalText = ""
    """Sizes of the input's last axes, such as H,W or C,H,W, for an ONNX file that leaves more open than the batch."""
    pixels: OptionalText = ""
    """Have the network take pixels, uint8 from 0 to 255, and normalise them itself: a quarter of the bytes to send.
    imagenet, unit (pixels / 255), or mean and std of pixels / 255 a channel, as 0.5,0.5,0.5/0.25,0.25,0.25. What a
    bundle holds of the network that takes floats, such as its profile, is left out."""


def split(
    model: Path,
    /,
    *,
    devices: Annotated[str, Parameter(group=EXPORT)],
    device_profile: Annotated[OptionalText, Parameter(group=EXPORT)] = "",
    fed: InputFlags = InputFlags(),
    goal: Annotated[Literal["latency", "throughput"], Parameter(name="--for", group=EXPORT)] = "latency",
    force: Annotated[Switch, Parameter(group=EXPORT)] = False,
    out: OutFlags,
    common: Common = Common(),
) -> None:
    """Split any ONNX CNN over several devices, such that tensors stay where they are made.

    Grouped convolutions need the least exchange. Where one device alone is predicted to be as fast, nothing is written
    (exit code 3).

    **Examples**

    - `edgeprune split out/ --devices 2 -o split`
    - `edgeprune split resnext.onnx --devices cluster.toml -o split`
    - `edgeprune split out/ --devices cluster.toml --for throughput -o split`
    - `edgeprune split out/ --devices cluster.toml --pixels imagenet -o split`

    Parameters
    ----------
    model
        An ONNX file, or a bundle.
    devices
        Number of devices, or a TOML file with a [[device]] table for each.
    device_profile
        Device type that the prediction is for, where the TOML file names none.
    goal
        latency: one frame as soon as possible. throughput: as many frames as possible; says, too, whether whole frames
        on each device are predicted to be faster than parts of each on all.
    force
        Split even where one device alone is predicted to be as fast.
    """
    from edgeprune.pipeline import split as steps

    options = steps.SplitOptions(devices, device_profile, goal, force, parse_open_size(fed.input_size), fed.pixels)
    bundle, manifest = steps.split(model, options, out.output())
    show(manifest, bundle)
    common.write(manifest)


def show(manifest: PartitionManifest, bundle: Bundle) -> None:
    """What each device does, what is moved, and what the split is predicted to bring."""
    rows = [
        (d.name, d.profile, len(d.subgraphs), d.macs, d.weight_bytes, d.peak_memory_bytes, milliseconds(d.busy_ms))
        for d in manifest.devices
    ]
    names = ("device", "profile", "subgraphs", "MACs", "weight bytes", "peak memory bytes", "busy ms (predicted)")
    table("Devices", names, rows)
    facts(str(bundle.folder), [*_predicted(manifest), ("basis", manifest.predicted.basis)])


def _predicted(manifest: PartitionManifest) -> Iterator[tuple[str, str]]:
    from edgeprune.io.formatting import plural, speed_change

    predicted, throughput = manifest.predicted, manifest.predicted.throughput
    count = len(manifest.transfers)
    yield "moved per inference", f"{predicted.bytes_per_inference:,} bytes in {count} transfers"
    yield "predicted latency (estimate)", f"{predicted.latency_ms:.3f} ms"
    if predicted.single_device_ms is None:
        yield "on one device", "it has the memory of none"
    else:
        yield f"{predicted.best_device} alone (estimate)", f"{predicted.single_device_ms:.3f} ms"
        yield "against it (estimate)", speed_change(predicted.speedup)
    path = predicted.critical_path
    computes = sum(span.end_ms - span.start_ms for span in path if span.kind == "compute")
    waits = max(0.0, predicted.latency_ms - computes)  # round trips and engines, too, which hold up no link
    yield "critical path", f"{plural(len(path), 'step')}, {waits:.3f} ms of it transfers"
    if throughput is not None:
        how = "whole frames on" if throughput.mode == "whole_frames" else "parts of each frame on"
        told = f"{throughput.frames_per_s:.2f} frames/s, {how} {', '.join(throughput.devices)}"
        yield "predicted throughput (estimate)", told
