"""What a report is made from: the parts of a bundle, read and checked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import msgspec
from onnx import ModelProto

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.manifest import Manifest
from edgeprune.bundles.names import DENSE_MODEL, LOWERING, PARTITION, PLAN, PROFILE, RUNTIMES
from edgeprune.errors import InputError, first_line
from edgeprune.lowering.record import LoweringRecord, load_lowering
from edgeprune.onnx_files.model import load_model
from edgeprune.plans.method_record import FILE_NAME as METHOD_RECORD
from edgeprune.plans.method_record import MethodRecord, load_method_record
from edgeprune.plans.plan import Plan, load_plan
from edgeprune.profiling.result import ProfileResult, load_profile_result
from edgeprune.profiling.runtimes.record import RuntimesRecord, load_runtimes


class SplitDevice(msgspec.Struct, frozen=True):
    """One device of `partition.json`, as far as the report shows it."""

    name: str
    profile: str = ""
    subgraphs: tuple[str, ...] = ()
    macs: int = 0
    weight_bytes: int = 0
    peak_memory_bytes: int | None = None
    busy_ms: float | None = None


class SplitStage(msgspec.Struct, frozen=True):
    index: int
    kind: str = ""
    subgraphs: dict[str, str] = {}
    """Device -> what it runs."""
    layers: tuple[str, ...] = ()


class SplitTransfer(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    from_: str
    to: str
    bytes: int
    stage: int
    tensor: str = ""


class SplitLayer(msgspec.Struct, frozen=True):
    name: str
    groups: int = 1
    channels: dict[str, tuple[tuple[int, int], ...]] = {}
    """Device -> runs of the result's channels."""
    inputs: dict[str, tuple[tuple[int, int], ...]] = {}
    """The same of the input's, where addends are computed."""


class SplitSpan(msgspec.Struct, frozen=True):
    kind: str
    device: str
    start_ms: float
    end_ms: float
    tensor: str = ""
    to: str = ""


class MeasuredRun(msgspec.Struct, frozen=True):
    """`timeline` of `run --json`."""

    latency_ms: float
    spans: tuple[SplitSpan, ...] = ()
    clocks_within_ms: float | None = None


class RunFile(msgspec.Struct, frozen=True):
    """`run --json`, as far as the report shows it."""

    timeline: MeasuredRun | None


class SplitThroughput(msgspec.Struct, frozen=True):
    mode: str
    frames_per_s: float
    devices: tuple[str, ...] = ()
    whole_frames_per_s: float | None = None
    pipeline_frames_per_s: float | None = None


class SplitPrediction(msgspec.Struct, frozen=True):
    latency_ms: float | None = None
    speedup: float | None = None
    bytes_per_inference: int | None = None
    basis: str = ""
    single_device_ms: float | None = None
    best_device: str = ""
    critical_path: tuple[SplitSpan, ...] = ()
    timeline: tuple[SplitSpan, ...] = ()
    throughput: SplitThroughput | None = None


class SplitPlan(msgspec.Struct, frozen=True):
    """`partition.json`, without what only running needs. What it does not know is passed over."""

    devices: tuple[SplitDevice, ...] = ()
    stages: tuple[SplitStage, ...] = ()
    transfers: tuple[SplitTransfer, ...] = ()
    predicted: SplitPrediction = SplitPrediction()
    layers: tuple[SplitLayer, ...] = ()


@dataclass(frozen=True)
class Contents:
    """A bundle's parts; None where it does not hold one."""

    bundle: Bundle
    plan: Plan | None
    profile: ProfileResult | None
    split: SplitPlan | None
    record: MethodRecord | None = None
    """What the method told of its decisions."""
    lowering: LoweringRecord | None = None
    """The forms of the grouped layers."""
    runtimes: RuntimesRecord | None = None
    """Several runtimes beside each other."""
    run: MeasuredRun | None = None
    """A real run of the split network."""

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def dense_model(self) -> ModelProto | None:
        """The dense ONNX model, read when a picture needs it."""
        return load_model(self.bundle.path(DENSE_MODEL)) if self.bundle.has(DENSE_MODEL) else None


def read_contents(folder: Path, run: Path | None = None) -> Contents:
    """`run`: what `run --json` wrote. InputError if the folder is no bundle, or one of the files that it lists is
    missing or damaged, or `run` tells of no run of this split network."""
    bundle = open_bundle(folder)
    contents = Contents(
        bundle,
        load_plan(bundle.path(PLAN)) if bundle.has(PLAN) else None,
        load_profile_result(bundle.path(PROFILE)) if bundle.has(PROFILE) else None,
        load_split(bundle.path(PARTITION)) if bundle.has(PARTITION) else None,
        load_method_record(bundle.path(METHOD_RECORD)) if bundle.has(METHOD_RECORD) else None,
        load_lowering(bundle.path(LOWERING)) if bundle.has(LOWERING) else None,
        load_runtimes(bundle.path(RUNTIMES)) if bundle.has(RUNTIMES) else None,
    )
    return contents if run is None else dataclasses.replace(contents, run=_load_run(run, contents.split))


def _load_run(path: Path, split: SplitPlan | None) -> MeasuredRun:
    expected, remedy = "what `edgeprune run BUNDLE --repeat N --json FILE` wrote", "run the split bundle again"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=RunFile).timeline
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, expected=expected) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"tells of no run: {first_line(error)}", where=path, expected=expected) from error
    if found is None:
        what = "tells of a run in which no device had a part of its own"
        raise InputError(what, where=path, expected=expected, remedy="run it with --executor process or cluster")
    if split is None:
        raise InputError("is of a split bundle, and this one is not split", where=path, expected=expected)
    devices = {device.name for device in split.devices}
    if strange := sorted({span.device for span in found.spans} - devices):
        raise InputError(f"tells of a run on {strange[0][:100]!r}, which has no part", where=path, remedy=remedy)
    planned = {(move.from_, move.to, move.tensor) for move in split.transfers}
    moved = {(span.device, span.to, span.tensor) for span in found.spans if span.kind == "transfer"}
    if foreign := sorted(moved - planned):
        source, to, tensor = foreign[0]
        what = f"tells of a run of another bundle: here {source} sends no {tensor[:100]!r} to {to[:100]}"
        raise InputError(what, where=path, remedy=remedy)
    return found


def load_split(path: Path) -> SplitPlan:
    """Read `partition.json`; InputError if the file is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=SplitPlan)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"is no partition: {first_line(error)}",
            where=path,
            expected="a file that `edgeprune split` wrote",
            remedy="split the network again",
        ) from error
