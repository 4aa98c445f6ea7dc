"""A bundle as one device serves it: its flows, and the models that they run, loaded and ready."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.names import MANIFEST, MODEL, PARTITION
from edgeprune.cluster.flow import SPLIT, Flow, split_flow, whole_flow, whole_plan
from edgeprune.errors import InputError, unknown_name
from edgeprune.io.files import sha256_of
from edgeprune.io.json_files import read_json
from edgeprune.onnx_files.graph import TensorSpec
from edgeprune.onnx_files.inputs import input_specs, output_specs
from edgeprune.onnx_files.model import load_model
from edgeprune.partitioning.devices import Device, check_devices
from edgeprune.partitioning.manifest import SCHEMA_VERSION, PartitionManifest
from edgeprune.runners.base import Runner

logger = logging.getLogger("edgeprune.cluster")
OpenModel = Callable[[Path], Runner]
"""How this device loads a model."""
Specs = tuple[tuple[TensorSpec, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Served:
    """A bundle that is ready to run on one device."""

    digest: str
    device: str
    host: str
    flows: Mapping[str, Flow]
    """Plan -> this device's part of it."""
    runners: Mapping[str, Runner]
    """File -> its model."""

    @property
    def peers(self) -> frozenset[str]:
        return frozenset().union(*(flow.peers for flow in self.flows.values()))

    def close(self) -> None:
        for runner in self.runners.values():
            runner.close()


def digest_of(folder: Path) -> str:
    """What names a bundle on the wire: the SHA-256 of its manifest, which holds those of all its files."""
    return sha256_of(folder / MANIFEST)


def read_partition(bundle: Bundle) -> PartitionManifest:
    """The partition of a bundle of which only some devices' files need be here."""
    path = bundle.path(PARTITION)
    expected, remedy = "a file that `edgeprune split` wrote", "split the network again with this version of edgeprune"
    manifest = read_json(path, PartitionManifest, SCHEMA_VERSION, what="partition", expected=expected, remedy=remedy)
    check_devices([Device(entry.name) for entry in manifest.devices], where=path)
    own = {entry.name: set(entry.subgraphs) for entry in manifest.devices}
    staged = [(device, name) for stage in manifest.stages for device, name in stage.subgraphs.items()]
    strange = [name for device, name in staged if name not in own.get(device, ())]
    strange += [move.tensor for move in manifest.transfers if not {move.from_, move.to} <= own.keys()]
    if strange:
        what = f"{strange[0][:200]!r} belongs to no device that there is"
        raise InputError(what, where=path, remedy="split the network again")
    return manifest


def serve(folder: Path, device: str, open_model: OpenModel, *, whole: bool) -> Served:
    """Load a worker's part of a bundle: its subgraphs, and with `whole` the whole model. InputError if the bundle is
    not for this device, or a file is missing, changed or no model."""
    bundle = open_bundle(folder)
    host, flows, files = "", dict[str, Flow](), dict[str, Path]()
    if bundle.has(PARTITION):
        manifest = read_partition(bundle)
        names = [entry.name for entry in manifest.devices]
        if device not in names:
            raise unknown_name("device", device, names, remedy="start the worker with one of these names")
        host = manifest.host
        files.update(_paths(bundle, manifest, device))
        flows[SPLIT] = split_flow(manifest, device, lambda name: _specs(files[name]))
    if whole:
        if bundle.has(MODEL) and not (folder / MODEL).is_file():
            raise InputError(f"{device} has its part, and not the whole model", remedy="`edgeprune deploy --whole`")
        files[MODEL] = bundle.path(MODEL)
        # Who asks for the whole model is the host, whatever its name: it is found in the client's address.
        flows[whole_plan(device)] = whole_flow(device, host, device, *_specs(files[MODEL]))
    runners = {name: open_model(path) for name, path in files.items()}
    return Served(digest_of(folder), device, host, flows, runners)


def serve_as_host(
    bundle: Bundle, host: str, open_model: OpenModel, workers: Iterable[str], *, split: bool, whole: bool
) -> Served:
    """Load the host's part: its subgraphs, with `whole` the whole model where the bundle has it, and the ways to have
    that run on the other devices. InputError as `serve`."""
    flows, files = dict[str, Flow](), dict[str, Path]()
    if split:
        manifest = read_partition(bundle)
        files.update(_paths(bundle, manifest, host))
        flows[SPLIT] = split_flow(manifest, host, lambda name: _specs(files[name]))
    if whole and bundle.has(MODEL):
        files[MODEL] = bundle.path(MODEL)
        specs = _specs(files[MODEL])
        flows.update({whole_plan(at): whole_flow(host, host, at, *specs) for at in (host, *workers)})
    runners = {name: open_model(path) for name, path in files.items()}
    return Served(digest_of(bundle.folder), host, host, flows, runners)


def _paths(bundle: Bundle, manifest: PartitionManifest, device: str) -> dict[str, Path]:
    entry = next(entry for entry in manifest.devices if entry.name == device)
    return {name: bundle.path(name) for name in entry.subgraphs}


def _specs(path: Path) -> Specs:
    model = load_model(path, require_conv=False)
    return input_specs(model), tuple(spec.name for spec in output_specs(model))


def opener(target: str, threads: int) -> OpenModel:
    """How to load models on a target. InputError if the target cannot be used here, or with so many threads."""
    from edgeprune.runners.base import RunOptions
    from edgeprune.runners.registry import open_runner, require
    from edgeprune.runners.target import OpenOptions, Source

    require(target)
    options = OpenOptions(RunOptions(threads, spinning=False))
    options.run.check()

    def open_model(path: Path) -> Runner:
        return open_runner(target, Source(path), options)

    return open_model
