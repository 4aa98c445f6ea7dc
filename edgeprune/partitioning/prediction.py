"""What is predicted of a partition, as data: an estimate, never a measurement."""

from __future__ import annotations

from typing import Literal

import msgspec

LEAST_GAIN = 1.05
"""Of a division over the best single device: less is within what estimates are worth."""


class TimelineSpan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that takes time, predicted or measured."""

    kind: Literal["compute", "transfer"]
    device: str
    """That computes, or sends."""
    to: str
    """That receives; `device` where it computes."""
    stage: int
    start_ms: float
    end_ms: float
    tensor: str = ""


class Throughput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the devices are predicted to compute many frames fastest."""

    mode: Literal["whole_frames", "pipeline"]
    """`whole_frames`: each device computes frames alone, with the whole model; `pipeline`: all compute their parts of
    each frame, several frames being under way."""
    frames_per_s: float
    devices: tuple[str, ...]
    """That take part."""
    whole_frames_per_s: float | None = None
    """None where no device has the memory for the whole model."""
    pipeline_frames_per_s: float | None = None


class Predicted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An estimate, never a measurement."""

    latency_ms: float
    speedup: float
    """Over the best single device: what that takes / `latency_ms`."""
    bytes_per_inference: int
    """All transfers together, batch 1."""
    basis: str
    """What the estimate rests on."""
    single_device_ms: float | None = None
    """The same network on the best device alone, inputs and outputs moved; None where it fits the memory of none."""
    best_device: str = ""
    """That one."""
    critical_path: tuple[TimelineSpan, ...] = ()
    """Each is what the next one waits for; the last ends the inference."""
    timeline: tuple[TimelineSpan, ...] = ()
    """Everything, by its start."""
    throughput: Throughput | None = None
    """Where the split is for throughput."""

    @property
    def pays(self) -> bool:
        """Whether it is worth its while to divide the network so, rather than to use the best single device."""
        return self.single_device_ms is None or self.speedup >= LEAST_GAIN
