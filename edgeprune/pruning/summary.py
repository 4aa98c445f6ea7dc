"""`prune --json`."""

from __future__ import annotations

import msgspec

from edgeprune.bundles.manifest import Accuracy, Count, Healing


class LayerSummary(msgspec.Struct, frozen=True, omit_defaults=True):
    """One layer of `prune --json`; `kept` is the input channels that each group reads, 0 for a dense layer."""

    name: str
    groups: int
    kept: int
    seconds: float
    note: str
    filters: int
    """That are left."""
    recovery_ratio: float | None = None
    """Share of the layer's importance that its kept kernels hold; absent where the method defines none."""


class PruneSummary(msgspec.Struct, frozen=True):
    """`prune --json`."""

    macs: Count
    params: Count
    plan_sha256: str
    seconds: float
    peak_rss_mb: float
    layers: tuple[LayerSummary, ...]
    accuracy: Accuracy | None = None
    calibration_images: int = 0
    healing: Healing | None = None
