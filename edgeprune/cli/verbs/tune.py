"""`edgeprune tune`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from edgeprune.cli.flags.common import Seeded
from edgeprune.cli.flags.kinds import (
    EXPORT,
    MEASURING,
    Integer,
    OptionalNumber,
    OptionalPath,
    OptionalText,
    Switch,
    flags,
    parse_open_size,
)
from edgeprune.cli.headline import headline
from edgeprune.cli.tables import milliseconds, say, speedup, table
from edgeprune.errors import InputError

if TYPE_CHECKING:
    from edgeprune.bundles.bundle import Bundle
    from edgeprune.deployment.candidates import RuntimeOptions
    from edgeprune.deployment.lower_bundle import LowerOptions
    from edgeprune.lowering.record import LoweringRecord
    from edgeprune.profiling.result import SweepFailure
    from edgeprune.profiling.runtimes.record import RuntimesRecord
    from edgeprune.tuning.options import TuneOptions


@Parameter(name="*", group=EXPORT)
@flags
class FileFlags:
    """For an ONNX file, which is no bundle yet."""

    out: Annotated[OptionalPath, Parameter(alias="-o")] = None
    """Folder of the bundle that a tuned ONNX file becomes: new or empty."""
    overwrite: Switch = False
    """Replace the bundle that is there."""
    input_size: OptionalText = ""
    """Sizes of the input's last axes, such as H,W or C,H,W, for a network that leaves more open than the batch."""


@Parameter(name="*", group=MEASURING)
@flags
class CacheFlags:
    """What was measured before."""

    cache: OptionalPath = None
    """File that remembers what was measured; by default in your cache folder."""
    no_cache: Switch = False
    """Measure everything anew, and remember nothing."""


@Parameter(name="*", group=MEASURING)
@flags
class RuntimeFlags:
    """For which runtime; several are held against each other."""

    target: str = "cpu"
    """Runtime to choose forms for: cpu (ONNX Runtime), openvino-native, litert or ncnn. With several, separated by
    commas, or all (those of this machine's processor that are installed) dense and pruned are measured in each
    runtime, too, and end in one table."""
    precision: OptionalText = ""
    """With several runtimes: fp32 (by default), int8, or both as fp32,int8."""
    data: OptionalText = ""
    """With several runtimes: calibrates INT8 and tells the accuracy, as for `edgeprune profile`."""
    keep: Annotated[Literal["none", "best"], Parameter(show_default=False)] = "none"
    """With several runtimes: best leaves the files of the fastest network in the bundle, in its runtime's format."""
    time_limit: OptionalNumber = None
    """With several runtimes: seconds of measuring for each runtime and precision, at most; by default 10."""

    @property
    def are_several(self) -> bool:
        """Whether runtimes are held against each other, rather than forms chosen for one."""
        from edgeprune.profiling.tuned_for import RUNTIMES

        return self.target not in RUNTIMES or bool(self.precision or self.data) or self.keep != "none"

    def failures(self, record: RuntimesRecord) -> tuple[SweepFailure, ...]:
        """What went wrong; of all runtimes nobody asked for the one that cannot hold this network."""
        from edgeprune.deployment.candidates import ALL

        return tuple(failure for failure in record.failures if self.target != ALL or failure.kind != "input")

    def options(self, tuning: TuneOptions, device_profile: str) -> RuntimeOptions:
        from edgeprune.deployment.candidates import RuntimeOptions

        precisions = tuple(name.strip() for name in (self.precision or "fp32").split(","))
        given = RuntimeOptions((), tuning, precisions, self.data, device_profile)
        if self.time_limit is not None:
            given = replace(given, time_limit_s=self.time_limit)
        return RuntimeOptions.of(self.target, given)


def tune(
    model: Path,
    /,
    *,
    file: FileFlags = FileFlags(),
    threads: Annotated[Integer, Parameter(group=MEASURING)] = 1,
    batch_size: Annotated[Integer, Parameter(group=MEASURING)] = 1,
    runtimes: RuntimeFlags = RuntimeFlags(),
    device_profile: Annotated[OptionalText, Parameter(group=MEASURING)] = "",
    remembered: CacheFlags = CacheFlags(),
    common: Seeded = Seeded(),
) -> None:
    """Measure here, on the device, in which form each pruned layer runs fastest, and write the model with the winners.

    Needs no torch. The result computes the same to rounding. If nothing is faster than the dense network, all layers
    are written dense.

    **Examples**

    - `edgeprune tune out/`
    - `edgeprune tune out/ --threads 2 --batch-size 8`
    - `edgeprune tune out/ --target openvino-native`
    - `edgeprune tune out/ --target all --keep best`
    - `edgeprune tune out/ --target cpu,litert --precision fp32,int8 --data imagefolder:DIR`
    - `edgeprune tune resnext.onnx -o out`

    Parameters
    ----------
    model
        A bundle with an ONNX model that is not split, or an ONNX file, which becomes a bundle.
    threads
        Threads inside one operation, as the model will be run.
    batch_size
        Images a run, as the model will be run.
    device_profile
        Device type whose channel block and cost table the candidates come from; this machine's by default.
    """
    from edgeprune.cli.runtime_tables import show_runtimes
    from edgeprune.deployment.lower_bundle import LowerOptions
    from edgeprune.profiling.sweeping.sweep import require_none
    from edgeprune.tuning.cache import default_path
    from edgeprune.tuning.options import TuneOptions

    kept = None if remembered.no_cache else remembered.cache or default_path()
    if runtimes.are_several:
        tuning = TuneOptions(threads, batch_size, cache=kept, seed=common.seed)
        several = _several(model, runtimes.options(tuning, device_profile), file, keeps_best=runtimes.keep == "best")
        show_runtimes(several)
        common.write(several)
        require_none(runtimes.failures(several), told=True)
        return
    if runtimes.time_limit is not None:
        raise InputError("--time-limit is for several runtimes", expected="--target all, or names with commas between")
    options = LowerOptions(device_profile, TuneOptions(threads, batch_size, runtimes.target, kept, common.seed))
    tuned, record = _tuned(model, options, file)
    show(record, tuned)
    common.write(record)


def _several(model: Path, options: RuntimeOptions, file: FileFlags, *, keeps_best: bool) -> RuntimesRecord:
    from edgeprune.deployment.lower_bundle import LowerOptions
    from edgeprune.pipeline import runtimes as steps

    options.check()
    size = parse_open_size(file.input_size)
    if not _is_file(model):
        _require_bundle(model, file)
        return steps.tune_runtimes(model, options, keeps_best=keeps_best, input_size=size)
    own = replace(options.tune, target=options.own_target or "cpu")
    bundle, _ = _tuned(model, LowerOptions(options.device_profile, own), file)
    return steps.measure_runtimes(bundle.folder, options, keeps_best=keeps_best)


def _tuned(model: Path, options: LowerOptions, file: FileFlags) -> tuple[Bundle, LoweringRecord]:
    from edgeprune.pipeline import tune as steps
    from edgeprune.pipeline.output import Output

    size = parse_open_size(file.input_size)
    if _is_file(model):
        if not model.exists():
            raise InputError("no such file", where=model, expected="an ONNX file", remedy="check the path")
        if file.out is None:
            raise InputError("an ONNX file is not changed", where=model, remedy="pass -o OUT for the tuned one")
        return steps.tune_file(model, options, Output(file.out, file.overwrite), size)
    _require_bundle(model, file)
    return steps.tune(model, options, size)


def _is_file(model: Path) -> bool:
    return model.suffix == ".onnx" and not model.is_dir()


def _require_bundle(model: Path, file: FileFlags) -> None:
    if file.out is not None:
        raise InputError("a bundle is tuned in its place", where=model, remedy="leave out -o, or copy it before")


def show(record: LoweringRecord, bundle: Bundle) -> None:
    """The form of each layer beside what the others cost, and what whole networks took."""
    from edgeprune.lowering.forms import Form
    from edgeprune.report.words.forms import choice_sentence

    forms = sorted({form for layer in record.layers for form in layer.costs}, key=Form.parse)
    rows = [
        (
            layer.name,
            layer.form,
            layer.macs,
            layer.executed_macs,
            *(milliseconds(layer.costs.get(form)) for form in forms),
        )
        for layer in record.layers
    ]
    table("Forms (ms)", ("layer", "form", "MACs", "executed", *forms), rows)
    networks = [
        (
            network.what,
            milliseconds(network.p50_ms),
            speedup(network.speedup),
            "taken" if network.what == record.chosen else "",
        )
        for network in record.networks
    ]
    table("Networks", ("network", "p50 ms", "speed-up", ""), networks)
    if choice := choice_sentence(record):
        say(choice)
    headline(bundle)
