"""The one training loop: for dense networks, for rewritten ones, and for the methods that work while it runs."""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from edgeprune.datasets.images import Dataset, batches, check_labels
from edgeprune.datasets.targets import moved
from edgeprune.datasets.task import Task
from edgeprune.errors import InputError
from edgeprune.io.files import write_atomically
from edgeprune.io.progress import bar, note, shown
from edgeprune.training import collectives
from edgeprune.training.evaluation import EvalResult, classes_of, evaluate, fastest_layout, mean_loss
from edgeprune.training.hooks import Step, TrainingHooks
from edgeprune.training.ranks import Ranks
from edgeprune.training.settings import TrainSettings, device_named, learning_rate_at, precision_on
from edgeprune.training.state import (
    RANDOM_OF_A_RANK,
    EpochRecord,
    RunFiles,
    data_fingerprint,
    load_run,
    restore_training,
    save_run,
    training_tensors,
    under,
    weights_fingerprint,
)

__all__ = ["EpochRecord", "EvalResult", "RunFiles", "TrainResult", "TrainSettings", "evaluate", "fit"]


@dataclass(frozen=True)
class TrainResult:
    """The trained model, in eval mode on the CPU, and how it came about."""

    model: nn.Module
    history: tuple[EpochRecord, ...]
    tickets: tuple[Path, ...] = ()
    resumed_after: int = 0
    """Epochs that earlier parts of the run had done."""


def fit(
    model: nn.Module,
    data: Dataset,
    settings: TrainSettings,
    *,
    hooks: TrainingHooks | None = None,
    test: Dataset | None = None,
    files: RunFiles | None = None,
) -> TrainResult:
    """Train a copy of `model`; the given one is not changed. `hooks` are called as `TrainingHooks` says.

    Data with a task is trained on with the task's loss. With `test`, its accuracy is measured after each epoch. With
    `files`, each epoch leaves a checkpoint and a line in the log there, and those of `settings.save_tickets` a ticket,
    epoch_N.pt with the keys model_state_dict, epoch and loss; an interrupted run can be resumed, and ends with the same
    bits (same machine, same number of threads and processes). Under torchrun all ranks call it alike and get the same
    model; each computes its piece of every batch, and the first alone reads and writes `files`. Raises InputError for
    settings that make no sense, data that does not fit the network, training that diverges, a checkpoint of another
    run, and ranks that do not agree; Interrupted where another rank has ended.
    """
    settings.check()
    if data.task is not None:
        check_task(data.task, settings)
    if settings.save_tickets and files is None:
        raise ValueError("tickets need a folder")
    hooks = hooks or TrainingHooks()
    data = hooks.split(data)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # for dropout
        loop = _Loop(model, data, settings, hooks)
        hooks.begin(loop.model, loop.optimizer)
        described = loop.described(model, test, files)
        history = loop.restored(files, described)
        done = len(history)
        what = f"training on {len(data)} images in {loop.precision}, {settings.epochs} epochs{loop.ranks.in_words}"
        with bar(what, settings.epochs * loop.steps, done=done * loop.steps) as advance:
            for epoch in range(done + 1, settings.epochs + 1):
                history.append(loop.run_epoch(epoch, test, advance))
                note(_log_line(history[-1], settings.epochs))
                if files is not None:
                    loop.keep(files, described, tuple(history))
        hooks.end()
    trained = loop.model.to(device="cpu", memory_format=torch.contiguous_format).eval()
    tickets = tuple(files.ticket(epoch) for epoch in sorted(settings.save_tickets)) if files is not None else ()
    return TrainResult(trained, tuple(history), tickets, done)


class _Loop:
    """A training run between its first and last step: the copy in training, its optimizer and its random state."""

    def __init__(self, model: nn.Module, data: Dataset, settings: TrainSettings, hooks: TrainingHooks) -> None:
        self.data, self.settings, self.hooks = data, settings, hooks
        self.ranks = Ranks.here()
        self.device = device_named(settings.device)
        self.precision = precision_on(self.device, settings.precision)
        sample, _ = next(batches(data, 2))
        self.layout = fastest_layout(model, sample)
        self.model = copy.deepcopy(model).to(device=self.device, memory_format=self.layout).train()  # type: ignore[call-overload]
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not self.parameters:
            raise InputError("the network has no parameters to train", where="training")
        self.optimizer = torch.optim.SGD(
            self.parameters, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay,
            nesterov=settings.nesterov and settings.momentum > 0, fused=True,
        )  # fmt: skip
        self.shuffle = torch.Generator().manual_seed(settings.seed)
        """Of the order of the images and their augmentation."""
        self.steps = math.ceil(len(data) / settings.batch_size)

    def described(self, start: nn.Module, test: Dataset | None, files: RunFiles | None) -> dict[str, Any]:
        """What must be the same to resume this run, which began with the weights of `start`, and on all ranks."""
        if files is None and self.ranks.is_alone:
            return {}
        described = {
            **dataclasses.asdict(self.settings),
            "precision": self.precision,
            "device": self.device.type,
            "starting_weights": weights_fingerprint(start),
            "data": data_fingerprint(self.data),
            "test_data": None if test is None else data_fingerprint(test),
            **({} if files is None else files.described),
        }
        collectives.require_same(
            {name: msgspec.json.encode(value) for name, value in described.items()},
            what="settings, network or data", remedy="start the same command in all of them, with the same files",
        )  # fmt: skip
        return described

    def tensors(self) -> dict[str, torch.Tensor]:
        """The whole state between two epochs."""
        own = {f"hooks.{name}": value for name, value in self.hooks.state().items()}
        return own | training_tensors(self.model, self.optimizer, self.shuffle)

    def restored(self, files: RunFiles | None, described: Mapping[str, Any]) -> list[EpochRecord]:
        """Put back what `keep` kept, where there is something and it is asked for; returns the epochs that are done."""
        found = load_run(files, described) if files is not None and files.resume else None
        if found is None:
            return []
        tensors, history = found
        self.hooks.restore(under("hooks.", tensors))
        restore_training(tensors, self.model, self.optimizer, self.shuffle)
        note(f"resumed after epoch {len(history)} of {self.settings.epochs}")
        return list(history)

    def keep(self, files: RunFiles, described: Mapping[str, Any], history: tuple[EpochRecord, ...]) -> None:
        """Write what the epoch that has just ended leaves."""
        if self.ranks.is_first:
            if history[-1].epoch in self.settings.save_tickets:
                save_ticket(files.ticket(history[-1].epoch), self.model, history[-1])
            save_run(files, self.tensors(), described, history)

    def run_epoch(self, epoch: int, test: Dataset | None, advance: Callable[[], None]) -> EpochRecord:
        """Train for one epoch, call `after_epoch`, and measure."""
        started = time.perf_counter()
        total_loss, correct = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        seen, rate, size = 0, self.settings.learning_rate, self.settings.batch_size
        self._seed_dropout(epoch)
        parts = batches(self.data, size, shuffle=self.shuffle, augment=self.settings.augment, piece=self.ranks.piece)
        for index, (images, labels) in enumerate(parts):
            advance()
            whole = min(size, len(self.data) - index * size)
            if whole == 1 and index > 0:
                continue  # BatchNorm cannot be trained on one sample of 1x1 pixels
            # The middle of the step, so that neither the first nor the last step has a learning rate of 0.
            progress = epoch - 1 + (index + 0.5) / self.steps
            rate = learning_rate_at(self.settings, progress)
            loss, right = self._run_step(Step(epoch, index, rate, progress), images, labels, len(images) / whole)
            total_loss += loss * len(images)
            correct += right
            seen += len(images)
        lost, rightly, counted = collectives.added_up([total_loss.item(), correct.item(), seen])
        average = lost / counted
        collectives.settle_buffers(self.model)
        # The loss of a step is that of the weights before it, so the last step shows in the weights alone.
        overflown = [name for name, value in self.model.state_dict().items() if not value.isfinite().all()]
        if overflown or not math.isfinite(average):
            symptom = f"{overflown[0]} is not finite" if overflown else f"the loss is {average}"
            raise InputError(
                f"training diverged in epoch {epoch}: {symptom}", where="training",
                remedy=f"use a learning rate below {self.settings.learning_rate}, or a warm-up",
            )  # fmt: skip
        self.hooks.after_epoch(epoch)
        self._require_in_step(epoch)
        with shown(False):  # the epoch's line says it
            tested = None if test is None else evaluate(self.model, test, device=self.settings.device)
        seconds = time.perf_counter() - started
        return EpochRecord(
            epoch, rate, average, None if self.data.task else 100 * rightly / counted, seconds,
            None if tested is None else tested.value, dict(self.hooks.log()),
        )  # fmt: skip

    def _run_step(
        self, step: Step, images: torch.Tensor, labels: Any, share: float
    ) -> tuple[torch.Tensor | float, torch.Tensor | int]:
        """One optimisation step on this rank's piece of a batch, `share` of it; the piece's mean loss, and how many of
        its images were classified rightly (0 with a task)."""
        for group in self.optimizer.param_groups:
            group["lr"] = step.learning_rate
        with self._autocast():
            self.hooks.before_batch(step)
        self.optimizer.zero_grad(set_to_none=True)
        told = self._backward(step, images, labels, share) if len(images) else (0.0, 0)
        collectives.add_up_gradients(self.parameters)
        self.hooks.before_update(step)
        self.optimizer.step()
        return told

    def _backward(
        self, step: Step, images: torch.Tensor, labels: Any, share: float
    ) -> tuple[torch.Tensor, torch.Tensor | int]:
        """Leave the gradients of `share` times the mean loss, so that the ranks' gradients add up to the batch's."""
        images, labels = images.to(self.device, memory_format=self.layout), moved(labels, self.device)
        with self._autocast():
            outputs = self.model(images)
        if step.index == 0 and step.epoch == 1 and self.data.task is None:
            check_labels(self.data, classes_of(outputs, len(images)))
        loss = mean_loss(outputs, labels, self.data, label_smoothing=self.settings.label_smoothing)
        (loss * share).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), 0 if self.data.task else (outputs.detach().argmax(1) == labels).sum()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _seed_dropout(self, epoch: int) -> None:
        """Let the other ranks drop other things than the first, and all of them what they would have if the run had not
        been resumed: a checkpoint keeps the first's random state alone."""
        if not self.ranks.is_first:
            torch.manual_seed((self.settings.seed * 1_000_003 + epoch) * 65_537 + self.ranks.rank)

    def _require_in_step(self, epoch: int) -> None:
        """InputError, after an epoch, if the ranks have gone different ways."""
        if not self.ranks.is_alone:
            state = {name: value for name, value in self.tensors().items() if name not in RANDOM_OF_A_RANK}
            collectives.require_same(
                state, what=f"weights after epoch {epoch}",
                remedy="use machines and GPUs of one kind with the same versions of torch, and hooks that draw nothing "
                "from torch's global random numbers",
            )  # fmt: skip


def check_task(task: Task, settings: TrainSettings) -> None:
    """InputError where a network cannot be trained on data with this task."""
    task.require_loss("training")
    if settings.label_smoothing:
        raise InputError(
            "--label-smoothing is for labels, and the data brings a loss of its own", where=task.where,
            remedy="leave it out",
        )  # fmt: skip


def _log_line(record: EpochRecord, epochs: int) -> str:
    accuracy = "" if record.accuracy is None else f", accuracy {record.accuracy:.2f}%"
    written = "{:.4g}" if record.accuracy is None else "{:.2f}%"
    test = "" if record.test_accuracy is None else f", test {written.format(record.test_accuracy)}"
    figures = "".join(
        f", {name} {value:.4g}" if isinstance(value, float) else f", {name} {value}"
        for name, value in record.figures.items()
    )
    return (
        f"epoch {record.epoch}/{epochs}: loss {record.loss:.4f}{accuracy}{test}, "
        f"learning rate {record.learning_rate:.3g}{figures}, {record.seconds:.1f} s"
    )


def save_ticket(path: Path, model: nn.Module, record: EpochRecord) -> None:
    """Write the model's weights after an epoch, whole or not at all."""
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    buffer = io.BytesIO()
    torch.save({"model_state_dict": weights, "epoch": record.epoch, "loss": record.loss}, buffer)
    write_atomically(path, buffer.getvalue())
