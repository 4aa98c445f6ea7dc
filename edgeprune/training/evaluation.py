"""Accuracy and loss of a network on labelled images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeprune.datasets.images import Dataset, batches, check_labels
from edgeprune.errors import InputError
from edgeprune.io.progress import track
from edgeprune.training.settings import device_named

Network = nn.Module | Callable[[NDArray[np.float32]], Any]
"""A module, or a function from a float32 batch (n, C, H, W) to logits (n, classes), such as an ONNX Runtime session."""


@dataclass(frozen=True)
class EvalResult:
    """How well a network does on labelled images."""

    top1: float
    """Per cent of the images whose largest logit is their label's."""
    n: int
    loss: float
    """Mean cross-entropy in nats."""


def evaluate(network: Network, data: Dataset, *, batch_size: int = 256, device: str = "auto") -> EvalResult:
    """Accuracy and loss of a network on `data`. A module is run in eval mode on `device` and left as it was.

    A function is called with numpy arrays (n, C, H, W), n at most `batch_size`. Raises InputError if the labels do not
    fit the network's classes.
    """
    correct, total_loss = 0, 0.0
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size} is out of range", expected="1 or more")
    steps = math.ceil(len(data) / batch_size)
    sample, _ = next(batches(data, 2))
    with torch.inference_mode(), _as_function(network, sample, device) as run:
        for images, labels in track(batches(data, batch_size), f"evaluating on {len(data)} images", total=steps):
            logits = run(images)
            check_labels(data, classes_of(logits, len(labels)))
            correct += int((logits.argmax(1) == labels).sum())
            total_loss += F.cross_entropy(logits, labels, reduction="sum").item()
    return EvalResult(100 * correct / len(data), len(data), total_loss / len(data))


def classes_of(logits: Tensor, count: int) -> int:
    """The number of classes that a network's output for `count` images speaks of; InputError if it is no logits."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"the network gives {shape}", expected=f"logits of shape ({count}, classes)")
    return logits.shape[1]


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
def _as_function(network: Network, sample: Tensor, device: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """The network as a function of CPU tensors to float32 logits there; a module's mode and device are restored.

    `sample`: two of the images.
    """
    if not isinstance(network, nn.Module):
        yield lambda images: torch.as_tensor(network(np.ascontiguousarray(images.numpy()))).float()
        return
    first = next(network.parameters(), None)
    home = torch.device("cpu") if first is None else first.device
    there = device_named(device)
    modes = {module: module.training for module in network.modules()}
    try:
        network.to(there).eval()
        layout = fastest_layout(network, sample)
        yield lambda images: network(images.to(there, memory_format=layout)).float().cpu()
    finally:
        network.to(home)
        for module, mode in modes.items():
            module.training = mode
