"""Images from the user's own function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgeprune.datasets.sources import Images, Shape
from edgeprune.datasets.targets import as_targets
from edgeprune.datasets.task import Task, accumulates
from edgeprune.errors import InputError, unknown_name
from edgeprune.io.user_code import Factory, load_factory

_KEYS = ("images", "targets", "metric", "loss")
_EXPECTED = "(images, labels), or a dictionary with images, targets, metric and perhaps loss"


def from_factory(spec: str, split: str, shape: Shape) -> Images:
    """What the user's factory(split) gives: images (N, C, H, W) and labels (N,), as arrays or tensors; or a dictionary
    of images, targets of any structure, a metric, and a loss where there is one (`datasets.task`)."""
    factory = load_factory(spec, "data")
    given = factory.call(split)
    if isinstance(given, dict):
        return _with_task(given, factory, shape)
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise InputError(f"the factory returned {_kind(given)}", where=spec, expected=_EXPECTED)
    images, labels = _images(given[0], spec, shape), _tensor(given[1], spec, "labels")
    if labels.ndim != 1 or len(labels) != len(images) or labels.is_floating_point():
        raise InputError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype}", where=spec,
            expected=f"one integer for each of the {len(images)} images",
            remedy='targets of another kind come with a metric: {"images": ..., "targets": ..., "metric": ...}',
        )  # fmt: skip
    return Images(images, labels.long(), ())


def _with_task(given: dict[Any, Any], factory: Factory, shape: Shape) -> Images:
    """Images with targets and a task."""
    where = factory.spec
    if unknown := [key for key in given if key not in _KEYS]:
        error = unknown_name("key of the factory's dictionary", str(unknown[0]), _KEYS)
        raise InputError(error.what, where=where, expected=error.expected, remedy=error.remedy)
    if missing := [key for key in _KEYS[:3] if given.get(key) is None]:
        remedy = "for top-1, return (images, labels)" if missing[0] == "metric" else ""
        what = f'the factory\'s dictionary lacks "{missing[0]}"'
        raise InputError(what, where=where, expected=_EXPECTED, remedy=remedy)
    metric, loss = given["metric"], given.get("loss")
    if isinstance(metric, type) or not (accumulates(metric) or callable(metric)):
        what = f"the class {metric.__name__}" if isinstance(metric, type) else _kind(metric)
        raise InputError(
            f"the metric is {what}", where=where,
            expected="an object with update(outputs, targets) and compute(), or a function of (outputs, targets)",
        )  # fmt: skip
    if loss is not None and not callable(loss):
        raise InputError(f"the loss is {_kind(loss)}", where=where, expected="a function of (outputs, targets)")
    images = _images(given["images"], where, shape)
    return Images(images, as_targets(given["targets"], len(images), where), (), Task(metric, loss, factory))


def _images(value: Any, spec: str, shape: Shape) -> Tensor:
    images = _tensor(value, spec, "images")
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise InputError(
            f"images of shape {tuple(images.shape)}", where=spec, expected=f"(N, {', '.join(map(str, shape))})"
        )
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise InputError(f"images of type {images.dtype}", where=spec, expected="uint8, or floats already normalised")
    images = images.float()
    if not images.isfinite().all():
        raise InputError("images hold NaN or infinite values", where=spec)
    return images


def _tensor(value: Any, spec: str, what: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} are {_kind(value)}", where=spec, expected="an array or a tensor") from error


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (tuple, list)) else "")
