"""The partition as data: which device runs which subgraph at which stage, and what is moved between them.

`partition.json` lies beside one folder a device with its subgraphs. Both may come from anywhere, so the names in the
manifest are checked before a file is opened, and `check_partition` follows every tensor before anything runs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec
from onnx import ModelProto

from edgeprune.bundles.names import ANNOTATED_MODEL
from edgeprune.errors import InputError
from edgeprune.io.json_files import read_json
from edgeprune.onnx_files.graph import TensorSpec
from edgeprune.onnx_files.inputs import input_specs, output_specs
from edgeprune.onnx_files.model import load_model
from edgeprune.partitioning.devices import Device, check_devices
from edgeprune.partitioning.prediction import Predicted

MANIFEST = "partition.json"
SCHEMA_VERSION = 1
_MOST_SHOWN = 200
"""Letters of a name that an error shows."""


class TensorInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input or output of the whole network. A dimension is a size, a dynamic dimension's name, or null."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


class DeviceEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One device's part of the network. The first device is the host: it gets the inputs and holds the outputs."""

    name: str
    profile: str
    """Name of the device profile that the estimate uses."""
    subgraphs: tuple[str, ...]
    """Its ONNX files, relative to the manifest, in order of execution."""
    macs: int
    """Multiply-adds an inference of batch 1."""
    weight_bytes: int
    peak_memory_bytes: int = 0
    """Its weights, and the most that it holds of activations at a time, for batch 1."""
    busy_ms: float = 0.0
    """How long it is predicted to compute."""


class LayerParts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who computes what of one layer."""

    name: str
    groups: int
    channels: dict[str, tuple[tuple[int, int], ...]]
    """Device -> the channels of the result that it computes, as (first, behind the last)."""
    inputs: dict[str, tuple[tuple[int, int], ...]] = {}
    """Where addends of the result are computed: device -> the channels of the input that it multiplies for its own."""


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Subgraphs that need no data from each other. A device runs its subgraphs in the order of their stages, and need
    not wait for the other devices of a stage."""

    index: int
    kind: Literal["host", "parallel"]
    """`host`: the first device alone works in it."""
    subgraphs: dict[str, str]
    """Device -> the file that it runs."""
    layers: tuple[str, ...]
    """The layers that are divided, of which parts begin in this stage."""


class Transfer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"from_": "from"}):
    """A tensor that one device sends to another as soon as it has it."""

    from_: str
    to: str
    tensor: str
    bytes: int
    """For batch 1."""
    stage: int
    """That of the receiver's subgraph which waits for it."""


class PartitionManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`partition.json`."""

    devices: tuple[DeviceEntry, ...]
    stages: tuple[Stage, ...]
    transfers: tuple[Transfer, ...]
    predicted: Predicted
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    schema_version: int = SCHEMA_VERSION
    layers: tuple[LayerParts, ...] = ()
    """In the order of the network."""

    @property
    def host(self) -> str:
        return self.devices[0].name

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2)


@dataclass(frozen=True)
class Partition:
    """A network divided over devices: the manifest and its subgraphs by file name."""

    manifest: PartitionManifest
    models: Mapping[str, ModelProto]
    annotated: ModelProto | None = None
    """The whole network, with what the manifest says in ONNX's own words; None where it was not read."""


def write_partition(partition: Partition, folder: str | Path) -> None:
    """Write `partition.json`, DEVICE/stage_NN.onnx and `annotated.onnx` into `folder`, which is made if need be."""
    folder = Path(folder)
    for name, model in partition.models.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(model.SerializeToString())
    folder.mkdir(parents=True, exist_ok=True)
    if partition.annotated is not None:
        (folder / ANNOTATED_MODEL).write_bytes(partition.annotated.SerializeToString(deterministic=True))
    (folder / MANIFEST).write_bytes(partition.manifest.to_json())


def load_manifest(folder: str | Path) -> PartitionManifest:
    """Read `partition.json`; InputError if it is missing, none, or names a file outside the folder."""
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        remedy = "make one with `edgeprune split`"
        raise InputError("no split network", where=folder, expected=f"a folder with {MANIFEST}", remedy=remedy)
    expected, remedy = "a file that `edgeprune split` wrote", "split the network again with this version of edgeprune"
    manifest = read_json(path, PartitionManifest, SCHEMA_VERSION, what="partition", expected=expected, remedy=remedy)
    check_devices([Device(entry.name) for entry in manifest.devices], where=path)
    for entry in manifest.devices:
        for name in entry.subgraphs:
            _subgraph_path(folder, name)
    return manifest


def load_subgraph(folder: str | Path, name: str) -> ModelProto:
    """One subgraph of a split network; InputError if the name leaves the folder or the file is no model."""
    return load_model(_subgraph_path(Path(folder), name), require_conv=False)


def load_partition(folder: str | Path) -> Partition:
    """Read a split network, subgraphs included; InputError with the first fault if it cannot be carried out."""
    manifest = load_manifest(folder)
    models = {name: load_subgraph(folder, name) for entry in manifest.devices for name in entry.subgraphs}
    faults = check_partition(manifest, models)
    if faults:
        more = f" ({len(faults)} faults)" if len(faults) > 1 else ""
        what = f"cannot be run: {faults[0].removesuffix('.')}{more}"
        raise InputError(what, where=folder, remedy="split the network again")
    return Partition(manifest, models)


def check_partition(manifest: PartitionManifest, models: Mapping[str, ModelProto]) -> list[str]:
    """Follow every tensor through the stages: a list of sentences, one a fault; empty if the partition can be run."""
    faults = list(_structure_faults(manifest, models))
    return faults or list(_flow_faults(manifest, models))


def _subgraph_path(folder: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    plain = not (pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name)
    shown = name if len(name) <= _MOST_SHOWN else f"{name[:_MOST_SHOWN]}..."
    try:
        path = (folder / name).resolve() if plain else folder
        is_file = path.is_file()
    except OSError as error:  # longer than the system takes, or a link in a circle
        raise InputError(
            f"names the subgraph {shown!r}, which is no name of a file ({error.strerror})",
            where=folder / MANIFEST,
            expected="a file inside the folder",
            remedy="split the network again",
        ) from error
    if not plain or not path.is_relative_to(folder.resolve()):  # a link may lead elsewhere
        raise InputError(
            f"names the subgraph {shown!r}",
            where=folder / MANIFEST,
            expected="a file inside the folder",
            remedy="do not use this partition",
        )
    if not is_file:
        raise InputError(f"subgraph {shown!r} is missing", where=folder, remedy="copy the whole folder, or split again")
    return path


def _structure_faults(manifest: PartitionManifest, models: Mapping[str, ModelProto]) -> Iterator[str]:
    owners = {name: entry.name for entry in manifest.devices for name in entry.subgraphs}
    names = [entry.name for entry in manifest.devices]
    if not names:
        yield "there is no device."
    if len(set(names)) < len(names) or len(owners) < sum(len(entry.subgraphs) for entry in manifest.devices):
        yield "a device or a subgraph is listed twice."
    yield from (f"{owners[name]}: the subgraph {name} is missing." for name in owners if name not in models)
    staged = [(device, name) for stage in manifest.stages for device, name in stage.subgraphs.items()]
    for device, name in staged:
        if owners.get(name) != device:
            yield f"{device}: a stage runs {name}, which is not among this device's subgraphs."
    runs = Counter(name for _, name in staged)
    for name, owner in owners.items():
        if runs[name] != 1:
            yield f"{owner}: {name} is run by {runs[name]} stages, expected one."
    if [stage.index for stage in manifest.stages] != list(range(len(manifest.stages))):
        yield "the stages are not numbered 0, 1, 2 ... in order."
    for move in manifest.transfers:
        for device in (move.from_, move.to):
            if device not in names:
                yield f"{device}: the tensor {move.tensor!r} is moved from or to this device, which does not exist."
        if not 0 <= move.stage < len(manifest.stages):
            yield f"{move.to}: the tensor {move.tensor!r} is moved for stage {move.stage}, which does not exist."
        elif move.to in names and move.to not in manifest.stages[move.stage].subgraphs:
            yield f"{move.to}: the tensor {move.tensor!r} is moved for stage {move.stage}, in which it runs nothing."


def _flow_faults(manifest: PartitionManifest, models: Mapping[str, ModelProto]) -> Iterator[str]:
    held: dict[str, dict[str, TensorSpec]] = {entry.name: {} for entry in manifest.devices}
    held[manifest.host] = {info.name: TensorSpec(info.name, info.shape, info.dtype) for info in manifest.inputs}
    moves: dict[int, list[Transfer]] = defaultdict(list)
    for transfer in manifest.transfers:
        moves[transfer.stage].append(transfer)
    for stage in manifest.stages:
        for move in moves[stage.index]:
            if move.tensor in held[move.from_]:
                held[move.to][move.tensor] = held[move.from_][move.tensor]
            else:
                yield f"{move.from_}: lacks the tensor {move.tensor!r} that it is to send before stage {stage.index}."
        for device, name in stage.subgraphs.items():
            for wanted in input_specs(models[name]):
                found = held[device].get(wanted.name)
                if found is None:
                    yield f"{device}: {name} reads the tensor {wanted.name!r}, which was neither made there nor sent."
                elif not _agree(found, wanted):
                    yield (
                        f"{device}: {name} reads the tensor {wanted.name!r} as {wanted.dtype} {wanted.shape}, "
                        f"but it is {found.dtype} {found.shape}."
                    )
        for device, name in stage.subgraphs.items():
            held[device].update({made.name: made for made in output_specs(models[name])})
    for info in manifest.outputs:
        if info.name not in held[manifest.host]:
            yield f"{manifest.host}: the output {info.name!r} is never made."


def _agree(made: TensorSpec, read: TensorSpec) -> bool:
    """Whether a tensor can be read so: same type and rank, and sizes equal where both are known."""
    return (
        made.dtype == read.dtype
        and len(made.shape) == len(read.shape)
        and all(
            one == other
            for one, other in zip(made.shape, read.shape, strict=True)
            if isinstance(one, int) and isinstance(other, int)
        )
    )
