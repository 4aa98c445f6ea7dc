"""OpenVINO itself on the processor. It is not imported before a runner is opened."""

from __future__ import annotations

from importlib import metadata

from edgeprune.devices.this_machine import is_importable
from edgeprune.runners.base import ProfiledRunner, TargetState
from edgeprune.runners.target import OpenOptions, Source, Target, precisions_on_processor

NAME = "openvino-native"


def _state() -> TargetState:
    provider = "OpenVINO CPU"
    if not is_importable("openvino"):
        return TargetState(NAME, provider, False, "needs openvino (pip install 'edgeprune[openvino]')")
    return TargetState(NAME, provider, True, f"openvino {metadata.version('openvino')}")


def _open(source: Source, options: OpenOptions) -> ProfiledRunner:
    from edgeprune.runners.openvino.runner import OpenVinoRunner

    return OpenVinoRunner(source.model, options.run, precision=options.precision)


TARGETS = (Target(NAME, _state, _open, precisions_on_processor()),)
