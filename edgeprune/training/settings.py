"""How to train: the settings, the learning rate that follows from them, the device and the precision."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgeprune.errors import InputError
from edgeprune.training.ranks import Ranks

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class TrainSettings:
    """How to train: SGD with momentum on the cross-entropy."""

    epochs: int = 30
    batch_size: int = 128
    """Images a step, of all ranks together."""
    learning_rate: float = 0.1
    """The peak."""
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """After the warm-up: cosine to 0, or steps at the milestones, or constant."""
    milestones: tuple[float, ...] = ()
    """Epochs after which a step schedule multiplies the learning rate by `gamma`; none: 1/2 and 3/4 of the epochs."""
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    """Epochs in which the learning rate rises linearly from 0."""
    label_smoothing: float = 0.0
    augment: bool = True
    """Random crops, and mirrored images where the data allows it."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bfloat16 through autocast where the CPU or GPU has units for it, float32 elsewhere."""
    device: str = "auto"
    """auto: the first CUDA device, or that with the number of the local rank, else the CPU."""
    seed: int = 0
    """Of shuffling, augmentation and dropout. The same seed, device and thread count give the same weights."""
    save_tickets: tuple[int, ...] = ()
    """Epochs (1 = the first) after which a ticket is saved."""

    def check(self) -> None:
        """InputError if these settings cannot train anything."""
        positive = {"epochs": self.epochs, "batch_size": self.batch_size, "learning_rate": self.learning_rate}
        positive["gamma"] = self.gamma
        for name, value in positive.items():
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name.replace('_', ' ')} {value}", where="training", expected="a value above 0")
        if self.batch_size < 2:
            raise InputError(
                "batch size 1", where="training", expected="2 or more: BatchNorm cannot be trained on one image",
                remedy="pass --batch-size 2",
            )  # fmt: skip
        Ranks.here().check_batch_size(self.batch_size)
        shares = {"momentum": self.momentum, "label_smoothing": self.label_smoothing}
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise InputError(f"{name.replace('_', ' ')} {value}", where="training", expected="a value in [0, 1)")
        amounts = {"weight_decay": self.weight_decay, "warmup_epochs": self.warmup_epochs, "seed": self.seed}
        for name, value in amounts.items():
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name.replace('_', ' ')} {value}", where="training", expected="0 or more")
        if self.milestones and self.schedule != "step":
            raise InputError(
                f"milestones with the {self.schedule} schedule", where="training", remedy="use the step schedule"
            )
        self._check_epochs("milestone", self.milestones)
        self._check_epochs("ticket", self.save_tickets)

    def _check_epochs(self, what: str, asked: tuple[float, ...]) -> None:
        outside = [epoch for epoch in asked if not 1 <= epoch <= self.epochs]
        if outside:
            raise InputError(
                f"{what} asked for at epoch {outside[0]:g}", where="training", expected=f"epochs 1..{self.epochs}"
            )


def learning_rate_at(settings: TrainSettings, progress: float) -> float:
    """The learning rate after `progress` epochs, a fraction of an epoch included."""
    if progress < settings.warmup_epochs:
        return settings.learning_rate * progress / settings.warmup_epochs
    if settings.schedule == "constant":
        return settings.learning_rate
    if settings.schedule == "step":
        milestones = settings.milestones or (settings.epochs / 2, settings.epochs * 3 / 4)
        return settings.learning_rate * settings.gamma ** sum(progress >= milestone for milestone in milestones)
    span = max(settings.epochs - settings.warmup_epochs, 1e-9)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min((progress - settings.warmup_epochs) / span, 1.0)))


def parse_epochs(flag: str, text: str) -> tuple[int, ...]:
    """Epochs in ascending order from `10,20,30`, `10:100:10` (both ends included) or a mix; empty for an empty text."""
    epochs: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        bounds = part.split(":")
        try:
            first, last, *step = (int(bound) for bound in (bounds if len(bounds) > 1 else bounds * 2))
            chosen = range(first, last + 1, *step)
        except (ValueError, TypeError):
            chosen = range(0)
        if not chosen or chosen.step < 1:
            raise InputError(f"{flag} {part!r} names no epochs", expected="10,20,30 or FROM:TO:STEP, such as 10:100:10")
        epochs.update(chosen)
    return tuple(sorted(epochs))


def device_named(name: str) -> torch.device:
    """The device of `TrainSettings.device`; InputError if it is not here."""
    import torch

    if name == "auto":
        return _own_gpu(Ranks.here()) if torch.cuda.is_available() else torch.device("cpu")
    if name != "cpu" and not name.startswith("cuda"):
        raise InputError(f"unknown device {name!r}", expected="auto, cpu, cuda or cuda:N")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(
            f"device {name} is not here", expected="a CUDA device that torch can use", remedy="use the CPU"
        )
    return torch.device(name)


def _own_gpu(ranks: Ranks) -> torch.device:
    import torch

    if ranks.is_alone:
        return torch.device("cuda")
    here = torch.cuda.device_count()
    if ranks.local_size > here:
        raise InputError(
            f"{ranks.local_size} processes on a machine with {here} GPUs", where="training",
            expected="a GPU for each process", remedy=f"start torchrun with --nproc-per-node {here}",
        )  # fmt: skip
    return torch.device("cuda", ranks.local_rank)


def precision_on(device: torch.device, asked: Literal["auto", "fp32", "bf16"]) -> Precision:
    """The precision that training takes on a device: what is asked, or what the device has units for."""
    import torch

    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has = torch.cpu.get_capabilities()
    return "bf16" if any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")) else "fp32"
