"""Where a verb writes its bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeprune.bundles.writing import check_out
from edgeprune.training.ranks import Ranks


@dataclass(frozen=True)
class Output:
    """Where a verb writes its bundle."""

    folder: Path
    overwrite: bool = False

    def check(self) -> None:
        """InputError if nothing can be written there; called before any long work."""
        check_out(self.folder, overwrite=self.overwrite)

    def check_by_first(self) -> None:
        """The same for verbs that train: of several ranks the first alone looks, as it alone writes."""
        if Ranks.here().is_first:
            self.check()
