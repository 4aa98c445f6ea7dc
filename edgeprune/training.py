"""The training loop, and evaluation. One loop for dense and for rewritten models."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeprune.data import Dataset, batches, check_labels
from edgeprune.errors import InputError
from edgeprune.progress import note, track

Network = nn.Module | Callable[[NDArray[np.float32]], Any]
"""A module, or a function from a float32 batch (n, C, H, W) to logits (n, classes), such as an ONNX Runtime session."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train: SGD with momentum on the cross-entropy."""

    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.1
    """The peak."""
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """After the warm-up: cosine to 0, or a tenth at 1/2 and again at 3/4 of the epochs, or constant."""
    warmup_epochs: float = 0.0
    """Epochs in which the learning rate rises linearly from 0."""
    label_smoothing: float = 0.0
    augment: bool = True
    """Random crops, and mirrored images where the data allows it."""
    bf16: bool = False
    """Mixed precision through autocast: faster where the CPU or GPU has bfloat16 units, slower elsewhere."""
    channels_last: bool = True
    device: str = "auto"
    """auto: the first CUDA device, else the CPU."""
    seed: int = 0
    """Of shuffling, augmentation and dropout. The same seed, device and thread count give the same weights."""
    save_tickets: tuple[int, ...] = ()
    """Epochs (1 = the first) after which a ticket is saved."""

    def check(self) -> None:
        """InputError if these settings cannot train anything."""
        positive = {"epochs": self.epochs, "batch_size": self.batch_size, "learning_rate": self.learning_rate}
        for name, value in positive.items():
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name.replace('_', ' ')} {value}", where="training", expected="a value above 0")
        shares = {"momentum": self.momentum, "label_smoothing": self.label_smoothing}
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise InputError(f"{name.replace('_', ' ')} {value}", where="training", expected="a value in [0, 1)")
        amounts = {"weight_decay": self.weight_decay, "warmup_epochs": self.warmup_epochs, "seed": self.seed}
        for name, value in amounts.items():
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name.replace('_', ' ')} {value}", where="training", expected="0 or more")
        outside = [epoch for epoch in self.save_tickets if not 1 <= epoch <= self.epochs]
        if outside:
            raise InputError(
                f"tickets asked for at epoch {outside[0]}", where="training", expected=f"epochs 1..{self.epochs}"
            )


@dataclass(frozen=True)
class EpochRecord:
    """One epoch, measured on its own training batches (as augmented, while the weights change)."""

    epoch: int
    """1 is the first."""
    learning_rate: float
    """At the epoch's last step."""
    loss: float
    """Mean cross-entropy in nats, with label smoothing if that is set."""
    accuracy: float
    """Per cent."""
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """The trained model, in eval mode on the CPU, and how it came about."""

    model: nn.Module
    history: tuple[EpochRecord, ...]
    tickets: tuple[Path, ...] = ()


OnEpoch = Callable[[EpochRecord, nn.Module], None]
"""Called after each epoch, before its ticket is saved, with the model in training, whose weights it may change."""


def fit(
    model: nn.Module,
    data: Dataset,
    settings: TrainSettings,
    *,
    tickets_folder: Path | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainResult:
    """Train a copy of `model`; the given one is not changed.

    Tickets (`settings.save_tickets`) are written to `tickets_folder`, made if need be, as epoch_N.pt with the keys
    model_state_dict, epoch and loss. Raises InputError for settings that make no sense, data that does not fit the
    network, and training that diverges.
    """
    settings.check()
    if settings.save_tickets and tickets_folder is None:
        raise ValueError("tickets need a folder")
    device = _device(settings.device)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    trained = copy.deepcopy(model).to(device=device, memory_format=layout).train()  # type: ignore[call-overload]
    parameters = [p for p in trained.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("the network has no parameters to train", where="training")
    optimizer = torch.optim.SGD(
        parameters, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay,
        nesterov=settings.nesterov and settings.momentum > 0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(settings.seed)
    history: list[EpochRecord] = []
    tickets: list[Path] = []
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # for dropout
        for epoch in track(range(1, settings.epochs + 1), f"training on {len(data)} images"):
            record = _train_epoch(trained, data, settings, optimizer, generator, epoch)
            history.append(record)
            note(
                f"epoch {epoch}/{settings.epochs}: loss {record.loss:.4f}, accuracy {record.accuracy:.2f}%, "
                f"{record.seconds:.1f} s"
            )
            if on_epoch is not None:
                on_epoch(record, trained)
            if tickets_folder is not None and epoch in settings.save_tickets:
                tickets.append(save_ticket(tickets_folder, trained, record))
    trained = trained.to(device="cpu", memory_format=torch.contiguous_format).eval()
    return TrainResult(trained, tuple(history), tuple(tickets))


def learning_rate_at(settings: TrainSettings, progress: float) -> float:
    """The learning rate after `progress` epochs, a fraction of an epoch included."""
    if progress < settings.warmup_epochs:
        return settings.learning_rate * progress / settings.warmup_epochs
    if settings.schedule == "constant":
        return settings.learning_rate
    if settings.schedule == "step":
        return settings.learning_rate * 0.1 ** (
            (progress >= settings.epochs / 2) + (progress >= settings.epochs * 3 / 4)
        )
    span = max(settings.epochs - settings.warmup_epochs, 1e-9)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min((progress - settings.warmup_epochs) / span, 1.0)))


def _train_epoch(
    model: nn.Module,
    data: Dataset,
    settings: TrainSettings,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    epoch: int,
) -> EpochRecord:
    started = time.perf_counter()
    device = next(model.parameters()).device
    steps = math.ceil(len(data) / settings.batch_size)
    total_loss, correct, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
    lr = settings.learning_rate
    for step, (images, labels) in enumerate(
        batches(data, settings.batch_size, shuffle=generator, augment=settings.augment)
    ):
        if len(labels) == 1 and step > 0:
            continue  # BatchNorm cannot be trained on one sample of 1x1 pixels
        # The middle of the step, so that neither the first nor the last step has a learning rate of 0.
        lr = learning_rate_at(settings, epoch - 1 + (step + 0.5) / steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        images, labels = images.to(device), labels.to(device)
        if settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
            logits = model(images)
        if step == 0 and epoch == 1:
            check_labels(data, _classes_of(logits, len(labels)))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=settings.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total_loss += loss.detach() * len(labels)
        correct += (logits.detach().argmax(1) == labels).sum()
        seen += len(labels)
    mean_loss = total_loss.item() / seen
    if not math.isfinite(mean_loss):
        raise InputError(
            f"training diverged in epoch {epoch}: the loss is {mean_loss}", where="training",
            remedy=f"use a learning rate below {settings.learning_rate}, or a warm-up",
        )  # fmt: skip
    return EpochRecord(epoch, lr, mean_loss, 100 * correct.item() / seen, time.perf_counter() - started)


def save_ticket(folder: Path, model: nn.Module, record: EpochRecord) -> Path:
    """Write the model's weights as FOLDER/epoch_N.pt, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"epoch_{record.epoch}.pt"
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    staged = path.with_suffix(f".{os.getpid()}.part")
    try:
        torch.save({"model_state_dict": weights, "epoch": record.epoch, "loss": record.loss}, staged)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    return path


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
    steps = math.ceil(len(data) / batch_size)
    with torch.inference_mode(), _as_function(network, device) as run:
        for images, labels in track(batches(data, batch_size), f"evaluating on {len(data)} images", total=steps):
            logits = run(images)
            check_labels(data, _classes_of(logits, len(labels)))
            correct += int((logits.argmax(1) == labels).sum())
            total_loss += F.cross_entropy(logits, labels, reduction="sum").item()
    return EvalResult(100 * correct / len(data), len(data), total_loss / len(data))


@contextmanager
def _as_function(network: Network, device: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """The network as a function of CPU tensors to float32 logits there; a module's mode and device are restored."""
    if not isinstance(network, nn.Module):
        yield lambda images: torch.as_tensor(network(np.ascontiguousarray(images.numpy()))).float()
        return
    first = next(network.parameters(), None)
    home = torch.device("cpu") if first is None else first.device
    there = _device(device)
    modes = {module: module.training for module in network.modules()}
    try:
        network.to(there).eval()
        # channels_last: PyTorch's convolutions take 0.6 of the time on the CPU.
        yield lambda images: network(images.to(there, memory_format=torch.channels_last)).float().cpu()
    finally:
        network.to(home)
        for module, mode in modes.items():
            module.training = mode


def _classes_of(logits: Tensor, count: int) -> int:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"the network gives {shape}", expected=f"logits of shape ({count}, classes)")
    return logits.shape[1]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not name.startswith("cuda"):
        raise InputError(f"unknown device {name!r}", expected="auto, cpu, cuda or cuda:N")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(
            f"device {name} is not here", expected="a CUDA device that torch can use", remedy="use the CPU"
        )
    return torch.device(name)
