"""The flags of the command line, grouped as the help shows them; each group gives the pipeline's own options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter, Token

from edgeprune.errors import InputError, unknown_name

if TYPE_CHECKING:
    from edgeprune.deployment.lower_bundle import LowerOptions
    from edgeprune.deployment.options import DeployOptions
    from edgeprune.methods.base import PruneRequest
    from edgeprune.pipeline import Output, SplitOptions
    from edgeprune.pipeline.train import MethodChoice, TrainOptions
    from edgeprune.pruning.options import DataOptions, NetworkSource, PruneOptions
    from edgeprune.report.comparison.gate import Gate

NETWORK = Group("Network", sort_key=1)
PRUNING = Group("Pruning", sort_key=2)
TRAINING = Group("Training", sort_key=2)
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


PrecisionFlag = Literal["auto", "fp32", "bf16"]


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

    def __post_init__(self) -> None:
        if self.json is not None:  # written when all is done
            from edgeprune.io.files import check_file

            check_file(self.json)


@Parameter(name="*", group=COMMON)
@dataclass(frozen=True)
class Seeded(Common):
    """What every verb with chance in it takes."""

    seed: Integer = 0
    """Same seed and input, same plan and ONNX bytes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed < 0:
            raise InputError(f"--seed {self.seed} is negative", expected="0 or a positive integer")


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


@Parameter(name="*", group=MEASURING)
@dataclass(frozen=True)
class CompareFlags:
    """What runs are held against, and what is still accepted."""

    baseline: OptionalPath = None
    """Bundle or profile.json that the others are held against; by default the first one."""
    fail_on_regression: OptionalText = ""
    """Gate: fail (exit 3) if the last run is worse than the baseline by more than this, such as 5%, and beyond noise,
    on any target, with any precision, batch size and number of threads that both measured; or if it could not
    measure what the baseline did."""
    regression_in: str = "realistic,p50"
    """Figures that the gate looks at, separated by commas: realistic (speed-up), p50 (of the pruned network),
    efficiency."""
    max_drop: OptionalNumber = None
    """Gate: fail (exit 3) if the last run's top-1 is lower than the baseline's by more points."""

    def runs(self, bundle: Path, more: Sequence[Path]) -> tuple[Path, ...]:
        """What is held against what: the first against all others."""
        return (*((self.baseline,) if self.baseline else ()), bundle, *more)

    def gate(self) -> Gate | None:
        """InputError for a limit or a figure that cannot be read."""
        from edgeprune.report.comparison.changes import FIGURES
        from edgeprune.report.comparison.gate import Gate

        if self.max_drop is not None and not math.isfinite(self.max_drop):
            raise InputError(f"--max-drop {self.max_drop} is out of range", expected="points of top-1, such as 1.0")
        if not self.fail_on_regression:
            if self.regression_in != CompareFlags().regression_in:
                raise InputError("--regression-in without a limit", remedy="pass --fail-on-regression 5%")
            return None if self.max_drop is None else Gate(None, (), self.max_drop)
        figures = tuple(name.strip() for name in self.regression_in.split(","))
        for name in figures:
            if name not in FIGURES:
                raise unknown_name("figure of --regression-in", name, FIGURES)
        return Gate(_percent("--fail-on-regression", self.fail_on_regression), figures, self.max_drop)

    def page(self, out: Path | None) -> Path | None:
        """Where the comparison is written; None where a gate alone was asked for."""
        gated = self.fail_on_regression or self.max_drop is not None
        return out or (None if gated else Path("comparison.html"))

    def formats(self, page: Path | None) -> tuple[str, ...]:
        """What the page's name says."""
        return (page.suffix.removeprefix(".") or "html",) if page else ()

    def require_unused(self, out: Path | None) -> None:
        """InputError for flags that say nothing of a single run."""
        unset = CompareFlags()
        given = {
            "-o/--out": out is not None,
            "--fail-on-regression": self.fail_on_regression != unset.fail_on_regression,
            "--regression-in": self.regression_in != unset.regression_in,
            "--max-drop": self.max_drop != unset.max_drop,
        }
        if flags := [flag for flag, there in given.items() if there]:
            one = len(flags) == 1
            told = f"{' and '.join(flags)} {'is' if one else 'are'} for comparing runs, and there is one"
            raise InputError(told, remedy=f"give a second run or --baseline, or leave {'it' if one else 'them'} out")


def _percent(flag: str, text: str) -> float:
    """5% or 5 as 0.05; a bare number below 1 could be meant as a share."""
    number = text.strip().removesuffix("%")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf") or (number == text.strip() and value < 1):
        raise InputError(f"{flag} {text!r} is no percentage", expected="such as 5%")
    return value / 100


@Parameter(name="*", group=NETWORK)
@dataclass(frozen=True)
class NetworkFlags:
    """Which network, with which weights."""

    arch: OptionalText = ""
    """resnet20 ... resnet110, vgg16-cifar, torchvision:NAME, timm:NAME, or path/to/file.py:factory (gives a
    torch.nn.Module; INPUT_SHAPE = (C, H, W) in the file); by default a bundle's own."""
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

        if not self.arch and not (checkpoint is not None and checkpoint.is_dir()):  # a bundle says its own
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


def parse_input_size(text: str) -> tuple[int, ...]:
    """(H, W) or (C, H, W) from `H,W`, `C,H,W` or the same with `x` between; empty for an empty text."""
    if not text:
        return ()
    try:
        size = tuple(int(part) for part in text.lower().replace("x", ",").split(","))
    except ValueError:
        size = ()
    if len(size) not in (2, 3) or min(size) < 1:
        raise InputError(f"--input-size {text!r} is no size", expected="H,W or C,H,W, such as 224,224 or 3,224,224")
    return size


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
    align: str = "none"
    """Multiple that channels a group, in and out, and the channels of thinner layers shall be: auto for the channel
    block of the device profile, none, or a number such as 16."""
    device_profile: OptionalText = ""
    """Device type that the network is for, this machine's by default; `edgeprune list devices` shows all."""

    def request(self, method: str, seed: int, groups: int | None = None, share_partitions: bool = True) -> PruneRequest:
        """What is asked of a method; InputError for what it does not take, and for what cannot be read."""
        from edgeprune.devices.device_profile import channel_block_for
        from edgeprune.methods import amounts
        from edgeprune.methods.base import Budget, PruneRequest

        layer_rates = tuple(_layer_rate(text) for text in self.layer_rate)
        budget = Budget.parse(self.budget)
        own_groups, rate = amounts(method, groups, self.rate, self.layer_rate, budget, self.set)
        return PruneRequest(
            own_groups,
            rate,
            seed,
            share_partitions,
            self.include_first,
            self.include_shortcuts,
            self.skip,
            budget,
            layer_rates,
            channel_block_for(self.align, self.device_profile),
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
    """Folder with checkpoints of earlier epochs of the same training run; for tmi-gkp."""
    share_partitions: bool = True
    """Layers of a residual stream share their filter clusters, which saves Gathers; for tmi-gkp and gconv."""

    def options(self, seed: int) -> PruneOptions:
        from edgeprune.methods import require_taken
        from edgeprune.pruning.options import PruneOptions

        require_taken(self.method, tickets=self.tickets is not None, share_partitions=self.share_partitions)
        request = self.request(self.method, seed, self.groups, self.share_partitions)
        return PruneOptions(self.method, request, self.set, self.tickets, self.device_profile)


@Parameter(name="*", group=PRUNING)
@dataclass(frozen=True)
class TrainMethodFlags(MethodFlags):
    """The method at work while the network is trained."""

    method: OptionalText = ""
    """Method that prunes during training; `edgeprune list methods` shows all. None: plain training."""

    def choice(self, seed: int) -> MethodChoice | None:
        from edgeprune.pipeline.train import MethodChoice

        if self.method:
            return MethodChoice(self.method, self.request(self.method, seed), self.set, self.device_profile)
        if self != TrainMethodFlags():
            raise InputError("flags for a method, and no method", where="train", remedy="pass --method")
        return None


@Parameter(name="*", group=TRAINING)
@dataclass(frozen=True)
class TrainFlags:
    """How to train: SGD with momentum."""

    data: str
    """digits, imagefolder:DIR, cifar10:DIR, or path/to/file.py:factory: factory("train" or "test") gives images
    (N,C,H,W), uint8 or normalised floats, and labels (N,)."""
    epochs: Integer
    """Epochs in all, those of a resumed run included."""
    start: Annotated[OptionalPath, Parameter(name="--from")] = None
    """Checkpoint, or bundle of `edgeprune train` or `prune` (a pruned network is trained on), to start from."""
    resume: Switch = False
    """Continue the run in -o/--out after its last whole epoch, with the same bits as if it had not stopped."""
    tickets: OptionalText = ""
    """Epochs after which a ticket is saved in DIR/tickets: 10,20,30 or FROM:TO:STEP."""
    learning_rate: OptionalNumber = None
    """Peak learning rate; by default 0.1, with --from 0.01."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """cosine falls to 0, step multiplies by --gamma at each of --milestones."""
    milestones: OptionalText = ""
    """Epochs of the steps, such as 60,120,160; by default 1/2 and 3/4 of --epochs."""
    gamma: float = 0.1
    """Factor of a step."""
    warmup_epochs: float = 0.0
    """Epochs in which the learning rate rises from 0."""
    batch_size: Integer = 128
    """Images a step."""
    momentum: float = 0.9
    """Of SGD (Nesterov's)."""
    weight_decay: float = 5e-4
    """Of SGD."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes."""
    augment: bool = True
    """Shift images at random by up to 1/8, and mirror them where that keeps their class."""
    precision: PrecisionFlag = "auto"
    """auto: bf16 where the CPU or GPU has units for it, else fp32."""

    def source(self, network: NetworkFlags, seed: int) -> NetworkSource:
        """The network to train; random weights where there is no --from."""
        return replace(network, random_init=network.random_init or self.start is None).source(self.start, seed)

    def options(self, method: MethodChoice | None, seed: int) -> TrainOptions:
        from edgeprune.pipeline.train import TrainOptions
        from edgeprune.training.settings import TrainSettings, parse_epochs

        usual = 0.1 if self.start is None else 0.01  # paper 004: a tenth for a trained network
        settings = TrainSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=usual if self.learning_rate is None else self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            milestones=parse_epochs("--milestones", self.milestones),
            gamma=self.gamma,
            warmup_epochs=self.warmup_epochs,
            label_smoothing=self.label_smoothing,
            augment=self.augment,
            precision=self.precision,
            seed=seed,
            save_tickets=parse_epochs("--tickets", self.tickets),
        )
        return TrainOptions(self.data, settings, method, self.resume)


@Parameter(name="*", group=DATA)
@dataclass(frozen=True)
class DataFlags:
    """Real data, for accuracy and fine-tuning."""

    data: OptionalText = ""
    """digits, imagefolder:DIR, cifar10:DIR, or path/to/file.py:factory: factory("train" or "test") gives images
    (N,C,H,W), uint8 or normalised floats, and labels (N,)."""
    finetune_epochs: Integer = 0
    """Epochs of fine-tuning after pruning."""
    learning_rate: float = 0.01
    """Of fine-tuning, at its start."""
    batch_size: Integer = 64
    """Of fine-tuning."""
    precision: PrecisionFlag = "auto"
    """Of fine-tuning; auto: bf16 where the CPU or GPU has units for it, else fp32."""
    max_drop: float | None = None
    """Gate: fail (exit 3) if top-1 falls by more points."""

    def options(self, seed: int) -> DataOptions:
        from edgeprune.pruning.options import DataOptions

        return DataOptions(
            data=self.data,
            finetune_epochs=self.finetune_epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            precision=self.precision,
            max_drop=self.max_drop,
            seed=seed,
        )


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
    as_planned: Switch = False
    """Leave every layer in the groups that the plan has; by default each is written in the form (grouped, merged,
    split, padded or dense) that the device profile's cost table makes fastest."""
    tune: Switch = False
    """Measure on this machine which form of each layer is fastest, as `edgeprune tune` does."""
    threads: OptionalInteger = None
    """Of --tune: threads inside one operation, 1 by default."""
    devices: OptionalText = ""
    """Split the groups over N devices, or those in a TOML file."""

    def options(self, seed: int) -> DeployOptions:
        from edgeprune.deployment.options import DeployOptions
        from edgeprune.exporters.options import ExportOptions

        onnx = ExportOptions(opset=self.opset, dynamic_batch=not self.static_batch)
        return DeployOptions(onnx, self.tolerance, self.parity_inputs, seed)

    def lowering(self, device_profile: str) -> LowerOptions:
        from edgeprune.deployment.lower_bundle import LowerOptions
        from edgeprune.tuning.cache import default_path
        from edgeprune.tuning.options import TuneOptions

        if self.tune and self.as_planned:
            raise InputError("both --tune and --as-planned say how to write the layers", remedy="leave one of them out")
        if self.threads is not None and not self.tune:
            raise InputError("--threads says for how many threads to tune", remedy="pass --tune, or leave it out")
        threads = 1 if self.threads is None else self.threads
        tuning = TuneOptions(threads=threads, cache=default_path()) if self.tune else None
        return LowerOptions(device_profile, tuning, self.as_planned)

    def split(self, device_profile: str) -> SplitOptions:
        from edgeprune.pipeline import SplitOptions

        return SplitOptions(self.devices, device_profile)


@Parameter(name="*", group=MEASURING)
@dataclass(frozen=True)
class NumberFormatFlags:
    """In which precision to measure."""

    precision: Annotated[Literal["fp32", "tf32", "fp16", "int8"], Parameter(name="--precision")] = "fp32"
    """Run both models in it, where the target can: the networks are converted (for tf32 they need not be), compared
    with FP32 on the target, and kept beside the others."""
    data: OptionalText = ""
    """Calibrates INT8 and tells the accuracy: digits, imagefolder:DIR, cifar10:DIR, path/to/file.py:factory (as for
    `edgeprune eval`; needs torch), or a .npy file with inputs (N,C,H,W)."""
