"""Lower a bundle's model: choose a form for each grouped layer, write the model anew, and hold it to the planned one.

Works without torch. `plain.onnx` keeps the network as planned, so that another device can choose again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from edgeprune.bundles.manifest import Manifest, ParityRecord
from edgeprune.bundles.names import DENSE_MODEL, LOWERING, MODEL, PLAIN_MODEL
from edgeprune.deployment.parity import measure_parity, require_parity
from edgeprune.devices.device_profile import DeviceProfile, load_profile
from edgeprune.devices.this_machine import default_profile_name
from edgeprune.io import progress
from edgeprune.io.files import pretty_json
from edgeprune.lowering.costs import predict
from edgeprune.lowering.gathers import count_gathers
from edgeprune.lowering.layers import GroupedLayer, grouped_layers
from edgeprune.lowering.model import as_recorded
from edgeprune.lowering.record import LoweringRecord, load_lowering
from edgeprune.onnx_files.inputs import input_specs, static_batch
from edgeprune.onnx_files.model import load_model, save_onnx
from edgeprune.profiling.setup import random_feeds
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner
from edgeprune.tuning.options import TuneOptions
from edgeprune.tuning.tuner import tune


@dataclass(frozen=True)
class LowerOptions:
    """How to choose the forms."""

    device_profile: str = ""
    """Device type whose cost table decides; empty: this machine's."""
    tune: TuneOptions | None = None
    """Measure here instead."""
    as_planned: bool = False
    """Leave every layer as the plan has it."""

    def check(self) -> None:
        """InputError for values that cannot work; called before any long work."""
        load_profile(self.device_profile or default_profile_name())
        if self.tune is not None:
            self.tune.check()


def lower_into(stage: Path, manifest: Manifest, options: LowerOptions, tolerance: float) -> Manifest:
    """Put the lowered model in the place of a staged bundle's; returns the manifest with its parity and Gathers.

    GateError if the lowered model does not compute what the planned one computes.
    """
    planned = stage / (PLAIN_MODEL if (stage / PLAIN_MODEL).is_file() else MODEL)
    plain = load_model(planned)
    layers = grouped_layers(plain)
    if not layers or options.as_planned:
        return manifest
    profile = load_profile(options.device_profile or default_profile_name())
    if options.tune is None:
        record = predict(layers, profile)
    else:
        here = load_profile(default_profile_name())
        if not options.device_profile:
            profile = here = here.on_if_known(options.tune.target)
        if profile != here:
            progress.note(
                f"forms are measured on this machine and chosen for it: {profile.name} only gives the channel block of "
                f"padded forms, {profile.channel_block.fp32}, and predicted forms to measure, too"
            )
        dense = load_model(stage / DENSE_MODEL) if (stage / DENSE_MODEL).is_file() else None
        record = tune(plain, dense, profile, _as_fixed(options.tune, static_batch(plain)))
    for text in _new_device(stage, record, layers, profile):
        progress.note(text)
    lowered = as_recorded(plain, record)
    before = _planned_parity(stage, manifest)
    _remove(stage, PLAIN_MODEL)
    _remove(stage, MODEL)
    save_onnx(lowered, stage / MODEL)
    parity = before
    if lowered is not plain:
        save_onnx(plain, stage / PLAIN_MODEL)
        parity = _parity(stage, before, tolerance)
        require_parity(parity)
    record = msgspec.structs.replace(record, planned_parity=before)
    (stage / LOWERING).write_bytes(pretty_json(record))
    gathers = manifest.gathers and msgspec.structs.replace(manifest.gathers, after_fold=count_gathers(lowered))
    return msgspec.structs.replace(manifest, parity=parity, gathers=gathers)


def _as_fixed(options: TuneOptions, batch: int | None) -> TuneOptions:
    """Where nothing else is asked, the batch that the model is fixed to."""
    return replace(options, batch_size=batch) if batch and options.batch_size == 1 else options


def _new_device(
    stage: Path, record: LoweringRecord, layers: Mapping[str, GroupedLayer], profile: DeviceProfile
) -> Iterator[str]:
    """Sentences for a bundle whose forms were measured on another machine or runtime, perhaps of another block."""
    path = stage / LOWERING
    before = load_lowering(path) if path.is_file() else None
    if not before or before.chosen_by != "measured" or _measured_on(before) == _measured_on(record):
        return
    yield f"the forms until now were measured on {_measured_on(before)}: they are chosen anew"
    block = profile.channel_block.fp32
    off = sum(bool(x.weight.shape[1] % block or x.filters // x.groups % block) for x in layers.values())
    if off:
        yield (
            f"{off} of {len(layers)} grouped layers have channels a group that are no multiples of {block}, the block "
            f"of {profile.name}: pruned with --align auto for this device they would be faster"
        )


def _measured_on(record: LoweringRecord) -> str:
    return f"{record.device}, {record.runtime}" if record.runtime else record.device


def _planned_parity(stage: Path, manifest: Manifest) -> ParityRecord | None:
    """How far the model as planned is from the pruned network, whatever forms the bundle's model has by now."""
    path = stage / LOWERING
    return load_lowering(path).planned_parity if path.is_file() else manifest.parity


def _parity(stage: Path, planned: ParityRecord | None, tolerance: float) -> ParityRecord:
    """How far the lowered model is from the pruned network at most: from the planned model, and that from the
    network."""
    model = load_model(stage / PLAIN_MODEL)
    values = random_feeds(input_specs(model), static_batch(model) or 2, 0)
    with OrtRunner(stage / PLAIN_MODEL, RunOptions()) as runner:
        feeds = dict(zip(runner.input_names, values, strict=True))
        outputs = runner.run(feeds)
    references = {"random": [output.astype(np.float64) for output in outputs.values()]}
    found = measure_parity(stage / MODEL, {"random": feeds}, references, tolerance)
    if planned is None:
        return found
    max_abs, max_rel = planned.max_abs + found.max_abs, planned.max_rel + found.max_rel
    return ParityRecord(max_abs, max_rel, tolerance, max_rel <= tolerance, planned.inputs)


def _remove(stage: Path, name: str) -> None:
    for path in (stage / name, stage / f"{name}.data"):
        path.unlink(missing_ok=True)
