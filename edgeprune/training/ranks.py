"""Which of the processes that train together this one is: the one place that reads what torchrun says in the
environment. Without torchrun a process is alone, and nothing is different.

All ranks load, decide and train the same; `piece` is what each computes of a batch. The first alone writes and speaks.
Importing this module does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from edgeprune.errors import InputError

NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SMALLEST_PIECE = 2
"""Images: BatchNorm cannot be trained on one."""


@dataclass(frozen=True)
class Ranks:
    """One process among those of a run."""

    rank: int = 0
    """Its number; 0 is the first."""
    size: int = 1
    """How many there are."""
    local_rank: int = 0
    """Its number on its machine, and that of its GPU."""
    local_size: int = 1
    """How many there are on its machine."""

    @staticmethod
    def here(environment: Mapping[str, str] = os.environ) -> Ranks:
        """This process; InputError if the environment speaks of several and does not say all that torchrun says."""
        if environment.get("WORLD_SIZE", "1") == "1":
            return Ranks()
        missing = [name for name in NEEDED if not environment.get(name)]
        numbers = [environment.get(name, "") for name in NEEDED[:4]]
        remedy = "start with torchrun, or unset WORLD_SIZE to train in one process"
        if missing:
            raise InputError(
                f"WORLD_SIZE={environment['WORLD_SIZE']} is set, but not {', '.join(missing)}",
                where="environment", expected="all variables that torchrun sets", remedy=remedy,
            )  # fmt: skip
        if not all(text.isascii() and text.isdigit() for text in numbers):
            rank = size = local_rank = local_size = 0
        else:
            rank, size, local_rank, local_size = map(int, numbers)
        if not (rank < size and local_rank < local_size <= size):
            said = " ".join(f"{name}={text}" for name, text in zip(NEEDED, numbers, strict=False))
            raise InputError(
                f"{said} makes no sense", where="environment",
                expected="RANK below WORLD_SIZE, LOCAL_RANK below LOCAL_WORLD_SIZE, all integers", remedy=remedy,
            )  # fmt: skip
        return Ranks(rank, size, local_rank, local_size)

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    @property
    def in_words(self) -> str:
        """For a sentence about what is done; empty where it is alone."""
        return "" if self.is_alone else f" on {self.size} processes"

    @property
    def on_one_machine(self) -> bool:
        return self.local_size == self.size

    def check_batch_size(self, batch_size: int) -> None:
        """InputError if a batch of so many images has no piece for every rank."""
        least = SMALLEST_PIECE * self.size
        if not self.is_alone and batch_size < least:
            raise InputError(
                f"batch size {batch_size} for {self.size} processes", where="training",
                expected=f"{least} or more: BatchNorm needs {SMALLEST_PIECE} images in each process",
                remedy=f"pass --batch-size {least}, or start fewer processes",
            )  # fmt: skip

    def check_alone(self, what: str) -> None:
        """InputError if there are others."""
        if not self.is_alone:
            raise InputError(
                f"{what} runs in one process, and torchrun started {self.size}", remedy="start it without torchrun"
            )

    def piece(self, count: int) -> slice:
        """This rank's images of a batch of `count`. The pieces of all ranks are the batch, and as even as can be; where
        it is too small for every rank to get SMALLEST_PIECE, the last ranks get none."""
        sharing = max(min(self.size, count // SMALLEST_PIECE), 1)
        first, last = (min(number, sharing) * count // sharing for number in (self.rank, self.rank + 1))
        return slice(first, last)
