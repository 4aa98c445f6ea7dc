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

import torch
from torch import nn

from edgeprune.datasets.images import Dataset, batches, check_labels
from edgeprune.datasets.targets import moved
from edgeprune.datasets.task import Task
from edgeprune.errors import InputError
from edgeprune.io.files import write_atomically
from edgeprune.io.progress import bar, note, shown
from edgeprune.training.evaluation import EvalResult, classes_of, evaluate, fastest_layout, mean_loss
from edgeprune.training.hooks import Step, TrainingHooks
from edgeprune.training.settings import TrainSettings, device_named, learning_rate_at, precision_on
from edgeprune.training.state import (
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
    bits (same machine, same number of threads). Raises InputError for settings that make no sense, data that does not
    fit the network, training that diverges, and a checkpoint of another run.
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
        described = {} if files is None else {**loop.described(model, test), **files.described}
        history: list[EpochRecord] = []
        if files is not None and files.resume and files.checkpoint.is_file():
            history += loop.restore(files, described)
            note(f"resumed after epoch {len(history)} of {settings.epochs}")
        done = len(history)
        what = f"training on {len(data)} images in {loop.precision}, {settings.epochs} epochs"
        with bar(what, settings.epochs * loop.steps, done=done * loop.steps) as advance:
            for epoch in range(done + 1, settings.epochs + 1):
                record = loop.run_epoch(epoch, test, advance)
                history.append(record)
                note(_log_line(record, settings.epochs))
                if files is not None:
                    if epoch in settings.save_tickets:
                        save_ticket(files.ticket(epoch), loop.model, record)
                    save_run(files, loop.tensors(), described, tuple(history))
        hooks.end()
    trained = loop.model.to(device="cpu", memory_format=torch.contiguous_format).eval()
    tickets = tuple(files.ticket(epoch) for epoch in sorted(settings.save_tickets)) if files is not None else ()
    return TrainResult(trained, tuple(history), tickets, done)


class _Loop:
    """A training run between its first and last step: the copy in training, its optimizer and its random state."""

    def __init__(self, model: nn.Module, data: Dataset, settings: TrainSettings, hooks: TrainingHooks) -> None:
        self.data, self.settings, self.hooks = data, settings, hooks
        self.device = device_named(settings.device)
        self.precision = precision_on(self.device, settings.precision)
        sample, _ = next(batches(data, 2))
        self.layout = fastest_layout(model, sample)
        self.model = copy.deepcopy(model).to(device=self.device, memory_format=self.layout).train()  # type: ignore[call-overload]
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not parameters:
            raise InputError("the network has no parameters to train", where="training")
        self.optimizer = torch.optim.SGD(
            parameters, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay,
            nesterov=settings.nesterov and settings.momentum > 0, fused=True,
        )  # fmt: skip
        self.shuffle = torch.Generator().manual_seed(settings.seed)
        """Of the order of the images and their augmentation."""
        self.steps = math.ceil(len(data) / settings.batch_size)

    def described(self, start: nn.Module, test: Dataset | None) -> dict[str, Any]:
        """What must be the same to resume this run, which began with the weights of `start`."""
        return {
            **dataclasses.asdict(self.settings),
            "precision": self.precision,
            "device": self.device.type,
            "starting_weights": weights_fingerprint(start),
            "data": data_fingerprint(self.data),
            "test_data": None if test is None else data_fingerprint(test),
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """The whole state between two epochs."""
        own = {f"hooks.{name}": value for name, value in self.hooks.state().items()}
        return own | training_tensors(self.model, self.optimizer, self.shuffle)

    def restore(self, files: RunFiles, described: Mapping[str, Any]) -> tuple[EpochRecord, ...]:
        """Put back what `tensors` gave; returns the epochs that are done."""
        tensors, history = load_run(files, described)
        self.hooks.restore(under("hooks.", tensors))
        restore_training(tensors, self.model, self.optimizer, self.shuffle)
        return history

    def run_epoch(self, epoch: int, test: Dataset | None, advance: Callable[[], None]) -> EpochRecord:
        """Train for one epoch, call `after_epoch`, and measure."""
        started = time.perf_counter()
        total_loss, correct = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        seen, rate = 0, self.settings.learning_rate
        parts = batches(self.data, self.settings.batch_size, shuffle=self.shuffle, augment=self.settings.augment)
        for index, (images, labels) in enumerate(parts):
            advance()
            if len(images) == 1 and index > 0:
                continue  # BatchNorm cannot be trained on one sample of 1x1 pixels
            # The middle of the step, so that neither the first nor the last step has a learning rate of 0.
            progress = epoch - 1 + (index + 0.5) / self.steps
            rate = learning_rate_at(self.settings, progress)
            loss, right = self._run_step(Step(epoch, index, rate, progress), images, labels)
            total_loss += loss * len(images)
            correct += right
            seen += len(images)
        average = total_loss.item() / seen
        # The loss of a step is that of the weights before it, so the last step shows in the weights alone.
        overflown = [name for name, value in self.model.state_dict().items() if not value.isfinite().all()]
        if overflown or not math.isfinite(average):
            symptom = f"{overflown[0]} is not finite" if overflown else f"the loss is {average}"
            raise InputError(
                f"training diverged in epoch {epoch}: {symptom}", where="training",
                remedy=f"use a learning rate below {self.settings.learning_rate}, or a warm-up",
            )  # fmt: skip
        self.hooks.after_epoch(epoch)
        with shown(False):  # the epoch's line says it
            tested = None if test is None else evaluate(self.model, test, device=self.settings.device)
        seconds = time.perf_counter() - started
        return EpochRecord(
            epoch, rate, average, None if self.data.task else 100 * correct.item() / seen, seconds,
            None if tested is None else tested.value, dict(self.hooks.log()),
        )  # fmt: skip

    def _run_step(self, step: Step, images: torch.Tensor, labels: Any) -> tuple[torch.Tensor, torch.Tensor | int]:
        """One optimisation step; the mean loss, and how many of the images were classified rightly (0 with a task)."""
        for group in self.optimizer.param_groups:
            group["lr"] = step.learning_rate
        images, labels = images.to(self.device, memory_format=self.layout), moved(labels, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            self.hooks.before_batch(step)
            outputs = self.model(images)
        if step.index == 0 and step.epoch == 1 and self.data.task is None:
            check_labels(self.data, classes_of(outputs, len(images)))
        loss = mean_loss(outputs, labels, self.data, label_smoothing=self.settings.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.hooks.before_update(step)
        self.optimizer.step()
        return loss.detach(), 0 if self.data.task else (outputs.detach().argmax(1) == labels).sum()


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
