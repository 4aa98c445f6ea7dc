"""`edgeprune tune`: the forms that are fastest here, and the bundle's model written anew with them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from onnx import ModelProto

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.manifest import SCHEMA_VERSION, Manifest
from edgeprune.bundles.names import DENSE_MODEL, ENGINES, LOWERING, MODEL, PARTITION, PLAIN_MODEL, PROFILE, RUNTIMES
from edgeprune.bundles.writing import check_update, new_bundle, updated_bundle, write_manifest
from edgeprune.deployment.lower_bundle import LowerOptions, lower_into
from edgeprune.deployment.parity import TOLERANCE
from edgeprune.errors import InputError
from edgeprune.io import progress
from edgeprune.io.files import sha256_of
from edgeprune.lowering.layers import grouped_layers
from edgeprune.lowering.record import LoweringRecord, load_lowering
from edgeprune.onnx_files.graph import attributes
from edgeprune.onnx_files.inputs import with_input_size
from edgeprune.onnx_files.model import CONVOLUTIONS, load_model, save_onnx
from edgeprune.pipeline.output import Output
from edgeprune.precision.quantization import quantized_layers
from edgeprune.profiling.precise_models import is_converted
from edgeprune.profiling.runtimes.record import files_left_by


def tune_file(
    path: Path, options: LowerOptions, out: Output, input_size: Sequence[int] = ()
) -> tuple[Bundle, LoweringRecord]:
    """`edgeprune tune` of an ONNX file: a bundle of its network, with the forms that are fastest here.

    Its dense network is not known: what is compared are the forms.
    """
    options.check()
    out.check()
    model = with_input_size(load_model(path), input_size, where=path)
    if not grouped_layers(model):
        raise _nothing_to_tune(model, path)
    with new_bundle(out.folder, overwrite=out.overwrite) as stage:
        save_onnx(model, stage / MODEL)
        manifest = Manifest(SCHEMA_VERSION, metadata.version("edgeprune"))
        write_manifest(stage, lower_into(stage, manifest, options, TOLERANCE))
    tuned = open_bundle(out.folder)
    return tuned, load_lowering(tuned.path(LOWERING))


def tune(folder: Path, options: LowerOptions, input_size: Sequence[int] = ()) -> tuple[Bundle, LoweringRecord]:
    """`edgeprune tune`: measures here which forms are fastest, and writes the bundle's model anew with them, fixed to
    `input_size` where it leaves sizes open.

    If that changes the model, what was measured of it before is removed; reports are in any case, for they show how
    the forms were chosen before.
    """
    options.check()
    bundle = open_bundle(folder)
    if bundle.has(PARTITION):
        raise InputError("is split already", where=folder, remedy="tune the bundle that it was made from")
    if not bundle.has(MODEL):
        raise InputError(
            "holds no ONNX model yet", where=folder, remedy=f"edgeprune export {folder} --tune -o OUT exports and tunes"
        )
    check_update(folder)
    with updated_bundle(folder) as stage:
        for name in (MODEL, PLAIN_MODEL, DENSE_MODEL):
            _fix_size(stage / name, input_size, bundle.folder / name)
        tolerance = bundle.manifest.parity.tolerance if bundle.manifest.parity else TOLERANCE
        manifest = lower_into(stage, bundle.manifest, options, tolerance)
        if not (stage / LOWERING).is_file():
            raise _nothing_to_tune(load_model(stage / MODEL), folder)
        stale = _stale(bundle.manifest.files, stage)
        for name in stale:
            (stage / name).unlink()
        write_manifest(stage, manifest)
    if told := [name for name in stale if name == PROFILE or name.startswith("report.")]:
        verb, why = ("profile", "the model") if PROFILE in told else ("report", "the choice of forms")
        progress.note(
            f"removed {', '.join(told)}, which told of {why} before: `edgeprune {verb} {shlex.quote(str(folder))}` "
            "writes it anew"
        )
    if RUNTIMES in stale:
        progress.note(f"removed {RUNTIMES}, which told of the model before: --target all measures the runtimes anew")
    tuned = open_bundle(folder)
    return tuned, load_lowering(tuned.path(LOWERING))


def _fix_size(path: Path, size: Sequence[int], where: Path) -> None:
    """Write the network with its inputs' axes fixed but the batch; InputError where one is open and `size` does not
    say it."""
    if path.is_file():
        model = load_model(path, require_conv=False)
        fixed = with_input_size(model, size, where=where)
        if fixed is not model:
            path.with_name(f"{path.name}.data").unlink(missing_ok=True)
            save_onnx(fixed, path)


def _nothing_to_tune(model: ModelProto, where: Path) -> InputError:
    grouped = [
        node for node in model.graph.node if node.op_type in CONVOLUTIONS and attributes(node).get("group", 1) != 1
    ]
    if not grouped:
        expected = "layers in groups, which alone have several forms: thinner ones run as they are"
        remedy = "there is nothing to tune; `edgeprune profile` measures it"
        return InputError("has no grouped layer", where=where, expected=expected, remedy=remedy)
    quantised = quantized_layers(model)
    why = f"{quantised} layers are quantised" if quantised else "they are depthwise, or their weights are no constants"
    return InputError(
        f"has no grouped layer that could have another form: of {len(grouped)} in groups {why}",
        where=where,
        expected="grouped convolutions of several channels a group, with constant weights in floats",
        remedy="tune before quantising" if quantised else "there is nothing to tune",
    )


def _stale(before: Mapping[str, str], stage: Path) -> list[str]:
    """Which of a bundle's files (name -> SHA-256 before its model was written anew) tell of what is no more."""
    model = (MODEL, f"{MODEL}.data")
    now = {name: sha256_of(stage / name) for name in model if (stage / name).is_file()}
    is_same = now == {name: before[name] for name in model if name in before}
    kept = files_left_by(stage)

    def is_of_model(name: str) -> bool:
        return name in (PROFILE, RUNTIMES, *kept) or name.startswith(f"{ENGINES}/") or is_converted(name)

    return [name for name in before if name.startswith("report.") or (is_of_model(name) and not is_same)]
