"""What continues a training run bit for bit: its checkpoint after each epoch, and what has to be the same to resume."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from edgeprune.bundles.names import CHECKPOINT
from edgeprune.datasets.images import Dataset
from edgeprune.datasets.targets import leaves
from edgeprune.errors import InputError, first_line
from edgeprune.io.files import write_atomically
from edgeprune.io.progress import note
from edgeprune.training.collectives import of_first
from edgeprune.training.ranks import Ranks

LOG = "log.jsonl"
TICKETS = "tickets"
RANDOM_OF_A_RANK = ("random.cpu", "random.cuda")
"""Names of tensors that differ between the ranks of a run."""
_SCHEMA_VERSION = 1
_HASHED_IMAGES = 4096


@dataclass(frozen=True)
class EpochRecord:
    """One epoch, measured on its own training batches (as augmented, while the weights change)."""

    epoch: int
    """1 is the first."""
    learning_rate: float
    """At the epoch's last step."""
    loss: float
    """Mean cross-entropy in nats, with label smoothing if that is set; the data's own loss where it brings one."""
    accuracy: float | None
    """Per cent; None for data with a task."""
    seconds: float
    test_accuracy: float | None = None
    """Per cent, or what the metric of the test data says, after the hooks' `after_epoch`; None without test data."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What the hooks tell of the epoch."""


@dataclass(frozen=True)
class RunFiles:
    """A folder that keeps a run: its checkpoint, its log (a JSON line an epoch) and its tickets."""

    folder: Path
    resume: bool = False
    """Continue after the last epoch of the checkpoint, if there is one."""
    described: Mapping[str, Any] = field(default_factory=dict)
    """What else, beside settings, weights and images, must be the same to resume: plain values by name."""

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    @property
    def tickets(self) -> Path:
        return self.folder / TICKETS

    def ticket(self, epoch: int) -> Path:
        return self.tickets / f"epoch_{epoch}.pt"


class _Meta(msgspec.Struct, frozen=True):
    schema_version: int
    described: dict[str, Any]
    history: tuple[EpochRecord, ...]
    threads: int = 0
    """That computed the last epoch, in each process; 0 where an older version did not say."""
    processes: int = 1
    """That computed the last epoch."""


def save_run(
    files: RunFiles, tensors: Mapping[str, Tensor], described: Mapping[str, Any], history: tuple[EpochRecord, ...]
) -> None:
    """Write the checkpoint, then the log: each whole or not at all, the log always as the checkpoint has it."""
    told = _Meta(_SCHEMA_VERSION, dict(described), history, torch.get_num_threads(), Ranks.here().size)
    meta = msgspec.json.encode(told, order="sorted").decode()
    # Shared tensors (tied layers) are stored once each: safetensors refuses aliases.
    whole = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    write_atomically(files.checkpoint, safetensors.torch.save(whole, {"edgeprune": meta}))
    write_atomically(files.folder / LOG, b"".join(msgspec.json.encode(record) + b"\n" for record in history))


def load_run(files: RunFiles, described: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[EpochRecord, ...]] | None:
    """The tensors and the history of a checkpoint, which only the first rank reads; None where there is none.

    InputError if it is damaged, or as `require_same_run` says; another number of threads or processes is noted.
    """
    path = files.checkpoint
    told = of_first(lambda: msgspec.json.encode(_read_meta(path)) if path.is_file() else b"")
    if not told:
        return None
    meta = msgspec.json.decode(told, type=_Meta)
    require_same_run(path, meta.described, described)
    _note_what_differs(meta)
    return safetensors.torch.load(of_first(path.read_bytes)), meta.history


def _note_what_differs(meta: _Meta) -> None:
    threads, processes = torch.get_num_threads(), Ranks.here().size
    so_far, remedy = "", ""
    if meta.processes != processes:
        so_far = f"{meta.processes} processes so far and goes on with {processes}"
    elif meta.threads not in (0, threads):
        so_far = f"{meta.threads} threads so far and goes on with {threads}"
        remedy = f" (OMP_NUM_THREADS={meta.threads} would do that)"
    if so_far:
        note(f"the run went on {so_far}: it will not end with the same bits as in one go{remedy}")


def require_same_run(where: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """InputError that lists all that differs between what described a run at its start and what describes it now."""
    was, is_ = (flat(msgspec.json.decode(msgspec.json.encode(dict(d)))) for d in (before, now))
    differences = [
        f"{re.sub('[._]', ' ', name)}: {_shown(was.get(name))} -> {_shown(is_.get(name))}"
        for name in is_ | was
        if was.get(name) != is_.get(name)
    ]
    if differences:
        raise InputError(
            f"is of another run (was -> is): {', '.join(differences)}", where=where,
            expected="the settings, network and data that the run began with",
            remedy="resume with these, or start a new run in another folder",
        )  # fmt: skip


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_shown, value)) or "none"
    return "none" if value in (None, "") else str(value)


def read_log(path: Path) -> tuple[EpochRecord, ...]:
    """The epochs of a finished run; InputError if the file is no log."""
    try:
        return tuple(msgspec.json.decode(line, type=EpochRecord) for line in path.read_bytes().splitlines())
    except msgspec.DecodeError as error:
        raise InputError(f"is no log of a training run ({first_line(error)})", where=path) from error


def epochs_done(folder: Path) -> int:
    """Epochs of the unfinished run that the folder keeps; 0 if it keeps none."""
    path = folder / CHECKPOINT
    return len(_read_meta(path).history) if path.is_file() else 0


def _read_meta(path: Path) -> _Meta:
    try:
        with safetensors.safe_open(path, "pt") as file:
            meta = msgspec.json.decode((file.metadata() or {}).get("edgeprune", ""), type=_Meta)
    except (safetensors.SafetensorError, OSError, msgspec.DecodeError) as error:
        raise InputError(
            f"is no sound checkpoint of a training run ({first_line(error)})", where=path,
            remedy="remove it, and start the run again",
        ) from error  # fmt: skip
    if meta.schema_version != _SCHEMA_VERSION:
        raise InputError(
            f"has schema {meta.schema_version}", where=path, expected=f"schema {_SCHEMA_VERSION}",
            remedy="resume with the version of edgeprune that wrote it",
        )  # fmt: skip
    return meta


def training_tensors(model: nn.Module, optimizer: torch.optim.SGD, shuffle: torch.Generator) -> dict[str, Tensor]:
    """The weights, the momentum and the random states of a run, by name."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for parameter, state in optimizer.state.items():
        if state.get("momentum_buffer") is not None:
            tensors[f"momentum.{names[parameter]}"] = state["momentum_buffer"]
    tensors |= {"random.shuffle": shuffle.get_state(), "random.cpu": torch.get_rng_state()}
    device = next(model.parameters()).device
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def restore_training(
    tensors: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.SGD, shuffle: torch.Generator
) -> None:
    """Put back what `training_tensors` gave, into the same places and memory formats."""
    model.load_state_dict(under("model.", tensors))
    parameters = dict(model.named_parameters())
    for name, value in under("momentum.", tensors).items():
        # empty_like keeps the parameter's memory format.
        optimizer.state[parameters[name]]["momentum_buffer"] = torch.empty_like(parameters[name].data).copy_(value)
    shuffle.set_state(tensors["random.shuffle"])
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], next(model.parameters()).device)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def weights_fingerprint(model: nn.Module) -> str:
    """A hash of all tensors of a model, with their names and shapes."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(_bytes(value.detach().cpu()))
    return digest.hexdigest()[:16]


def data_fingerprint(data: Dataset) -> str:
    """The data's name and size, and a hash of its labels, its normalisation and of some thousand of its images."""
    digest = hashlib.sha256(f"{data.mean} {data.std} {data.may_flip} {tuple(data.images.shape)}".encode())
    for target in leaves(data.labels):  # of objects that are not known, what they are must do
        array = torch.as_tensor(target) if isinstance(target, np.ndarray) else target
        known = isinstance(target, (str, int, float))
        digest.update(_bytes(array) if isinstance(array, Tensor) else repr(target if known else type(target)).encode())
    digest.update(_bytes(data.images[:: max(len(data) // _HASHED_IMAGES, 1)]))
    return f"{data.name}, {len(data)} images, {digest.hexdigest()[:16]}"


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
