"""LiteRT on the processor. It is not imported before a runner is opened."""

from __future__ import annotations

from importlib import metadata

from edgeprune.devices.this_machine import is_importable
from edgeprune.runners.base import ProfiledRunner, TargetState
from edgeprune.runners.target import OpenOptions, Source, Target

NAME = "litert"


def _state() -> TargetState:
    provider = "LiteRT XNNPACK"
    if not is_importable("ai_edge_litert"):
        return TargetState(NAME, provider, False, "needs ai-edge-litert (pip install 'edgeprune[litert]')")
    return TargetState(NAME, provider, True, f"ai-edge-litert {metadata.version('ai-edge-litert')}")


def _open(source: Source, options: OpenOptions) -> ProfiledRunner:
    from edgeprune.runners.litert.runner import LiteRtRunner

    return LiteRtRunner(source.model, options.run)


TARGETS = (Target(NAME, _state, _open, ("fp32", "int8"), tells_layers=False, as_planned=True, int8_format="tflite"),)
