"""The data of a run, and how well networks do on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import torch

from edgeprune.bundles.manifest import Accuracy, Score
from edgeprune.datasets.images import Dataset, load_data
from edgeprune.io.user_code import is_file_spec
from edgeprune.methods import Method, needs_images, wants_gradients
from edgeprune.pruning.network import Network
from edgeprune.pruning.options import DataOptions
from edgeprune.training.evaluation import EvalResult, MetricResult, evaluate
from edgeprune.training.loop import check_task

GRADIENT_IMAGES = 512


@dataclass(frozen=True)
class Images:
    """The data of one run, loaded before any long work."""

    test: Dataset
    dense: EvalResult | MetricResult
    """How the dense network does on `test`."""
    train: Dataset | None
    """Only where there is fine-tuning."""
    calibration: Dataset | None = None
    """Part of the training data, for the gradients that a method asks for."""
    seen: Dataset | None = None
    """Part of the training data, for a method that refits layers on images, and for healing: no one reads its
    labels."""


def load_images(
    options: DataOptions,
    network: Network,
    method: Method | None = None,
    settings: object = None,
    *,
    reconstruct: bool = False,
) -> Images | None:
    """What the options ask for, and a method with these settings; None if the options name no data.

    `reconstruct`: layers are fitted on images after any method.
    """
    options.check()
    if not options.data:
        return None
    calibrate = method is not None and wants_gradients(method, settings)
    train = dataset(options.data, "train", network) if options.finetune_epochs else None
    calibration = dataset(options.data, "train", network, limit=GRADIENT_IMAGES) if calibrate else None
    if train is not None and train.task is not None:
        check_task(train.task, options.training(options.finetune_epochs))
    if calibration is not None and calibration.task is not None:
        calibration.task.require_loss("a method that follows the loss's gradients")
    test = dataset(options.data, "test", network)
    seen = None
    if (method is not None and needs_images(method)) or options.heal.minutes is not None or reconstruct:
        source = dataset(options.data, "train", network) if train is None else train
        seen = in_seeded_order(source, options.calibration_images, options.seed)
    return Images(test, evaluate(network.model, test), train, calibration, seen)


def in_seeded_order(data: Dataset, count: int, seed: int) -> Dataset:
    """The first `count` images in the order that the seed gives."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data.some(order[:count])


def dataset(spec: str, split: Literal["train", "test"], network: Network, *, limit: int | None = None) -> Dataset:
    """One split of a data source, shaped and checked for this network."""
    classes = network.num_classes or None
    return load_data(spec, split=split, input_shape=network.input_shape, num_classes=classes, limit=limit)


def public_data_name(spec: str) -> str:
    """A data source's name without local paths."""
    if is_file_spec(spec):
        return Path(spec.rpartition(":")[0]).name
    return spec.partition(":")[0]


def accuracy_of(
    dense: EvalResult | MetricResult,
    pruned: EvalResult | MetricResult,
    data: str,
    *,
    before: float | None = None,
    full_shape: float | None = None,
) -> Accuracy:
    """What a manifest says of two networks on the same test data; `before` fine-tuning, `full_shape`: see there."""
    found = Accuracy(dense.value, pruned.value, before, pruned.n, public_data_name(data), full_shape)
    if not isinstance(dense, MetricResult) or not isinstance(pruned, MetricResult):
        return found
    both = {name: Score(value, pruned.metrics[name]) for name, value in dense.metrics.items() if name in pruned.metrics}
    return msgspec.structs.replace(found, metric=dense.name, higher_is_better=dense.higher_is_better, metrics=both)
