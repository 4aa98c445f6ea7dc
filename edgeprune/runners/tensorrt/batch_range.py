"""The batch sizes that an engine with dynamic shapes is built for."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.errors import InputError


@dataclass(frozen=True)
class BatchRange:
    """From `least` to `most`; the engine is tuned for `best`."""

    least: int
    best: int
    most: int

    @staticmethod
    def only(size: int) -> BatchRange:
        return BatchRange(size, size, size)

    def __contains__(self, size: int) -> bool:
        return self.least <= size <= self.most

    def __str__(self) -> str:
        return str(self.best) if self.least == self.most else f"{self.least} to {self.most}, best at {self.best}"

    def check(self) -> None:
        """InputError unless 1 <= least <= best <= most."""
        if not 1 <= self.least <= self.best <= self.most:
            raise InputError(
                f"batch sizes from {self.least} to {self.most}, best at {self.best}",
                expected="1 <= least <= best <= most",
            )
