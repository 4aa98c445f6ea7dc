"""Pinning the calling thread to cores, and the threads that a runtime starts meanwhile, which inherit it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from edgeprune.errors import InputError


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Let the calling thread run on these cores only, and give it its former ones back afterwards."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    if before == set(cores):  # already so, by an outer block
        yield
        return
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def check_cores(cores: Sequence[int]) -> None:
    """InputError if this process cannot be pinned to these cores."""
    if not cores:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("this system cannot pin threads to cores", expected="Linux", remedy="leave the pinning out")
    usable = os.sched_getaffinity(0)
    if not set(cores) <= usable:
        raise InputError(
            f"cannot pin to cores {sorted(set(cores) - usable)}", expected=f"cores out of {sorted(usable)}"
        )
