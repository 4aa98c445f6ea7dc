"""How well a network does on images: accuracy and loss, or the metric that its data brings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeprune.datasets.images import Dataset, batches, check_labels
from edgeprune.datasets.task import Outputs, Task
from edgeprune.errors import InputError, first_line
from edgeprune.io.progress import track
from edgeprune.modules.outputs import tensors_in
from edgeprune.training.settings import device_named

Network = nn.Module | Callable[[NDArray[np.float32]], Any]
"""A module, or a function from a float32 batch (n, C, H, W) to its outputs, such as an ONNX Runtime session: logits (n,
classes), or for data with a task an array or several."""

TOP1 = "top-1"


@dataclass(frozen=True)
class EvalResult:
    """How well a network does on labelled images."""

    top1: float
    """Per cent of the images whose largest logit is their label's."""
    n: int
    loss: float
    """Mean cross-entropy in nats."""
    name: ClassVar[str] = TOP1
    higher_is_better: ClassVar[bool] = True

    @property
    def value(self) -> float:
        return self.top1


@dataclass(frozen=True)
class MetricResult:
    """What the metric says that the data brings."""

    metric: str
    """Name of the number that counts: the first."""
    metrics: dict[str, float]
    """All numbers by name."""
    n: int
    loss: float | None
    """Mean over the images; None where the data brings no loss."""
    higher_is_better: bool = True

    @property
    def name(self) -> str:
        return self.metric

    @property
    def value(self) -> float:
        return self.metrics[self.name]


def evaluate(
    network: Network, data: Dataset, *, batch_size: int = 256, device: str = "auto"
) -> EvalResult | MetricResult:
    """Accuracy and loss of a network on `data`, or what the metric of its task says. A module is run in eval mode on
    `device` and left as it was.

    A function is called with numpy arrays (n, C, H, W), n at most `batch_size`. Raises InputError if the labels do not
    fit the network's classes, or the user's metric or loss raises or gives no number.
    """
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size} is out of range", expected="1 or more")
    steps = math.ceil(len(data) / batch_size)
    sample, _ = next(batches(data, 2))
    with torch.inference_mode(), _as_function(network, sample, device) as run:
        if batch_size > 1 and isinstance(network, nn.Module):
            _check_batch(run, sample)
        parts = track(batches(data, batch_size), f"evaluating on {len(data)} images", total=steps)
        results = ((run(images), targets, len(images)) for images, targets in parts)
        return _accuracy(results, data) if data.task is None else _metric(results, data.task)


def _check_batch(run: Callable[[Tensor], object], sample: Tensor) -> None:
    """InputError for a network that runs on one image at a time alone; what else it raises comes when it is run."""
    try:
        run(sample)
    except Exception as error:  # whatever a user's forward raises
        try:
            run(sample[:1])
        except Exception:
            return
        raise InputError(
            f"the network runs on a batch of 1 alone: on {len(sample)} images, {first_line(error)}",
            expected="a network for any batch, where there are images to run it on",
        ) from error


def _accuracy(results: Iterable[tuple[object, Tensor, int]], data: Dataset) -> EvalResult:
    """From what the network gave, labels and number of images of each batch."""
    correct, total_loss = 0, 0.0
    for raw, labels, count in results:
        check_labels(data, classes_of(raw, count))
        logits = _on_cpu(raw)
        assert isinstance(logits, Tensor), "checked"
        correct += int((logits.argmax(1) == labels).sum())
        total_loss += F.cross_entropy(logits, labels, reduction="sum").item()
    return EvalResult(100 * correct / len(data), len(data), total_loss / len(data))


def _metric(results: Iterable[tuple[object, Any, int]], task: Task) -> MetricResult:
    """From what the network gave, targets and number of images of each batch."""
    meter, total_loss, seen = task.meter(), 0.0, 0
    for raw, targets, count in results:
        outputs = _on_cpu(raw)
        meter.update(outputs, targets, count)
        if task.loss is not None:
            total_loss += task.mean_loss(outputs, targets).item() * count
        seen += count
    numbers, loss = meter.compute(), total_loss / seen if task.loss else None
    return MetricResult(next(iter(numbers)), numbers, seen, loss, task.higher_is_better)


def outputs_of(raw: object) -> Outputs:
    """What a network returned, in float32 where it is in floats, as metrics and losses are given it: its tensor, or all
    of them. InputError if there is no tensor in it."""
    found = [tensor.float() if tensor.is_floating_point() else tensor for tensor in tensors_in(raw)]
    if not found:
        raise InputError(f"the network gives {type(raw).__name__}", expected="a tensor, or several")
    return found[0] if len(found) == 1 else tuple(found)


def _on_cpu(raw: object) -> Outputs:
    return outputs_of([tensor.cpu() for tensor in tensors_in(raw)])


def classes_of(logits: object, count: int) -> int:
    """The number of classes that a network's output for `count` images speaks of; InputError if it is no logits."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"the network gives {shape}", expected=f"logits of shape ({count}, classes) for labels",
            remedy="for other outputs, let --data file.py:factory bring a metric (docs/evaluation.md)",
        )  # fmt: skip
    return logits.shape[1]


def mean_loss(raw: object, targets: Any, data: Dataset, *, label_smoothing: float = 0.0) -> Tensor:
    """The loss of a batch, as the data defines it: cross-entropy of logits and labels, or the task's own.

    InputError for a loss of the user's own that nothing can be learned from, where gradients are wanted.
    """
    if data.task is not None:
        loss = data.task.mean_loss(outputs_of(raw), targets)
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise InputError(
                "the loss has no gradients", where=data.task.where,
                expected="a number computed from the outputs in torch, without detach() and item()",
            )  # fmt: skip
        return loss
    assert isinstance(raw, Tensor), "checked on the first batch"
    return F.cross_entropy(raw.float(), targets, label_smoothing=label_smoothing)


def fastest_layout(model: nn.Module, images: Tensor) -> torch.memory_format:
    """The memory layout to run a network in: channels_last, in which PyTorch's convolutions take 0.6 of the time on the
    CPU, unless the forward cannot (a `.view` of a feature map)."""
    modes = {module: module.training for module in model.modules()}
    first = next(model.parameters(), images)
    try:
        with torch.no_grad():
            model.eval()(images[:2].to(first.device, first.dtype, memory_format=torch.channels_last))
    except RuntimeError:
        return torch.contiguous_format
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.channels_last


@contextmanager
def _as_function(network: Network, sample: Tensor, device: str) -> Iterator[Callable[[Tensor], object]]:
    """The network as a function of CPU tensors to what it returns; a module's mode and device are restored.

    `sample`: two of the images.
    """
    if not isinstance(network, nn.Module):
        yield lambda images: _as_tensors(network(np.ascontiguousarray(images.numpy())))
        return
    first = next(network.parameters(), None)
    home = torch.device("cpu") if first is None else first.device
    there = device_named(device)
    modes = {module: module.training for module in network.modules()}
    try:
        network.to(there).eval()
        layout = fastest_layout(network, sample)
        yield lambda images: network(images.to(there, memory_format=layout))
    finally:
        network.to(home)
        for module, mode in modes.items():
            module.training = mode


def _as_tensors(given: Any) -> object:
    """An array, or several, as tensors."""
    return [torch.as_tensor(array) for array in given] if isinstance(given, Sequence) else torch.as_tensor(given)
