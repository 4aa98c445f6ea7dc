"""ncnn on the processor. It is not imported before a runner is opened."""

from __future__ import annotations

from importlib import metadata

from edgeprune.devices.this_machine import is_importable
from edgeprune.runners.base import ProfiledRunner, TargetState
from edgeprune.runners.target import OpenOptions, Source, Target

NAME = "ncnn"


def _state() -> TargetState:
    provider = "ncnn CPU"
    if not is_importable("ncnn"):
        return TargetState(NAME, provider, False, "needs ncnn (pip install 'edgeprune[ncnn]')")
    return TargetState(NAME, provider, True, f"ncnn {metadata.version('ncnn')}")


def _open(source: Source, options: OpenOptions) -> ProfiledRunner:
    from edgeprune.runners.ncnn.runner import NcnnRunner

    return NcnnRunner(source.model, options.run)


TARGETS = (Target(NAME, _state, _open, tells_layers=False, as_planned=True),)
