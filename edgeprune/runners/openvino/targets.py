"""OpenVINO itself on the processor. It is not imported before a runner is opened."""

from __future__ import annotations

from edgeprune.runners.base import ProfiledRunner, TargetState
from edgeprune.runners.target import OpenOptions, Source, Target, precisions_on_processor, state_of_package

NAME = "openvino-native"


def _state() -> TargetState:
    return state_of_package(NAME, "OpenVINO CPU", "openvino", "openvino", "openvino")


def _open(source: Source, options: OpenOptions) -> ProfiledRunner:
    from edgeprune.runners.openvino.runner import OpenVinoRunner

    return OpenVinoRunner(source.model, options.run, precision=options.precision)


TARGETS = (Target(NAME, _state, _open, precisions_on_processor()),)
