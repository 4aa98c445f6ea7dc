"""Which network a verb works on, and on what data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import Parameter

from edgeprune.cli.flags.kinds import DATA, NETWORK, Integer, OptionalText, Switch, flags, parse_input_size
from edgeprune.errors import InputError

if TYPE_CHECKING:
    from edgeprune.pruning.options import DataOptions, NetworkSource

PrecisionFlag = Literal["auto", "fp32", "bf16"]


@Parameter(name="*", group=NETWORK)
@flags
class NetworkFlags:
    """Which network, with which weights."""

    arch: OptionalText = ""
    """resnet20 ... resnet110, vgg16-cifar, torchvision:NAME, timm:NAME, or path/to/file.py:factory (gives a
    torch.nn.Module; INPUT_SHAPE = (C, H, W) in the file); by default a bundle's or an ONNX file's own."""
    random_init: Switch = False
    """Random weights instead of a checkpoint: enough to measure speed."""
    input_size: OptionalText = ""
    """H,W or C,H,W of the input, where it is not the architecture's own."""
    num_classes: int | None = None
    """Classes; by default as in the checkpoint."""
    allow_partial: Switch = False
    """Accept a checkpoint that lacks some tensors."""

    def source(self, checkpoint: Path | None, seed: int) -> NetworkSource:
        from edgeprune.pruning.options import NetworkSource

        says_its_own = checkpoint is not None and (checkpoint.is_dir() or checkpoint.suffix == ".onnx")
        if not self.arch and not says_its_own:
            if checkpoint is not None and not checkpoint.exists():
                raise InputError("no such file or folder", where=checkpoint, expected="a checkpoint or a bundle")
            raise InputError("no architecture given", remedy="pass --arch; `edgeprune list archs` shows what there is")
        return NetworkSource(
            self.arch,
            checkpoint,
            self.random_init,
            parse_input_size(self.input_size),
            self.num_classes,
            self.allow_partial,
            seed,
        )


@Parameter(name="*", group=DATA)
@flags
class DataFlags:
    """Real data, for accuracy and fine-tuning."""

    data: OptionalText = ""
    """digits, imagefolder:DIR, cifar10:DIR, or path/to/file.py:factory: factory("train" or "test") gives images
    (N,C,H,W), uint8 or normalised floats, and labels (N,); or a dictionary with targets, a metric and a loss."""
    finetune_epochs: Integer = 0
    """Epochs of fine-tuning after pruning."""
    learning_rate: float = 0.01
    """Of fine-tuning, at its start."""
    batch_size: Integer = 64
    """Of fine-tuning."""
    precision: PrecisionFlag = "auto"
    """Of fine-tuning and healing; auto: bf16 where the CPU or GPU has units for it, else fp32."""
    calibration_images: Integer = 1024
    """Of the training split, without labels, for a method that chooses on images (gkp-cal), and for --heal."""
    heal: str = "auto"
    """Train the pruned network, without labels, to give what the dense one gives on the calibration images: MINUTES by
    the clock, none, or auto (minutes, the same steps each time; after gkp-cal alone, without --finetune-epochs)."""
    max_drop: float | None = None
    """Gate: fail (exit 3) if top-1 falls by more points, or the data's own metric gets worse by more."""

    def options(self, seed: int) -> DataOptions:
        from edgeprune.pruning.options import DataOptions, Heal

        return DataOptions(
            data=self.data,
            finetune_epochs=self.finetune_epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            precision=self.precision,
            max_drop=self.max_drop,
            calibration_images=self.calibration_images,
            heal=Heal.parse(self.heal),
            seed=seed,
        )
