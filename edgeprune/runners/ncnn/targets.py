"""ncnn on the processor. It is not imported before a runner is opened."""

from __future__ import annotations

from edgeprune.runners.base import ProfiledRunner, TargetState
from edgeprune.runners.target import OpenOptions, Source, Target, state_of_package

NAME = "ncnn"


def _state() -> TargetState:
    return state_of_package(NAME, "ncnn CPU", "ncnn", "ncnn", "ncnn")


def _open(source: Source, options: OpenOptions) -> ProfiledRunner:
    from edgeprune.runners.ncnn.runner import NcnnRunner

    return NcnnRunner(source.model, options.run)


TARGETS = (Target(NAME, _state, _open, tells_layers=False, as_planned=True),)
