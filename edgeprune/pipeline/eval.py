"""`edgeprune eval`: accuracy, through torch or ONNX Runtime."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.names import MODEL, PLAN
from edgeprune.errors import InputError
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner

if TYPE_CHECKING:
    from edgeprune.pruning.options import NetworkSource
    from edgeprune.training.evaluation import EvalResult


def evaluate(model: Path, data: str, source: NetworkSource | None, batch_size: int, limit: int | None) -> EvalResult:
    """`edgeprune eval`: an ONNX file, or a bundle's, in ONNX Runtime; a checkpoint or a bundle without one in torch."""
    from edgeprune.pruning.network import load_network
    from edgeprune.pruning.pruned import dataset, open_pruned
    from edgeprune.training.evaluation import evaluate as measure

    bundle = open_bundle(model) if model.is_dir() else None
    if bundle is not None and bundle.has(MODEL):
        return _evaluate_onnx(bundle.path(MODEL), data, batch_size, limit)
    if model.suffix == ".onnx":
        return _evaluate_onnx(model, data, batch_size, limit)
    if source is None:
        raise InputError("a checkpoint alone does not say its architecture", where=model, remedy="pass --arch")
    if bundle is not None and bundle.has(PLAN):
        pruned = open_pruned(bundle, arch=source.arch)
        network = replace(pruned.network, model=pruned.model)
    else:
        network = load_network(source)
    return measure(network.model, dataset(data, "test", network, limit=limit), batch_size=batch_size)


def _evaluate_onnx(path: Path, data: str, batch_size: int, limit: int | None) -> EvalResult:
    from edgeprune.datasets.images import load_data
    from edgeprune.training.evaluation import evaluate as measure

    with OrtRunner(path, RunOptions(threads=os.cpu_count() or 1)) as runner:
        name, (batch, *sizes) = runner.input_names[0], runner.input_specs[0].shape or (None,)
        shape = tuple(size for size in sizes if isinstance(size, int))
        if len(shape) != 3 or len(sizes) != 3:
            raise InputError(f"takes inputs of shape {(batch, *sizes)}", where=path, expected="(N, C, H, W)")
        given = runner.output_specs[0].shape
        classes = given[1] if len(given) == 2 and isinstance(given[1], int) else None
        loaded = load_data(data, split="test", input_shape=shape, num_classes=classes, limit=limit)
        size = batch if isinstance(batch, int) else batch_size
        return measure(lambda images: next(iter(runner.run({name: images}).values())), loaded, batch_size=size)
