"""`edgeprune eval`: accuracy, or the metric of the data, through torch or ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.names import MODEL, PLAN
from edgeprune.errors import InputError
from edgeprune.onnx_files.graph import TensorSpec
from edgeprune.onnx_files.inputs import input_specs, with_input_size
from edgeprune.onnx_files.model import load_model
from edgeprune.runners.base import RunOptions
from edgeprune.runners.feeds import shape_text
from edgeprune.runners.onnxruntime.runner import OrtRunner

if TYPE_CHECKING:
    from edgeprune.pruning.options import NetworkSource
    from edgeprune.training.evaluation import EvalResult, MetricResult


def evaluate(
    model: Path,
    data: str,
    source: NetworkSource | None,
    batch_size: int,
    limit: int | None,
    *,
    input_size: Sequence[int] = (),
) -> EvalResult | MetricResult:
    """`edgeprune eval`: an ONNX file, or a bundle's, in ONNX Runtime; a checkpoint or a bundle without one in torch.

    `input_size` is for an ONNX file that leaves more open than the batch.
    """
    from edgeprune.pruning.images import dataset
    from edgeprune.pruning.network import load_network
    from edgeprune.pruning.pruned import open_pruned
    from edgeprune.training.evaluation import evaluate as measure

    bundle = open_bundle(model) if model.is_dir() else None
    if bundle is not None and bundle.has(MODEL):
        return _evaluate_onnx(bundle.path(MODEL), data, batch_size, limit)
    if model.suffix == ".onnx":
        return _evaluate_onnx(model, data, batch_size, limit, input_size)
    if source is None:
        raise InputError("a checkpoint alone does not say its architecture", where=model, remedy="pass --arch")
    if bundle is not None and bundle.has(PLAN):
        pruned = open_pruned(bundle, arch=source.arch)
        network = replace(pruned.network, model=pruned.model)
    else:
        network = load_network(source)
    return measure(network.model, dataset(data, "test", network, limit=limit), batch_size=batch_size)


def _evaluate_onnx(
    path: Path, data: str, batch_size: int, limit: int | None, input_size: Sequence[int] = ()
) -> EvalResult | MetricResult:
    from edgeprune.datasets.images import load_data
    from edgeprune.training.evaluation import evaluate as measure

    model = load_model(path, require_conv=False)
    model = with_input_size(model, input_size, where=path) if input_size else model
    image = _image_input(input_specs(model), path)
    with OrtRunner(model if input_size else path, RunOptions(threads=os.cpu_count() or 1)) as runner:
        given = runner.output_specs[0].shape
        classes = given[1] if len(given) == 2 and isinstance(given[1], int) else None
        loaded = load_data(data, split="test", input_shape=image.shape, num_classes=classes, limit=limit)

        def run(images: NDArray[np.float32]) -> NDArray[np.generic] | list[NDArray[np.generic]]:
            fed = images.transpose(0, 2, 3, 1) if image.channels_last else images
            outputs = list(runner.run({image.name: np.ascontiguousarray(fed, image.dtype)}).values())
            return outputs[0] if loaded.task is None else outputs

        return measure(run, loaded, batch_size=image.batch or batch_size)


class _Image(NamedTuple):
    """The input of a network that takes images."""

    name: str
    batch: int | None
    """None: any."""
    shape: tuple[int, int, int]
    """(C, H, W), however the network takes it."""
    channels_last: bool
    dtype: str


def _image_input(specs: Sequence[TensorSpec], path: Path) -> _Image:
    """InputError where that is no one input of one size in floats."""
    shown = ", ".join(f"{spec.name} {spec.dtype} {shape_text(spec.shape)}" for spec in specs)
    if len(specs) != 1 or len(specs[0].shape) != 4 or not specs[0].dtype.startswith("float"):
        raise InputError(f"takes {shown}", where=path, expected="one input with images in floats, (N, C, H, W)")
    (spec,) = specs
    batch, *sizes = spec.shape
    first, second, third = (size if isinstance(size, int) else 0 for size in sizes)
    if not first * second * third:
        raise InputError(
            f"takes images of an open size: {shown}",
            where=path,
            expected="a size for each axis",
            remedy="pass --input-size H,W, or C,H,W",
        )
    last = third in (1, 3) and first not in (1, 3)
    shape = (third, first, second) if last else (first, second, third)
    return _Image(spec.name, batch if isinstance(batch, int) else None, shape, last, spec.dtype)
