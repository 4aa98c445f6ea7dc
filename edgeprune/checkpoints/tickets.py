"""Tickets: checkpoints of earlier epochs of the same training run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from edgeprune.checkpoints.arch_fit import fitting_arch
from edgeprune.checkpoints.checkpoint import few, read_state_dict
from edgeprune.checkpoints.checkpoint_file import SUFFIXES, is_checkpoint_name
from edgeprune.checkpoints.key_layout import fitted
from edgeprune.checkpoints.state import unwrapped_name
from edgeprune.errors import InputError
from edgeprune.io.progress import note


class TicketFile(NamedTuple):
    """Weights saved at an earlier epoch of a training run."""

    epoch: int
    path: Path
    tensors: dict[str, Tensor]


def read_tickets(folder: Path, expect: Mapping[str, tuple[int, ...]]) -> list[TicketFile]:
    """The tickets in a folder, earliest first, each with the tensors that `expect` (name -> shape) asks for.

    The epoch is the file's `epoch` entry, else the number in its name (epoch_35.pt). Files that are no checkpoints by
    their name are ignored, and so is a second file with the same epoch and weights (such as best.pt). Raises InputError
    if there are no tickets, one is of another network, has no epoch, or two differ and claim the same epoch.
    """
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "no such folder"
        raise InputError(kind, where=folder, expected="a folder of checkpoints from the same training run")
    files = sorted(path for path in folder.iterdir() if path.is_file() and is_checkpoint_name(path))
    if not files:
        raise InputError(
            "holds no tickets", where=folder, expected=f"checkpoints named *{', *'.join(sorted(SUFFIXES))}"
        )
    tickets: dict[int, TicketFile] = {}
    for path in files:
        ticket = _read_ticket(path, expect)
        other = tickets.setdefault(ticket.epoch, ticket)
        if other is not ticket:
            if any(not torch.equal(other.tensors[key], ticket.tensors[key]) for key in expect):
                raise InputError(
                    f"{other.path.name} and {path.name} are both of epoch {ticket.epoch}, and differ",
                    where=folder,
                    remedy="keep one of them, or rename them to epoch_N.pt",
                )
            note(f"{path}: the same weights as {other.path.name}, left out")
    return [tickets[epoch] for epoch in sorted(tickets)]


def _read_ticket(path: Path, expect: Mapping[str, tuple[int, ...]]) -> TicketFile:
    read = read_state_dict(path)
    state = fitted(read, {unwrapped_name(key): tuple(shape) for key, shape in expect.items()}, where=path)
    changed = [line for line in state.renamed if line not in read.renamed]
    if changed:
        note(f"{path}: {'; '.join(changed)}")
    tensors = {}
    for key, shape in expect.items():
        value = state.tensors.get(unwrapped_name(key))
        if value is None or tuple(value.shape) != tuple(shape):
            got = "it has no such tensor" if value is None else f"its {key} has shape {tuple(value.shape)}"
            arch = fitting_arch({k: tuple(v.shape) for k, v in state.tensors.items()})
            raise InputError(
                f"this ticket is of another network: {got}",
                where=path,
                expected=f"{key} of shape {tuple(shape)}",
                remedy=f"it fits {arch}" if arch else "remove it from the folder",
            )
        tensors[key] = value
    known = {unwrapped_name(key) for key in expect}
    extra = [key for key, value in state.tensors.items() if value.dim() > 2 and key not in known]
    if extra:
        arch = fitting_arch({k: tuple(v.shape) for k, v in state.tensors.items()})
        raise InputError(
            f"this ticket is of another network: it also has layers{few(extra)}",
            where=path,
            expected=f"the {len(known)} layers of the network that is pruned",
            remedy=f"it fits {arch}" if arch else "remove it from the folder",
        )
    epoch = state.epoch if state.epoch is not None else _epoch_in_name(path)
    if epoch is None:
        raise InputError("has no epoch", where=path, expected="an entry 'epoch', or a name such as epoch_35.pt")
    return TicketFile(epoch, path, tensors)


def _epoch_in_name(path: Path) -> int | None:
    """35 of epoch_35.pt, ep35.pth, net-epoch=35.ckpt or ticket_35.pt; digits inside a word (a hash) do not count."""
    named = re.search(r"ep(?:och)?[-_=. ]?(\d+)", path.name, re.IGNORECASE)
    alone = re.findall(r"(?<![A-Za-z0-9])(\d+)(?![A-Za-z0-9])", path.name)
    return int(named[1]) if named else int(alone[-1]) if alone else None
