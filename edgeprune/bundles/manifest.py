"""`manifest.json`: what a bundle is and holds, and how it was made. Data only."""

from __future__ import annotations

from typing import Any

import msgspec

SCHEMA_VERSION = 1


class Count(msgspec.Struct, frozen=True):
    """A figure of the dense and of the pruned network."""

    dense: int
    pruned: int


class ParityRecord(msgspec.Struct, frozen=True):
    """How far the exported model's outputs are from the masked dense model's."""

    max_abs: float
    max_rel: float
    """max_abs over the largest absolute value of the reference output."""
    tolerance: float
    """On max_rel."""
    passed: bool
    inputs: tuple[str, ...] = ()


class GatherCount(msgspec.Struct, frozen=True):
    """Gathers that the network needs when each layer permutes for itself, and those left in the exported model."""

    before_fold: int
    after_fold: int


class Score(msgspec.Struct, frozen=True):
    """A number of the dense and of the pruned network."""

    dense: float
    pruned: float


class Accuracy(msgspec.Struct, frozen=True):
    """Top-1 in per cent, where test data was given; what a metric says, where the data brought one."""

    dense: float
    pruned: float
    pruned_before_finetune: float | None = None
    n: int = 0
    data: str = ""
    full_shape: float | None = None
    """Of the network that a method pruned during training: after its last epoch, before what the method zeroed or
    merged was cut out."""
    metric: str = ""
    """Name of the user's metric; empty for top-1."""
    higher_is_better: bool = True
    metrics: dict[str, Score] = {}
    """All that the user's metric says, by name; dense and pruned above are those of `metric`."""

    @property
    def label(self) -> str:
        return self.metric or "Top-1"

    @property
    def others(self) -> list[tuple[str, Score]]:
        """What the user's metric says beside `metric`."""
        return [(name, score) for name, score in self.metrics.items() if name != self.metric]

    def drop(self) -> float:
        """By how much the pruned network is worse: points of top-1, or in the metric's unit."""
        return self.dense - self.pruned if self.higher_is_better else self.pruned - self.dense


class Healing(msgspec.Struct, frozen=True):
    """What distillation after pruning did, on images without labels."""

    steps: int
    minutes: float
    loss_before: float
    """Mean squared error of the outputs over the mean square of the dense network's, on images that were held back."""
    loss_after: float
    kept: bool
    """Whether the loss fell; if not, the network is as the method left it."""

    @property
    def words(self) -> str:
        what = f"{self.steps} steps of distillation in {self.minutes:g} min"
        if not self.kept:
            return (
                f"not healed: {what} did not take the outputs' error below {self.loss_before:.4f} on images held back"
            )
        change = f"from {self.loss_before:.4f} to {self.loss_after:.4f}"
        return f"healed: {what} took the outputs' error on images held back {change}"


class Manifest(msgspec.Struct, frozen=True):
    """`manifest.json`: what the bundle is and holds."""

    schema_version: int
    edgeprune_version: str
    arch: str = ""
    method: str = ""
    settings: dict[str, Any] = {}
    seed: int = 0
    files: dict[str, str] = {}
    """Path inside the bundle -> SHA-256."""
    input_shape: tuple[int, ...] = ()
    """Of one sample, without the batch."""
    num_classes: int = 0
    macs: Count | None = None
    params: Count | None = None
    parity: ParityRecord | None = None
    gathers: GatherCount | None = None
    accuracy: Accuracy | None = None
    calibration_images: int = 0
    """That the method, or healing, looked at, without labels."""
    healing: Healing | None = None
    opset: int = 0
    training: dict[str, Any] = {}
    """How `edgeprune train` trained it."""
    environment: dict[str, str] = {}
    notes: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether it is a trained network that is not pruned."""
        return bool(self.training) and not self.method
