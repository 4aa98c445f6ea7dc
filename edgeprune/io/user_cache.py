"""Where edgeprune keeps on a user's machine what it need not find out again."""

from __future__ import annotations

import os
from pathlib import Path

from edgeprune.errors import InputError


def cache_folder() -> Path:
    """edgeprune's part of the user's cache folder, as the XDG base directory specification has it. InputError for a
    user without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise InputError("no home folder to keep caches in", remedy="set XDG_CACHE_HOME to an absolute path") from error
    return folder / "edgeprune"
