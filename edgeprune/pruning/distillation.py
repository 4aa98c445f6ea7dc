"""Distillation: a pruned network trained to give what the dense network gives, on images without labels.

The loss is the squared error of each output, and of what each layer reads, relative to the dense network's values
(Romero et al., FitNets, ICLR 2015, with all layers at once). Both networks see the same augmented images, so a few
hundred go a long way.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from edgeprune.bundles.manifest import Healing
from edgeprune.datasets.images import Dataset, augmented, normalised
from edgeprune.errors import InputError
from edgeprune.io.progress import bar
from edgeprune.modules.outputs import tensors_in
from edgeprune.pruning.shared_features import Read, SharedFeatures
from edgeprune.training.evaluation import fastest_layout
from edgeprune.training.settings import device_named, precision_on

HELD_BACK = 16
"""One image in so many says whether the network got better, and is not trained on."""
CHECKS = 10
"""Times in a run at which the held-back images are looked at; the best weights are kept."""


@dataclass(frozen=True)
class DistilSettings:
    """How to distil."""

    steps: int = 1000
    seconds: float | None = None
    """By the clock, in place of the steps."""
    batch_size: int = 64
    learning_rate: float = 0.02
    momentum: float = 0.9
    feature_weight: float = 1.0
    """Of the layers' inputs, beside the outputs."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Distilled:
    """The network that came out, in eval mode on the CPU, and how it came about."""

    model: nn.Module
    record: Healing


def distil(
    pruned: nn.Module, dense: nn.Module, images: Dataset, features: SharedFeatures, settings: DistilSettings
) -> Distilled:
    """Train a copy of `pruned` towards `dense`; neither is changed, and no label is read.

    The weights are those with the least loss on the held-back images, which may be those that it began with. Training
    ends early where the loss is no longer finite.
    """
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # for dropout
        run = _Distillation(pruned, dense, images, features, settings)
        started = time.perf_counter()
        before = run.held_back_loss()
        best, least = copy.deepcopy(run.student.state_dict()), before
        for _ in run.between_checks():
            loss = run.held_back_loss()
            if loss < least:
                best, least = copy.deepcopy(run.student.state_dict()), loss
    run.student.load_state_dict(best)
    model = run.student.to(device="cpu", memory_format=torch.contiguous_format).eval()
    minutes = (time.perf_counter() - started) / 60
    return Distilled(model, Healing(run.steps, round(minutes, 2), before, least, kept=least < before))


class _Distillation:
    """The copy in training and its teacher between the first and the last step."""

    def __init__(
        self, pruned: nn.Module, dense: nn.Module, images: Dataset, features: SharedFeatures, settings: DistilSettings
    ) -> None:
        self.settings, self.features, self.images = settings, features, images
        self.device = device_named(settings.device)
        self.precision = precision_on(self.device, settings.precision)
        self.random = torch.Generator().manual_seed(settings.seed)
        order = torch.randperm(len(images), generator=self.random)
        held_back = len(images) // HELD_BACK
        self.held_back, self.train = (order[:held_back], order[held_back:]) if held_back else (order, order)
        sample = normalised(images.images[:2], images)
        self.layout = fastest_layout(dense, sample)
        self.student, self.teacher = (
            copy.deepcopy(model).to(device=self.device, memory_format=self.layout).eval()  # type: ignore[call-overload]
            for model in (pruned, dense)
        )
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        if not parameters:
            raise InputError("the network has no parameters to train", where="healing")
        self.optimizer = torch.optim.SGD(
            parameters, lr=settings.learning_rate, momentum=settings.momentum, nesterov=True, fused=True
        )
        self.steps = 0
        """Done so far."""

    def between_checks(self) -> Iterator[None]:
        """Train, and stop whenever the held-back images shall be looked at."""
        limit = self.settings.seconds
        total = self.settings.steps if limit is None else math.ceil(limit)
        what = f"distilling on {len(self.train)} images in {self.precision}"
        started, checks, shown = time.perf_counter(), 1, 0
        batches = self._batches()
        with bar(what + ("" if limit is None else " (seconds)"), total) as advance:
            while True:
                done = float(self.steps) if limit is None else time.perf_counter() - started
                while shown < min(math.floor(done), total):
                    shown += 1
                    advance()
                if done >= checks * total / CHECKS or done >= total:
                    checks += 1
                    yield
                if done >= total:
                    return
                if not self._step(next(batches), done / total):
                    return
                self.steps += 1

    def _step(self, images: Tensor, progress: float) -> bool:
        """One step; whether its loss was finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
        self.student.train()
        loss = self._loss(images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.student.eval()
        return math.isfinite(loss.item())

    def _batches(self) -> Iterator[Tensor]:
        """Batches of augmented images (n, C, H, W) without end."""
        size = min(self.settings.batch_size, len(self.train))
        while True:
            order = self.train[torch.randperm(len(self.train), generator=self.random)]
            for start in range(0, len(order) - size + 1, size):
                chosen = self.images.images[order[start : start + size]]
                chosen = augmented(chosen, self.random, flip=self.images.may_flip)
                yield self._placed(chosen)

    def _placed(self, images: Tensor) -> Tensor:
        return normalised(images, self.images).to(self.device, memory_format=self.layout)

    @torch.no_grad()
    def held_back_loss(self) -> float:
        total = 0.0
        for start in range(0, len(self.held_back), self.settings.batch_size):
            part = self.held_back[start : start + self.settings.batch_size]
            total += self._loss(self._placed(self.images.images[part])).item() * len(part)
        return total / len(self.held_back)

    def _loss(self, images: Tensor) -> Tensor:
        """Mean over the outputs, and over the layers' inputs."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            with torch.no_grad():
                wanted, dense_read = self._ran(self.teacher, images)
            outputs, own_read = self._ran(self.student, images)
        ends = [relative_error(own, goal) for own, goal in zip(outputs, wanted, strict=True)]
        inner = [relative_error(own, goal) for own, goal in self.features.pairs(own_read, dense_read)]
        loss = torch.stack(ends).mean()
        return loss + self.settings.feature_weight * torch.stack(inner).mean() if inner else loss

    def _ran(self, model: nn.Module, images: Tensor) -> tuple[list[Tensor], Read]:
        with self.features.read_by(model) as read:
            return [tensor for tensor in tensors_in(model(images)) if tensor.is_floating_point()], read


def relative_error(own: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error over the mean square of what is wanted; a scalar, whatever the shape."""
    own, wanted = own.float(), wanted.float()
    return (own - wanted).square().mean() / wanted.square().mean().clamp_min(1e-12)
