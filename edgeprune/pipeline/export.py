"""`edgeprune export`: from a checkpoint, or a pruned bundle, to ONNX files that hold what they promise.

... rewritten model -> folded model -> ONNX -> parity gate -> lowered ONNX -> parity gate (-> other runtimes' files)
(-> per-device subgraphs)
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.names import MODEL, PLAIN_MODEL, PLAN
from edgeprune.bundles.writing import new_bundle, write_manifest
from edgeprune.deployment.converting import Converted, convert_into, converted
from edgeprune.deployment.lower_bundle import LowerOptions, lower_into
from edgeprune.deployment.quantizing import quantized
from edgeprune.errors import GateError, InputError
from edgeprune.exporters.conversions import Conversion, ConvertOptions
from edgeprune.io import progress
from edgeprune.onnx_files.model import load_model
from edgeprune.pipeline.output import Output
from edgeprune.pipeline.prune import prune_source
from edgeprune.pipeline.split import SplitOptions, split_into

if TYPE_CHECKING:
    from edgeprune.deployment.options import DeployOptions
    from edgeprune.pruning.options import DataOptions, NetworkSource, PruneOptions
    from edgeprune.pruning.pruned import Pruned


def export(
    source: NetworkSource,
    options: PruneOptions,
    data: DataOptions,
    deploy: DeployOptions,
    lowering: LowerOptions,
    split: SplitOptions,
    out: Output,
) -> tuple[Bundle, Pruned]:
    """`edgeprune export CKPT|DIR`: from a checkpoint, or what DIR holds, to a bundle with ONNX files. Of several ranks
    all but the first end (SystemExit) before anything is written."""
    folder = source.checkpoint
    if folder is not None and folder.is_dir() and open_bundle(folder).has(PLAN):
        if options.asks_for_pruning:
            progress.note(f"{folder} is pruned already: how to prune is not used")
        return export_bundle(folder, source.arch, data, deploy, lowering, split, out)
    out.check_by_first()
    for given in (source, options, data, deploy, lowering, split):
        given.check()
    from edgeprune.training.collectives import leave_to_first

    pruned = prune_source(source, options, data)
    leave_to_first()
    return write_export(pruned, deploy, lowering, split, out), pruned


def export_bundle(
    folder: Path,
    arch: str,
    data: DataOptions,
    deploy: DeployOptions,
    lowering: LowerOptions,
    split: SplitOptions,
    out: Output,
) -> tuple[Bundle, Pruned]:
    """`edgeprune export DIR`: the same from a bundle that `prune` wrote."""
    out.check_by_first()
    for given in (data, deploy, lowering, split):
        given.check()
    from edgeprune.pruning.healed import healed
    from edgeprune.pruning.images import load_images
    from edgeprune.pruning.pruned import note_off_block, open_pruned, with_accuracy
    from edgeprune.training.collectives import leave_to_first

    opened = open_pruned(open_bundle(folder), arch=arch)
    note_off_block(opened.plan, opened.graph, lowering.device_profile)
    images = load_images(data, opened.network)
    pruned = with_accuracy(healed(opened, data, images.seen if images else None), data, images)
    leave_to_first()
    return write_export(pruned, deploy, lowering, split, out), pruned


def write_export(
    pruned: Pruned, deploy: DeployOptions, lowering: LowerOptions, split: SplitOptions, out: Output
) -> Bundle:
    """Fold, export, verify, lower, split if asked, and publish the bundle; nothing is left if a gate fails, but that of
    the split: the network, which may have taken hours, is there then, in one piece."""
    from edgeprune.deployment.exporting import export_into

    unsplit: GateError | InputError | None = None
    with new_bundle(out.folder, overwrite=out.overwrite) as stage:
        manifest = export_into(stage, pruned, deploy)
        manifest = lower_into(stage, manifest, lowering, deploy.tolerance)
        if deploy.to:
            how = ConvertOptions(precision=deploy.to_precision)
            convert_into(stage, deploy.to, how, partial(_convert, deploy=deploy))
        if split.devices:
            planned = stage / PLAIN_MODEL
            try:
                split_into(stage, load_model(planned if planned.is_file() else stage / MODEL), split)
            except (GateError, InputError) as error:  # before anything of it was written
                unsplit = error
        write_manifest(stage, manifest)
    if unsplit is not None:
        told = f"{unsplit}; {out.folder} holds the network in one piece, for `edgeprune split`"
        raise type(unsplit)(told) from unsplit
    return open_bundle(out.folder)


def _convert(
    model: ModelProto, conversion: Conversion, options: ConvertOptions, where: str, *, deploy: DeployOptions
) -> Converted:
    if options.precision != "fp32":
        return quantized(model, conversion, options, deploy.calibration, where=where)
    return converted(model, conversion, options, where=where, tolerance=deploy.tolerance)
