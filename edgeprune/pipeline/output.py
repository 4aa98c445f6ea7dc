"""Where a verb writes its bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeprune.bundles.writing import check_out


@dataclass(frozen=True)
class Output:
    """Where a verb writes its bundle."""

    folder: Path
    overwrite: bool = False

    def check(self) -> None:
        """InputError if nothing can be written there; called before any long work."""
        check_out(self.folder, overwrite=self.overwrite)
