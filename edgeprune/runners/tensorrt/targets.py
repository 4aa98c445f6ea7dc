"""TensorRT itself. It is not imported before its state is asked for."""

from __future__ import annotations

from edgeprune.precision.formats import PRECISIONS
from edgeprune.runners.base import ProfiledRunner, TargetState
from edgeprune.runners.target import OpenOptions, Source, Target


def _state() -> TargetState:
    from edgeprune.runners.tensorrt import runner

    return runner.state()


def _open(source: Source, options: OpenOptions) -> ProfiledRunner:
    from edgeprune.runners.tensorrt import runner

    return runner.open_runner(source.model, options.run, precision=options.precision, engines=options.engines)


TARGETS = (Target("tensorrt-native", _state, _open, PRECISIONS, halves_itself=True, symmetric=True),)
