"""What is asked of `prune` and `export`: which network, how to prune it, and on what data.

Importing this module does not import torch, so that what cannot work is told at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgeprune.datasets.names import check_source
from edgeprune.errors import InputError
from edgeprune.methods import WITHOUT_IMAGES, one_shot, parse_settings
from edgeprune.methods.base import PruneRequest
from edgeprune.training.settings import TrainSettings
from edgeprune.zoo import check_arch

CALIBRATION_IMAGES = 1024
"""That a method looks at which refits layers, where nothing else is said."""


@dataclass(frozen=True)
class Heal:
    """Whether a network is distilled after a one-shot method, and how long."""

    minutes: float | None = None
    """By the clock, after any method; None: steps that follow from the network's size, where the method looks at images
    and no labels are trained on."""
    wanted: bool = True

    @staticmethod
    def parse(value: str | float) -> Heal:
        """From auto, none or minutes; InputError for anything else."""
        if value in ("auto", "none"):
            return Heal(wanted=value == "auto")
        try:
            minutes = float(value)
        except (TypeError, ValueError):
            minutes = math.nan
        if not (math.isfinite(minutes) and minutes > 0):
            raise InputError(f"--heal {value} is out of range", expected="auto, none, or minutes, such as --heal 10")
        return Heal(minutes)

    def applies(self, *, looks_at_images: bool, finetunes: bool) -> bool:
        """Whether it is done after a method that looks at images, or does not, and before fine-tuning, or not."""
        return self.wanted and (self.minutes is not None or (looks_at_images and not finetunes))


@dataclass(frozen=True)
class NetworkSource:
    """Which network, with which weights."""

    arch: str
    """A built-in name, torchvision:NAME, timm:NAME, or path/to/file.py:factory; empty for a bundle's or an ONNX file's
    own."""
    checkpoint: Path | None = None
    """A checkpoint file, a bundle that `edgeprune train` wrote, or an ONNX file."""
    random_init: bool = False
    """Random weights instead of a checkpoint's: for measuring speed."""
    input_size: tuple[int, ...] = ()
    """(H, W) or (C, H, W) where the architecture's own is not wanted."""
    num_classes: int | None = None
    """None: as in the checkpoint, or the architecture's own."""
    allow_partial: bool = False
    """Accept a checkpoint that lacks some of the network's tensors."""
    seed: int = 0

    @property
    def is_onnx(self) -> bool:
        """Whether the network is in an ONNX file, weights and architecture alike."""
        return self.checkpoint is not None and self.checkpoint.suffix == ".onnx" and not self.checkpoint.is_dir()

    def check(self) -> None:
        """InputError if it is incomplete, or there is no such architecture; called before any long work."""
        if self.checkpoint is None and not self.random_init:
            raise InputError("no checkpoint given", remedy="name a checkpoint file, or pass --random-init")
        if self.checkpoint is not None and self.random_init:
            raise InputError(
                "both a checkpoint and --random-init were given", where=self.checkpoint, remedy="leave one of them out"
            )
        if self.is_onnx and (self.arch or self.num_classes is not None or self.allow_partial):
            given = "--arch" if self.arch else "--num-classes" if self.num_classes is not None else "--allow-partial"
            raise InputError(
                f"is an ONNX file, which says its own architecture: {given} has no place",
                where=self.checkpoint,
                remedy=f"leave {given} out",
            )
        if self.arch:
            check_arch(self.arch, self.num_classes)


@dataclass(frozen=True)
class PruneOptions:
    """How to prune."""

    method: str = WITHOUT_IMAGES
    request: PruneRequest = field(default_factory=PruneRequest)
    assignments: tuple[str, ...] = ()
    """The method's own settings, each NAME=VALUE."""
    tickets: Path | None = None
    """Folder of checkpoints of earlier epochs."""
    device_profile: str = ""
    """Device type that the network is for; empty: this machine's."""
    reconstruct: bool = False
    """Fit what the method left to what the dense layers gave, on images, whatever the method."""

    is_default: bool = False
    """Nothing of it was asked for."""

    @property
    def asks_for_pruning(self) -> bool:
        """Whether any of it was asked for, rather than left as it is by default."""
        if self.is_default:
            return False
        by_default = PruneOptions(request=PruneRequest(seed=self.request.seed), device_profile=self.device_profile)
        return self != by_default

    def check(self) -> None:
        """InputError for what makes no sense for any network; called before any long work."""
        self.request.check()
        one_shot(self.method)
        parse_settings(self.method, self.assignments)
        if self.tickets is not None and not self.tickets.is_dir():
            raise InputError(
                "no such folder", where=self.tickets, expected="a folder of checkpoints from the same training run"
            )


@dataclass(frozen=True)
class DataOptions:
    """Real data: to measure accuracy, and to fine-tune."""

    data: str = ""
    """digits, imagefolder:DIR, cifar10:DIR or path/to/file.py:factory; empty for none."""
    finetune_epochs: int = 0
    learning_rate: float = 0.01
    batch_size: int = 64
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of fine-tuning and healing."""
    max_drop: float | None = None
    """Points of top-1, or of the data's own metric, that the pruned network may lose; more is a GateError."""
    calibration_images: int = CALIBRATION_IMAGES
    """That a method which refits layers, and healing, may look at: the first of the training split in the seed's
    order."""
    heal: Heal = Heal()
    seed: int = 0

    def check(self) -> None:
        """InputError for values that make no sense, or if something needs data and there is none."""
        if self.calibration_images < 1:
            raise InputError(f"--calibration-images {self.calibration_images} is out of range", expected="1 or more")
        needing = {
            "--finetune-epochs": self.finetune_epochs > 0,
            "--heal": self.heal.minutes is not None,
            "--max-drop": self.max_drop is not None,
        }
        if not self.data and (what := next((flag for flag, is_given in needing.items() if is_given), "")):
            raise InputError(f"{what} needs images", remedy="pass --data, such as --data imagefolder:DIR")
        if self.finetune_epochs < 0:
            raise InputError(f"--finetune-epochs {self.finetune_epochs} is negative", expected="0 or more")
        if self.max_drop is not None and not math.isfinite(self.max_drop):  # a gate that would always pass, or never
            raise InputError(f"--max-drop {self.max_drop} is out of range", expected="points of top-1, such as 1.0")
        if self.finetune_epochs:
            self.training(self.finetune_epochs).check()
        if self.data:
            check_source(self.data)

    def training(self, epochs: int) -> TrainSettings:
        """How to fine-tune for so many epochs."""
        return TrainSettings(
            epochs=epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            precision=self.precision,
            seed=self.seed,
        )
