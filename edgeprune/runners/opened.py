"""What the runners of all runtimes have in common: options that were checked, and a block that ends in `close`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from edgeprune.runners.base import RunOptions
from edgeprune.runners.cores import check_cores


class OpenedRunner(ABC):
    """A model that is loaded. Use as a context manager, or call `close`."""

    def __init__(self, options: RunOptions | None) -> None:
        """InputError if the options make no sense, or not on this machine."""
        self.options = options or RunOptions()
        self.options.check()
        check_cores(self.options.pin)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Free the model; a second call does nothing."""
