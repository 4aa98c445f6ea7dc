"""`edgeprune split`: ONNX -> per-device subgraphs and what is moved between them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from onnx import ModelProto

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.manifest import SCHEMA_VERSION, Manifest
from edgeprune.bundles.names import MODEL, PARTITION, PLAIN_MODEL
from edgeprune.bundles.writing import copy_files, new_bundle, write_manifest
from edgeprune.devices.device_profile import load_profile
from edgeprune.errors import GateError, InputError
from edgeprune.io import formatting as f
from edgeprune.onnx_files.inputs import with_input_size
from edgeprune.onnx_files.model import load_model
from edgeprune.onnx_files.pixels import parse_normalisation, taking_pixels
from edgeprune.onnx_files.validity import require_runnable
from edgeprune.partitioning.assembly import Goal
from edgeprune.partitioning.devices import load_devices
from edgeprune.partitioning.manifest import PartitionManifest, write_partition
from edgeprune.partitioning.partition import partition_model
from edgeprune.partitioning.planning.roles import is_grouped
from edgeprune.pipeline.output import Output


@dataclass(frozen=True)
class SplitOptions:
    """Over what to split."""

    devices: str = ""
    """A number of devices, or a TOML file that describes them; empty: no split."""
    device_profile: str = ""
    """Device type of devices that name none; empty: this machine's."""
    goal: Goal = "latency"
    """One frame as soon as possible, or as many as possible."""
    force: bool = False
    """Split even where one device alone is predicted to be as fast."""
    input_size: tuple[int, ...] = ()
    """Sizes of the last axes of a network's input, where its file leaves them open."""
    pixels: str = ""
    """How the network is to normalise pixels that it takes in place of floats; as for `parse_normalisation`."""

    def check(self) -> None:
        """InputError if the devices do not exist; called before any long work."""
        if self.devices:
            load_devices(self.devices, default_profile=self.device_profile)
        elif self.device_profile:
            load_profile(self.device_profile)


def split(model: Path, options: SplitOptions, out: Output) -> tuple[Bundle, PartitionManifest]:
    """`edgeprune split`: a bundle with the devices' subgraphs, beside what the source bundle holds.

    GateError where one device alone is predicted to be as fast, unless `options.force`.
    """
    out.check()
    normalisation = parse_normalisation(options.pixels) if options.pixels else None
    if model.is_dir():
        source = open_bundle(model)
        if source.has(PARTITION):
            raise InputError(
                "is split already", where=model, remedy="split its model.onnx, or the bundle that it was made from"
            )
        source.require_sound()
        # A report says what was known of the unsplit bundle: it would be stale here.
        names = [name for name in source.manifest.files if not name.startswith("report.")]
        names = [] if normalisation else names  # which all tell of a network that takes floats
        planned = PLAIN_MODEL if source.has(PLAIN_MODEL) else MODEL
        path, manifest = source.path(planned), source.manifest
    else:
        names, path = [], model
        manifest = Manifest(SCHEMA_VERSION, metadata.version("edgeprune"))
    loaded = load_model(path)
    if not names:
        require_runnable(loaded, path)
    if options.input_size:
        loaded = with_input_size(loaded, options.input_size, where=path)
    if normalisation:
        loaded = taking_pixels(loaded, normalisation, where=path)
    with new_bundle(out.folder, overwrite=out.overwrite) as stage:
        copy_files(names, model, stage)
        if not names:
            (stage / MODEL).write_bytes(loaded.SerializeToString(deterministic=True))
        partition = split_into(stage, loaded, options)
        write_manifest(stage, manifest)
    return open_bundle(out.folder), partition


def split_over(
    model: str | Path,
    out: str | Path,
    *,
    devices: int | str,
    goal: Goal = "latency",
    force: bool = False,
    overwrite: bool = False,
) -> PartitionManifest:
    """Split an ONNX file or bundle over devices, into the bundle `out`.

    GateError where one device alone is predicted to be as fast, unless `force`.
    """
    options = SplitOptions(str(devices), goal=goal, force=force)
    return split(Path(model), options, Output(Path(out), overwrite))[1]


def split_into(stage: Path, model: ModelProto, options: SplitOptions) -> PartitionManifest:
    """Divide the model and write its partition into a bundle that is being made; GateError as `split`."""
    devices = load_devices(options.devices, default_profile=options.device_profile)
    partition = partition_model(model, devices, goal=options.goal)
    if not options.force:
        require_gain(partition.manifest, is_in_groups=any(map(is_grouped, model.graph.node)))
    write_partition(partition, stage)
    return partition.manifest


def require_gain(manifest: PartitionManifest, *, is_in_groups: bool = True) -> None:
    """GateError where the best single device is predicted to be as fast as all of them, or nearly so."""
    predicted, throughput = manifest.predicted, manifest.predicted.throughput
    if len(manifest.devices) == 1 or predicted.pays:
        return
    if throughput is not None and (throughput.mode == "whole_frames" or throughput.whole_frames_per_s is None):
        return
    groups = "more groups" if is_in_groups else "groups, of which it has none (`edgeprune export --groups` makes them)"
    raise GateError(
        f"split over {len(manifest.devices)} devices the network is predicted to take "
        f"{f.milliseconds(predicted.latency_ms)} and to move {f.size(predicted.bytes_per_inference)}, "
        f"{predicted.best_device} alone {f.milliseconds(predicted.single_device_ms)}: use one device, faster links "
        f"or {groups}; --for throughput lets each device compute whole frames; --force splits all the same"
    )
