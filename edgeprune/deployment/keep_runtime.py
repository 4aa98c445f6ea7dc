"""Leave the files of the fastest network in the bundle, in the format of its runtime."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
from onnx import ModelProto

from edgeprune.bundles.names import DENSE_MODEL, MODEL
from edgeprune.deployment.converting import converted, metadata_of
from edgeprune.exporters.conversions import Conversion, ConvertOptions, conversion_for, with_input_shapes
from edgeprune.io import progress
from edgeprune.onnx_files.inputs import input_specs, static_batch
from edgeprune.onnx_files.model import load_model
from edgeprune.profiling.agreement import allowed
from edgeprune.profiling.runtimes.record import Place, RuntimesRecord
from edgeprune.profiling.setup import Which
from edgeprune.runners.registry import target_named

IN_WORDS: Mapping[str, str] = {"cpu": "ONNX Runtime"}
_STEMS: Mapping[Which, str] = {"pruned": "model", "dense": "dense"}


def keep_best(stage: Path, record: RuntimesRecord, files: Mapping[Which, Path], tolerance: float) -> RuntimesRecord:
    """Put the networks of the best runtime, pruned and dense, into the staged bundle; the record with their names, and
    with which one to deploy and how.

    `files` are those that were measured there, by `dense` and `pruned`. InputError and GateError as `converted`.
    """
    best = record.best
    if best is None:
        return record
    if target_named(best.target).runs == "module":
        return msgspec.structs.replace(record, deploy=f"the bundle's weights in {best.target}: there is no file of it")
    conversion = conversion_for(best.target)
    if conversion is not None and all(path.suffix == ".onnx" for path in files.values()):
        conversion.require()
        return _converted(stage, conversion, record, files, tolerance)
    names = {which: _as_measured(stage, which, path, best) for which, path in files.items()}
    runtime = IN_WORDS.get(best.target, best.target)
    return msgspec.structs.replace(
        record, kept=tuple(names.values()), deploy=f"deploy {names[best.network]} with {runtime}"
    )


def _as_measured(stage: Path, which: Which, path: Path, best: Place) -> str:
    """The file's name in the bundle, to which it is copied if it is not there: in INT8 it was made for this."""
    if best.precision == "fp32":
        return MODEL if which == "pruned" else DENSE_MODEL
    name = f"{_STEMS[which]}.{best.precision}{path.suffix}"  # whatever it was called among those of other targets
    shutil.copyfile(path, stage / name)
    return name


def _converted(
    stage: Path, conversion: Conversion, record: RuntimesRecord, files: Mapping[Which, Path], tolerance: float
) -> RuntimesRecord:
    best, kept = record.best, []
    assert best is not None, "whose files these are"
    for which, path in files.items():
        name = _name(conversion, which, best)
        progress.note(f"writing and verifying {name}")
        options = ConvertOptions(metadata=metadata_of(stage) if which == "pruned" else {})
        model = _with_batch(load_model(path), record.batch_size)
        limit = max(tolerance, allowed(model))
        result = converted(model, conversion, options, where=name, tolerance=limit)
        (stage / name).parent.mkdir(exist_ok=True)
        for suffix, data in result.files.items():
            (stage / name).with_suffix(suffix).write_bytes(data)
            kept.append(Path(name).with_suffix(suffix).as_posix())
    return msgspec.structs.replace(record, kept=tuple(kept), deploy=_how(conversion, best))


def _name(conversion: Conversion, which: Which, best: Place) -> str:
    """model.tflite, openvino/dense.int8.xml."""
    stem = _STEMS[which]
    name: str = conversion.path(stem if best.precision == "fp32" else f"{stem}.{best.precision}")
    return name


def _how(conversion: Conversion, best: Place) -> str:
    name = _name(conversion, best.network, best)
    beside = [Path(name).with_suffix(suffix).name for suffix in conversion.beside]
    with_them = f", with {' and '.join(beside)} beside it," if beside else ""
    layout = "; images go in and out as NHWC" if conversion.has_layouts else ""
    return f"deploy {name}{with_them} with {conversion.runtime}{layout}"


def _with_batch(model: ModelProto, batch: int) -> ModelProto:
    """With the batch that was measured, where the network leaves it open."""
    if batch == 1 or static_batch(model):
        return model
    shapes = {
        spec.name: tuple(size if isinstance(size, int) else batch for size in spec.shape) for spec in input_specs(model)
    }
    fixed: ModelProto = with_input_shapes(model, shapes)
    return fixed
