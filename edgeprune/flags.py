"""The flags of the command line, grouped as the help shows them; each group gives the pipeline's own options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter, Token

from edgeprune.errors import InputError

if TYPE_CHECKING:
    from edgeprune.exporting import DeployOptions
    from edgeprune.methods.base import PruneRequest
    from edgeprune.network import NetworkSource
    from edgeprune.pipeline import Output, SplitOptions
    from edgeprune.pruned import DataOptions, PruneOptions

NETWORK = Group("Network", sort_key=1)
PRUNING = Group("Pruning", sort_key=2)
DATA = Group("Data", sort_key=3)
EXPORT = Group("Export", sort_key=4)
MEASURING = Group("Measuring", sort_key=4)
COMMON = Group("Common", sort_key=9)


def _integer(kind: type, tokens: Sequence[Token]) -> int:
    """An integer, where the parser's own conversion would cut 4.5 down to 4."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no integer") from None


Integer = Annotated[int, Parameter(converter=_integer)]
OptionalInteger = Annotated[int | None, Parameter(converter=_integer, show_default=False)]
OptionalNumber = Annotated[float | None, Parameter(show_default=False)]
Switch = Annotated[bool, Parameter(negative="", show_default=False)]
OptionalText = Annotated[str, Parameter(show_default=False)]
OptionalPath = Annotated[Path | None, Parameter(show_default=False)]
Texts = Annotated[tuple[str, ...], Parameter(negative_iterable="", show_default=False)]
"""Flags whose default (off, empty) tells nothing, so that the help leaves it out."""


@Parameter(name="*", group=COMMON)
@dataclass(frozen=True)
class Common:
    """What every verb takes."""

    json: OptionalPath = None
    """Write the result as JSON to this file, too."""
    config: OptionalPath = None
    """TOML file with values for flags (`groups = 4`); flags on the command line win."""
    quiet: Switch = False
    """No progress bars and notes."""


@Parameter(name="*", group=COMMON)
@dataclass(frozen=True)
class Seeded(Common):
    """What every verb with chance in it takes."""

    seed: Integer = 0
    """Same seed and input, same plan and ONNX bytes."""


@Parameter(name="*", group=COMMON)
@dataclass(frozen=True)
class OutFlags:
    """Where the bundle goes."""

    out: Annotated[Path, Parameter(alias="-o")]
    """Folder of the bundle: new or empty."""
    overwrite: Switch = False
    """Replace the bundle that is there."""

    def output(self) -> Output:
        from edgeprune.pipeline import Output

        return Output(self.out, self.overwrite)


@Parameter(name="*", group=NETWORK)
@dataclass(frozen=True)
class NetworkFlags:
    """Which network, with which weights."""

    arch: OptionalText = ""
    """resnet20 ... resnet110, vgg16-cifar, torchvision:NAME, timm:NAME, or path/to/file.py:factory."""
    random_init: Switch = False
    """Random weights instead of a checkpoint: enough to measure speed."""
    input_size: OptionalText = ""
    """H,W or C,H,W of the input, where it is not the architecture's own."""
    num_classes: int | None = None
    """Classes; by default as in the checkpoint."""
    allow_partial: Switch = False
    """Accept a checkpoint that lacks some tensors."""

    def source(self, checkpoint: Path | None, seed: int) -> NetworkSource:
        from edgeprune.network import NetworkSource, parse_input_size

        if not self.arch:
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


@Parameter(name="*", group=PRUNING)
@dataclass(frozen=True)
class MethodFlags:
    """What any method is told, whether it works in training or not."""

    rate: OptionalNumber = None
    """Share to remove: of every group's grouped kernels, or of the filters; by default the method's own."""
    layer_rate: Texts = ()
    """LAYER=RATE, a layer's own rate (its name or a pattern such as 'layer4.*'); repeatable."""
    budget: OptionalText = ""
    """What may be left, as shares of the dense network: macs=0.5,params=0.6."""
    set: Texts = ()
    """NAME=VALUE, a setting of the method; repeatable."""
    include_first: Switch = False
    """Prune the first convolution, too."""
    include_shortcuts: Switch = False
    """Prune 1x1 shortcuts, too."""
    skip: Texts = ()
    """Layer that stays dense, or a pattern such as 'layer4.*'; repeatable."""

    def request(self, method: str, seed: int, groups: int | None = None, share_partitions: bool = True) -> PruneRequest:
        """What is asked of a method; InputError for what it does not take, and for what cannot be read."""
        from edgeprune.methods import amounts
        from edgeprune.methods.base import Budget, PruneRequest

        layer_rates = tuple(_layer_rate(text) for text in self.layer_rate)
        own_groups, rate = amounts(method, groups, self.rate, self.layer_rate)
        return PruneRequest(
            own_groups,
            rate,
            seed,
            share_partitions,
            self.include_first,
            self.include_shortcuts,
            self.skip,
            Budget.parse(self.budget),
            layer_rates,
        )


def _layer_rate(text: str) -> tuple[str, float]:
    name, _, rate = text.rpartition("=")
    try:
        return name.strip(), float(rate)
    except ValueError:
        raise InputError(f"--layer-rate {text!r} has no rate", expected="LAYER=RATE, such as 'layer4.*=0.3'") from None


@Parameter(name="*", group=PRUNING)
@dataclass(frozen=True)
class PruneFlags(MethodFlags):
    """What to prune, and how."""

    method: str = "tmi-gkp"
    """Pruning method; `edgeprune list methods` shows all with their settings."""
    groups: OptionalInteger = None
    """Groups of each pruned convolution; by default the method's own."""
    tickets: OptionalPath = None
    """Folder with checkpoints of earlier epochs of the same training run."""
    share_partitions: bool = True
    """Layers of a residual stream share their filter clusters, which saves Gathers."""

    def options(self, seed: int) -> PruneOptions:
        from edgeprune.pruned import PruneOptions

        if self.groups is not None and self.budget:
            raise InputError("both --groups and --budget say how much to prune", remedy="leave one of them out")
        request = self.request(self.method, seed, self.groups, self.share_partitions)
        return PruneOptions(self.method, request, self.set, self.tickets)


@Parameter(name="*", group=DATA)
@dataclass(frozen=True)
class DataFlags:
    """Real data, for accuracy and fine-tuning."""

    data: OptionalText = ""
    """digits, imagefolder:DIR, cifar10:DIR, or path/to/file.py:factory."""
    finetune_epochs: Integer = 0
    """Epochs of fine-tuning after pruning."""
    learning_rate: float = 0.01
    """Of fine-tuning, at its start."""
    batch_size: Integer = 64
    """Of fine-tuning."""
    max_drop: float | None = None
    """Gate: fail (exit 3) if top-1 falls by more points."""

    def options(self, seed: int) -> DataOptions:
        from edgeprune.pruned import DataOptions

        return DataOptions(self.data, self.finetune_epochs, self.learning_rate, self.batch_size, self.max_drop, seed)


@Parameter(name="*", group=EXPORT)
@dataclass(frozen=True)
class ExportFlags:
    """How to write and check the ONNX files."""

    opset: Integer = 20
    """ONNX opset, 18 or later."""
    static_batch: Switch = False
    """Fix the batch at 2 instead of leaving it dynamic."""
    parity_inputs: OptionalPath = None
    """.npy with real inputs (N,C,H,W) for the parity gate."""
    tolerance: float = 1e-4
    """Of the parity gate: difference over the output's range."""
    devices: OptionalText = ""
    """Split the groups over N devices, or those in a TOML file."""
    device_profile: OptionalText = ""
    """Device type that the split's prediction is for; `edgeprune list devices` shows all."""

    def options(self, seed: int) -> DeployOptions:
        from edgeprune.exporters.to_onnx import ExportOptions
        from edgeprune.exporting import DeployOptions

        onnx = ExportOptions(opset=self.opset, dynamic_batch=not self.static_batch)
        return DeployOptions(onnx, self.tolerance, self.parity_inputs, seed)

    def split(self) -> SplitOptions:
        from edgeprune.pipeline import SplitOptions

        return SplitOptions(self.devices, self.device_profile)
