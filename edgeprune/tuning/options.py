"""What `tune` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import InputError
from edgeprune.profiling.tuned_for import RUNTIMES
from edgeprune.runners.base import RunOptions
from edgeprune.runners.registry import require, target_named


def require_tunable(target: str) -> None:
    """InputError if the target is unknown, not one of `RUNTIMES`, or cannot be used on this machine."""
    if target_named(target).name not in RUNTIMES:
        raise InputError(
            f"target {target} is not one that forms can be tuned for",
            expected=f"one of {', '.join(RUNTIMES)}",
            remedy=f"export with --as-planned, and measure with `edgeprune profile DIR --target {target}`",
        )
    require(target)


@dataclass(frozen=True)
class TuneOptions:
    """How to tune."""

    threads: int = 1
    batch_size: int = 1
    target: str = "cpu"
    cache: Path | None = None
    """None: measure everything, and keep nothing."""
    seed: int = 0

    def check(self) -> None:
        """InputError for values that make no sense, or a target that cannot be used here."""
        self.run_options().check()
        require_tunable(self.target)
        if self.batch_size < 1:
            raise InputError(f"--batch-size {self.batch_size} is out of range", expected="1 or more")

    @property
    def in_place(self) -> bool:
        """Whether the runtime tells the times of single nodes, so that layers are timed in their places."""
        return target_named(self.target).tells_layers

    def run_options(self) -> RunOptions:
        return RunOptions(threads=self.threads, spinning=False)
