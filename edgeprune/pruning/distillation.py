"""Distillation: a pruned network trained to give what the dense network gives, on images without labels.

The loss is the squared error of each output (of logits: Ba and Caruana, NIPS 2014), and of what each layer reads
(Romero et al., FitNets, ICLR 2015), relative to the dense network's values. Both networks see the same augmented
images, so a few hundred go a long way.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from edgeprune.bundles.manifest import Healing
from edgeprune.datasets.images import Dataset, augmented, mixed, normalised
from edgeprune.errors import InputError, first_line
from edgeprune.io.progress import bar
from edgeprune.modules.grouped_conv import GroupedConv2d
from edgeprune.modules.outputs import tensors_in
from edgeprune.pruning.shared_features import Read, SharedFeatures
from edgeprune.training.evaluation import fastest_layout
from edgeprune.training.settings import device_named, precision_on

HELD_BACK = 16
"""One image in so many says whether the network got better, and is not trained on."""
SMALLEST_SIZE = 0.05
"""Of a tensor, where its learning rate follows from it: biases may be zero."""
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
WARM_UP = 30
"""Steps in which the learning rate rises: Adam's first steps are as long as any, whatever the gradients."""
CHECKS = 10
"""Times in a run at which the held-back images are looked at; the best weights are kept."""
FROZEN = 0.2
"""Share of a run, its end, in which BatchNorm's statistics are frozen."""
SETTLING = 20
"""Batches from which BatchNorm's statistics are estimated."""


@dataclass(frozen=True)
class DistilSettings:
    """How to distil: Adam, with a learning rate that rises for a few steps, then falls along a cosine to 0."""

    steps: int = 1000
    seconds: float | None = None
    """By the clock, in place of the steps."""
    batch_size: int = 64
    learning_rate: float = 0.02
    """The peak, as a share of each tensor's own size (root mean square): so one value suits networks with weights of
    0.2 and of 0.02."""
    feature_weight: float = 4.0
    """Of what the layers read, beside the outputs, at the start; it falls to 0. What a layer reads says much from the
    first step on, at every position of every image; at the end only the outputs count."""
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

    The weights are those with the least error of the outputs on the held-back images, which may be those that it began
    with. Training ends early where the loss is no longer finite. InputError if it is not from the start, or the network
    cannot be trained.
    """
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # for what a forward draws by itself
        run = _Distillation(pruned, dense, images, features, settings)
        started = time.perf_counter()
        before = run.held_back_loss()
        if not math.isfinite(before):
            raise InputError("the network gives NaN or infinite values on the calibration images", where="healing")
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
        sizes = [max(p.detach().square().mean().sqrt().item(), SMALLEST_SIZE) for p in parameters]
        self.peaks = [settings.learning_rate * size for size in sizes]
        self.optimizer = torch.optim.Adam([{"params": [p]} for p in parameters], fused=True)
        self.norms = [module for module in self.student.modules() if isinstance(module, BATCH_NORMS)]
        self.frozen = False
        """Whether BatchNorm's statistics stay as they are: then what is trained is the network as it will be used."""
        self.batches = self._batches()
        self.steps = 0
        """Done so far."""

    def between_checks(self) -> Iterator[None]:
        """Train, and stop whenever the held-back images shall be looked at."""
        limit, started = self.settings.seconds, time.perf_counter()
        total = self.settings.steps if limit is None else limit
        unit = "" if limit is None else " (seconds)"
        what = f"distilling on {len(self.train)} images in {self.precision}{unit}"
        checks, shown, done = 1, 0, 0.0
        with bar(what, math.ceil(total)) as advance:
            while done < total and self._step(next(self.batches), done / total):
                self.steps += 1
                done = self.steps if limit is None else time.perf_counter() - started
                while shown < min(done, total):
                    shown += 1
                    advance()
                if done >= min(checks * total / CHECKS, total):
                    checks = math.floor(done / total * CHECKS) + 1
                    self._settle()
                    self.frozen = done >= (1 - FROZEN) * total
                    yield

    def _step(self, images: Tensor, progress: float) -> bool:
        """One step; whether its loss was finite."""
        share = min(1.0, (self.steps + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * progress))
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share
        self._set_training(GroupedConv2d, *(() if self.frozen else BATCH_NORMS))
        try:
            loss = self._loss(images, self.settings.feature_weight * (1 - progress))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:  # a forward writes over what its backward needs; one image alone
            raise InputError(
                f"the network cannot be trained: {first_line(error)}", where="healing", remedy="pass --heal none"
            ) from error
        self.optimizer.step()
        return math.isfinite(loss.item())

    def _batches(self) -> Iterator[Tensor]:
        """Batches of augmented images (n, C, H, W) without end."""
        size = min(self.settings.batch_size, len(self.train))
        while True:
            order = self.train[torch.randperm(len(self.train), generator=self.random)]
            for start in range(0, len(order) - size + 1, size):
                chosen = self.images.images[order[start : start + size]]
                chosen = augmented(chosen, self.random, flip=self.images.may_flip)
                yield self._placed(mixed(normalised(chosen, self.images), self.random))

    def _placed(self, images: Tensor) -> Tensor:
        return images.to(self.device, memory_format=self.layout)

    def _set_training(self, *kinds: type[nn.Module]) -> None:
        """Put modules of these kinds into training mode. All others, dropout above all, do as they will in use."""
        for module in self.student.modules():
            module.training = isinstance(module, kinds)

    @torch.no_grad()
    def _settle(self) -> None:
        """Estimate the statistics of BatchNorm anew, for the weights as they are, unless they are frozen."""
        if self.frozen or not self.norms:
            return
        momenta = [norm.momentum for norm in self.norms]
        for norm in self.norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        self._set_training(GroupedConv2d, *BATCH_NORMS)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            for images in itertools.islice(self.batches, SETTLING):
                self.student(images)
        for norm, momentum in zip(self.norms, momenta, strict=True):
            norm.momentum = momentum

    @torch.no_grad()
    def held_back_loss(self) -> float:
        self._set_training(GroupedConv2d)  # which is fast only so
        total = 0.0
        for start in range(0, len(self.held_back), self.settings.batch_size):
            part = self.held_back[start : start + self.settings.batch_size]
            images = self._placed(normalised(self.images.images[part], self.images))
            total += self._loss(images, 0.0).item() * len(part)
        return total / len(self.held_back)

    def _loss(self, images: Tensor, feature_weight: float) -> Tensor:
        """Mean over the outputs, and over what the layers read."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            with torch.no_grad():
                wanted, dense_read = self._ran(self.teacher, images)
            outputs, own_read = self._ran(self.student, images)
        loss = torch.stack([relative_error(own, goal) for own, goal in zip(outputs, wanted, strict=True)]).mean()
        if feature_weight == 0:
            return loss
        inner = [relative_error(own, goal) for own, goal in self.features.pairs(own_read, dense_read)]
        return loss + feature_weight * torch.stack(inner).mean() if inner else loss

    def _ran(self, model: nn.Module, images: Tensor) -> tuple[list[Tensor], Read]:
        with self.features.read_by(model) as read:
            return [tensor for tensor in tensors_in(model(images)) if tensor.is_floating_point()], read


def relative_error(own: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error over the mean square of what is wanted; a scalar, whatever the shape."""
    # Norms in float32 of tensors that stay as they are: mean() and mse_loss() make copies in float32 and another memory
    # layout, which takes as long as the convolutions.
    error: Tensor = torch.linalg.vector_norm(own - wanted, dtype=torch.float32)
    size: Tensor = torch.linalg.vector_norm(wanted, dtype=torch.float32)
    return error.square() / size.square().clamp_min(1e-12)
