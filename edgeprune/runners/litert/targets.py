"""LiteRT on the processor. It is not imported before a runner is opened."""

from __future__ import annotations

from edgeprune.runners.base import ProfiledRunner, TargetState
from edgeprune.runners.target import OpenOptions, Source, Target, state_of_package

NAME = "litert"


def _state() -> TargetState:
    return state_of_package(NAME, "LiteRT XNNPACK", "ai_edge_litert", "ai-edge-litert", "litert")


def _open(source: Source, options: OpenOptions) -> ProfiledRunner:
    from edgeprune.runners.litert.runner import LiteRtRunner

    return LiteRtRunner(source.model, options.run)


TARGETS = (Target(NAME, _state, _open, ("fp32", "int8"), tells_layers=False, as_planned=True, int8_format="tflite"),)
