"""`edgeprune profile`: a network measured and estimated, or this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from edgeprune.bundles.writing import check_update
from edgeprune.calibration.bench import NOISY_WORDS
from edgeprune.calibration.machine import calibrate as measure_machine
from edgeprune.calibration.runtimes import runtime_costs
from edgeprune.calibration.stopwatch import OrtStopwatch
from edgeprune.cluster.transport.echo import exchange_costs
from edgeprune.deployment.candidates import COMPARED, RuntimeOptions
from edgeprune.devices.device_profile import DeviceProfile, load_profile, runtime_name, split_device
from edgeprune.devices.figures import ExchangeCosts
from edgeprune.devices.this_machine import is_importable
from edgeprune.errors import InputError
from edgeprune.io import progress
from edgeprune.io.files import check_file, write_atomically
from edgeprune.io.toml_files import toml_text
from edgeprune.profiling.environment import current_environment
from edgeprune.profiling.profiler import ProfileOptions, ProfileResult
from edgeprune.profiling.setup import is_gpu
from edgeprune.profiling.subject import Subject
from edgeprune.profiling.sweeping.keeping import fetch_engines, keep, note_tuned_for_other
from edgeprune.profiling.sweeping.sweep import Sweep
from edgeprune.runners.registry import require


def profile(
    model: Path,
    baseline: Path | None,
    targets: Sequence[str],
    options: ProfileOptions,
    *,
    arch: str = "",
    thread_counts: Sequence[int] = (),
    data: str = "",
    device_profiles: Sequence[str] = (),
) -> ProfileResult:
    """`edgeprune profile`: every target in turn with each number of threads (by default that of `options`), and
    estimates for the devices of these profiles; the result is kept in a bundle, if it is one.

    In another precision than FP32 the networks are converted first, with `data` to calibrate and to compare on; a
    bundle keeps these files, too. Nothing is timed on a target that gives other outputs than ONNX Runtime. What could
    not be measured is in the result's `failures`; where that is everything, the first error is raised.
    """
    sweep = Sweep.of(targets, options, thread_counts)
    devices = [_estimated_as(name) for name in device_profiles]
    if data and options.precision == "fp32":
        raise InputError("--data is for other precisions", where="profile", remedy="pass --precision int8, or leave it")
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as temporary:
        sized, made = Path(temporary) / "sized", Path(temporary) / "made"
        subject = Subject.of(model, baseline, arch).with_input_size(options.input_size, sized)
        if subject.bundle is not None:
            check_update(model)
        sweep.check(subject)
        estimates = sweep.estimates(subject, devices)
        note_tuned_for_other(subject, sweep)
        engines = fetch_engines(subject, made)
        precise = sweep.convert(subject, data, made, engines)
        result = msgspec.structs.replace(sweep.measure(subject, precise, engines), estimates=estimates)
        keep(subject, result, made)
    return result


def _estimated_as(name: str) -> DeviceProfile:
    """The device's profile for estimates of whole networks, which are ONNX Runtime's whatever stands behind an @."""
    profile, (device, runtime) = load_profile(name), split_device(name)
    if runtime is None:
        return profile
    progress.note(f"estimates are of ONNX Runtime alone: {profile.name} is estimated as {device}")
    return load_profile(device)


def _exchange() -> ExchangeCosts | None:
    """What an engine's exchange takes here; None where none is installed."""
    if not is_importable("zenoh"):
        return None
    return exchange_costs(f"eclipse-zenoh {metadata.version('eclipse-zenoh')}, {current_environment(1).date[:10]}")


def calibrate(out: Path, pin: tuple[int, ...] = (), runtimes: str = "cpu") -> DeviceProfile:
    """`edgeprune profile --calibrate`: measures this machine, or only the cores to pin to, and writes a device profile.

    `runtimes`: targets, separated by commas, or `all`, of which is measured besides what they want and cost, in FP32
    and in INT8 where they compute in it. InputError if the file is none that a profile can be read from, or cannot be
    written, or for a target that cannot be used here: before anything is measured.
    """
    if out.suffix != ".toml" or not out.absolute().parent.is_dir() or out.is_dir():
        raise InputError("cannot be written", where=out, expected="a .toml file in a folder that exists")
    check_file(out)
    targets = [require(name) for name in RuntimeOptions.of(runtimes, RuntimeOptions(())).targets]
    for target in targets:
        if target.runs != "onnx" or is_gpu(target.name):
            raise InputError("is not calibrated", where=f"target {target.name}", expected="a runtime of the processor")
    found = measure_machine(out.stem, OrtStopwatch(pin), cores=len(pin) or None)
    others = {
        runtime_name(target.name, precision): runtime_costs(target.name, precision, pin)
        for target in targets
        for precision in COMPARED
        if precision in target.precisions and (target.name, precision) != ("cpu", "fp32")
    }
    found = msgspec.structs.replace(found, runtimes=others, exchange=_exchange())
    figures = found.figures().values()
    if noisy := sum(NOISY_WORDS in figure.source for figure in figures):
        progress.note(f"{noisy} of {len(figures)} figures are noisy: close other programs and calibrate again")
    write_atomically(out, toml_text(found).encode())
    return load_profile(out.absolute())
