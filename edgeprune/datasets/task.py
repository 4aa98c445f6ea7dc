"""What a network is held against where that is not one class an image: a metric, and perhaps a loss, of the user's.

A metric is an object with `update(outputs, targets)`, called for each batch, and `compute()`, as torchmetrics has them,
or a plain function (outputs, targets) of one batch, whose results are averaged over the images. It gives a number, or
numbers by name, of which the first counts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.io.user_code import Factory, raised

Outputs = Tensor | tuple[Tensor, ...]
"""A network's only output, or all of its outputs in the order of its ONNX file, each (n, ...)."""


@dataclass(frozen=True)
class Task:
    """How well a network does, and how far it is off, in the user's own terms."""

    metric: Any
    """As above. `higher_is_better = False` on it says that less is better."""
    loss: Callable[[Outputs, Any], Tensor] | None = None
    """Of a batch's outputs and targets: a mean over its images, with gradients; None where nothing shall be trained."""
    factory: Factory | None = None
    """Where they come from."""

    @property
    def higher_is_better(self) -> bool:
        return getattr(self.metric, "higher_is_better", None) is not False

    @property
    def where(self) -> str:
        return self.factory.spec if self.factory else "the task"

    def require_loss(self, what: str) -> None:
        """InputError where there is no loss, and `what` needs one."""
        if self.loss is None:
            raise InputError(
                f"{what} needs a loss, and the data brings a metric alone", where=self.where,
                expected='a function "loss" of (outputs, targets) beside "metric"',
            )  # fmt: skip

    def mean_loss(self, outputs: Outputs, targets: Any) -> Tensor:
        """The loss of a batch, a tensor without axes; InputError if it is none, or the user's function raises."""
        assert self.loss is not None, "asked for before"
        with self.running("the loss"):
            loss = self.loss(outputs, targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(f"the loss is {got}", where=self.where, expected="a tensor with one number")
        return loss.reshape(())

    def meter(self) -> Meter:
        """The metric without any images."""
        with self.running("the metric"):
            return Meter(self, _emptied(self.metric))

    @contextmanager
    def running(self, what: str) -> Iterator[None]:
        if self.factory is not None:
            with self.factory.running(what):
                yield
            return
        try:
            yield
        except Exception as error:
            raise raised(what, error, where=self.where) from error


class Meter:
    """A metric on its way through a set of images."""

    def __init__(self, task: Task, metric: Any) -> None:
        self._task, self._metric = task, metric
        self._sums: dict[str, float] = {}
        self._count = 0

    def update(self, outputs: Outputs, targets: Any, count: int) -> None:
        """Take in a batch of `count` images."""
        with self._task.running("the metric"):
            if accumulates(self._metric):
                self._metric.update(outputs, targets)
                return
            given = self._metric(outputs, targets)
        for name, value in self._numbers(given).items():
            self._sums[name] = self._sums.get(name, 0.0) + value * count
        self._count += count

    def compute(self) -> dict[str, float]:
        """The numbers by name; InputError if there is none, or the first is not finite."""
        if accumulates(self._metric):
            with self._task.running("the metric"):
                given = self._metric.compute()
            numbers = self._numbers(given)
        else:
            numbers = {name: total / self._count for name, total in self._sums.items()}
        name, value = next(iter(numbers.items()))
        if not math.isfinite(value):
            raise InputError(f"the metric's {name} is {value}", where=self._task.where, expected="a finite number")
        return numbers

    def _numbers(self, given: Any) -> dict[str, float]:
        """Single numbers by name. What else is among them, such as a tensor of a value a class, is left out."""
        values = given if isinstance(given, Mapping) else {_name(self._metric): given}
        numbers = {str(name): number for name, value in values.items() if (number := _number(value)) is not None}
        if not numbers:
            got = f"a {type(given).__name__}" + (" without a number in it" if given is values else "")
            raise InputError(
                f"the metric gave {got}", where=self._task.where, expected="a number, or a dictionary of numbers"
            )
        return numbers


def accumulates(metric: Any) -> bool:
    """Whether it is an object that is updated, rather than a function."""
    return callable(getattr(metric, "update", None)) and callable(getattr(metric, "compute", None))


def _emptied(metric: Any) -> Any:
    """Metrics that cannot be reset are copied, so that each measurement begins with what the user gave."""
    if not accumulates(metric):
        return metric
    if callable(getattr(metric, "reset", None)):
        metric.reset()
        return metric
    return copy.deepcopy(metric)


def _name(metric: Any) -> str:
    name = getattr(metric, "__name__", type(metric).__name__)
    return name if name.isidentifier() else "metric"  # a lambda


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        value = torch.as_tensor(value)
        return float(value) if value.numel() == 1 and value.ndim == 0 else None
    return float(value) if isinstance(value, (int, float)) else None
