"""`edgeprune profile`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from edgeprune.cli.flags.common import Seeded
from edgeprune.cli.flags.kinds import (
    MEASURING,
    Integer,
    OptionalPath,
    OptionalText,
    Switch,
    flags,
    integers,
    parse_open_size,
)
from edgeprune.cli.profile_tables import show, show_device
from edgeprune.errors import InputError

if TYPE_CHECKING:
    from edgeprune.profiling.setup import ProfileOptions


@Parameter(name="*", group=MEASURING)
@flags
class SubjectFlags:
    """What is measured, and where."""

    baseline: OptionalPath = None
    """Dense ONNX file to compare an ONNX file with; a bundle has its own."""
    target: str = "cpu"
    """cpu, openvino-native, ... separated by commas; `edgeprune list targets` shows all."""
    arch: OptionalText = ""
    """For torch's targets, where the bundle's architecture is your own file: path/to/file.py:factory."""
    device_profile: OptionalText = ""
    """Devices to estimate the latency on, too, by name or .toml file, separated by commas; `edgeprune list devices`."""

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.target.split(","))

    @property
    def device_profiles(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.device_profile.split(",") if name.strip())


@Parameter(name="*", group=MEASURING)
@flags
class MeasureFlags:
    """How to measure."""

    threads: str = "1"
    """Threads inside one operation; several numbers, separated by commas, are each measured with every batch size."""
    batch_size: str = "1"
    """Batch sizes, separated by commas."""
    input_size: OptionalText = ""
    """Sizes of the input's last axes, such as H,W or C,H,W, for an ONNX file that leaves more open than the batch."""
    warmup: Integer = 10
    """Runs of each model before measuring, at least: warm-up goes on until its times are steady."""
    iterations: Integer = 1000
    """Measured runs of each model, at most."""
    interval: float = 0.02
    """Measuring ends when the 95% interval of the speed-up is narrower than this share of it; 0 for all iterations."""
    time_limit: float = 120.0
    """Seconds after which measuring ends at the latest, for each target, thread count and batch size."""
    pin: OptionalText = ""
    """Cores to pin the threads to, separated by commas."""
    spinning: bool = False
    """Let idle threads wait by spinning: what many runtimes do by default, but here those of the model that rests
    take time from the one that runs."""
    fresh_process: bool = True
    """Measure each target and thread count in a process of its own, so that none disturbs another."""
    machine_profile: OptionalText = ""
    """Device profile of this machine, whose peaks bound the layers: a name or a TOML file; by default the shipped one
    that is nearest."""
    per_layer: bool = True
    """Time every layer, too."""

    def thread_counts(self) -> tuple[int, ...]:
        return integers("--threads", self.threads)

    def cores(self) -> tuple[int, ...]:
        return integers("--pin", self.pin) if self.pin else ()

    def options(self, numbers: NumberFormatFlags, seed: int) -> ProfileOptions:
        from edgeprune.profiling.setup import ProfileOptions

        return ProfileOptions(
            threads=max(self.thread_counts()),
            batch_sizes=integers("--batch-size", self.batch_size),
            warmup=self.warmup,
            iterations=self.iterations,
            interval=self.interval,
            time_limit_s=self.time_limit,
            per_layer=self.per_layer,
            pin=self.cores(),
            spinning=self.spinning,
            fresh_process=self.fresh_process,
            machine_profile=self.machine_profile,
            seed=seed,
            precision=numbers.precision,
            weight_bits=numbers.weight_bits,
            calibration_images=numbers.calibration_images,
            input_size=parse_open_size(self.input_size),
        )


@Parameter(name="*", group=MEASURING)
@flags
class NumberFormatFlags:
    """In which precision to measure."""

    precision: Annotated[Literal["fp32", "tf32", "fp16", "int8"], Parameter(name="--precision")] = "fp32"
    """Run both models in it, where the target can: the networks are converted (for tf32 they need not be), compared
    with FP32 on the target, and kept beside the others."""
    data: OptionalText = ""
    """Calibrates INT8 and tells the accuracy: digits, imagefolder:DIR, cifar10:DIR, path/to/file.py:factory (as for
    `edgeprune eval`; needs torch), or a .npy file with inputs (N,C,H,W)."""
    calibration_images: Integer = 256
    """Images of --data at most that calibrate INT8."""
    weight_bits: Literal["auto", "7", "8"] = "auto"
    """Of INT8's weights: 7 for x86 without VNNI, which cuts sums of products of 8 bits; auto looks at this machine."""


@Parameter(name="*", group=MEASURING)
@flags
class CalibrateFlags:
    """The machine instead of a model."""

    calibrate: Switch = False
    """Measure this machine instead of a model, and write a device profile; takes a minute or two, and half a minute
    more for each other runtime in --target (all: every one that is installed)."""
    out: Annotated[OptionalPath, Parameter(alias="-o")] = None
    """With --calibrate: the .toml file to write."""


def profile(
    model: Path | None = None,
    /,
    *,
    subject: SubjectFlags = SubjectFlags(),
    measuring: MeasureFlags = MeasureFlags(),
    numbers: NumberFormatFlags = NumberFormatFlags(),
    calibrating: CalibrateFlags = CalibrateFlags(),
    common: Seeded = Seeded(),
) -> None:
    """Measure dense and pruned in turn, and put the realistic speed-up beside the theoretical one.

    **Examples**

    - `edgeprune profile out/ --threads 1,2 --batch-size 1,8`
    - `edgeprune profile pruned.onnx --baseline dense.onnx --target cpu`
    - `edgeprune profile pruned.onnx --baseline dense.onnx --input-size 224,224` where height and width are dynamic
    - `edgeprune profile out/ --target cpu,openvino-native --precision int8 --data imagefolder:DIR`
    - `edgeprune profile out/ --device-profile raspberry-pi-5`
    - `edgeprune profile --calibrate --target all -o my-machine.toml`

    Parameters
    ----------
    model
        A bundle (the result is kept in it), or an ONNX file.
    """
    counts, cores, out = measuring.thread_counts(), measuring.cores(), calibrating.out
    if calibrating.calibrate:
        if model is not None or out is None:
            raise InputError("--calibrate measures the machine, not a model", expected="--calibrate -o FILE.toml")
        _calibrate(out, cores, subject.target, common)
        return
    if model is None or out is not None:
        missing = "no model given" if model is None else "--out is for --calibrate"
        raise InputError(missing, expected="edgeprune profile MODEL, or edgeprune profile --calibrate -o FILE.toml")
    from edgeprune.pipeline import profile as steps
    from edgeprune.precision.formats import require_precise
    from edgeprune.profiling.sweeping.sweep import require_complete

    result = steps.profile(
        model,
        subject.baseline,
        subject.targets,
        measuring.options(numbers, common.seed),
        arch=subject.arch,
        thread_counts=counts,
        data=numbers.data,
        device_profiles=subject.device_profiles,
    )
    show(result)
    common.write(result)
    require_complete(result, told=True)
    require_precise(result.precisions)


def _calibrate(out: Path, cores: tuple[int, ...], targets: str, common: Seeded) -> None:
    import msgspec

    from edgeprune.pipeline import profile as steps

    measured = steps.calibrate(out, cores, targets)
    show_device(measured, out)
    common.write(msgspec.to_builtins(measured, str_keys=True))
