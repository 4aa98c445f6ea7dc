"""`edgeprune profile`: a network measured and estimated, or this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgeprune.bundles.writing import check_update
from edgeprune.calibration.machine import NOISY_WORDS
from edgeprune.calibration.machine import calibrate as measure_machine
from edgeprune.calibration.stopwatch import OrtStopwatch
from edgeprune.devices.device_profile import DeviceProfile, load_profile
from edgeprune.errors import InputError
from edgeprune.io import progress
from edgeprune.io.files import write_atomically
from edgeprune.io.toml_files import toml_text
from edgeprune.profiling.profiler import ProfileOptions, ProfileResult
from edgeprune.profiling.subject import Subject
from edgeprune.profiling.sweeping.keeping import fetch_engines, keep, note_tuned_for_other
from edgeprune.profiling.sweeping.sweep import Sweep


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
    devices = [load_profile(name) for name in device_profiles]
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


def calibrate(out: Path, pin: tuple[int, ...] = ()) -> DeviceProfile:
    """`edgeprune profile --calibrate`: measures this machine, or only the cores to pin to, and writes a device profile.

    InputError if the file is none that a profile can be read from, or cannot be written: before anything is measured.
    """
    if out.suffix != ".toml" or not out.absolute().parent.is_dir() or out.is_dir():
        raise InputError("cannot be written", where=out, expected="a .toml file in a folder that exists")
    found = measure_machine(out.stem, OrtStopwatch(pin), cores=len(pin) or None)
    figures = found.figures().values()
    if noisy := sum(NOISY_WORDS in figure.source for figure in figures):
        progress.note(f"{noisy} of {len(figures)} figures are noisy: close other programs and calibrate again")
    write_atomically(out, toml_text(found).encode())
    return load_profile(out.absolute())
