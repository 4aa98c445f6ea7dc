"""The order of the steps, for each verb of the CLI: the only module that knows it.

checkpoint -> model -> traced graph -> plan -> rewritten model -> (fine-tuned) -> folded model -> ONNX -> parity gate
-> lowered ONNX -> parity gate -> per-device subgraphs -> measurements -> report

What needs torch is imported inside the verbs that need it: the others also run on the device, where there is none.
"""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.manifest import SCHEMA_VERSION, Manifest
from edgeprune.bundles.names import ENGINES, LOWERING, MODEL, PARTITION, PLAIN_MODEL, PLAN, PROFILE
from edgeprune.bundles.writing import check_out, check_update, copy_files, new_bundle, updated_bundle, write_manifest
from edgeprune.calibration.machine import NOISY_WORDS
from edgeprune.calibration.machine import calibrate as measure_machine
from edgeprune.calibration.stopwatch import OrtStopwatch
from edgeprune.deployment.lower_bundle import LowerOptions, lower_into
from edgeprune.deployment.parity import TOLERANCE
from edgeprune.devices.device_profile import DeviceProfile, load_profile
from edgeprune.errors import InputError
from edgeprune.io import progress
from edgeprune.io.arrays import load_array, save_arrays
from edgeprune.io.files import sha256_of, write_atomically
from edgeprune.io.toml_files import toml_text
from edgeprune.lowering.record import LoweringRecord, load_lowering
from edgeprune.onnx_files.model import load_model
from edgeprune.partitioning.devices import load_devices
from edgeprune.partitioning.executor import LocalExecutor
from edgeprune.partitioning.manifest import PartitionManifest, write_partition
from edgeprune.partitioning.partition import partition_model
from edgeprune.profiling.precise_models import is_converted
from edgeprune.profiling.profiler import ProfileOptions, ProfileResult
from edgeprune.profiling.subject import Subject
from edgeprune.profiling.sweeping.keeping import fetch_engines, keep, note_tuned_for_other
from edgeprune.profiling.sweeping.sweep import Sweep
from edgeprune.report import write_comparison, write_report
from edgeprune.report.comparison.changes import ChangeRecord, changes
from edgeprune.report.comparison.compared import Compared, differences, failures, other_networks
from edgeprune.report.comparison.gate import Gate, nothing_shared, passed, regressions, unchecked
from edgeprune.report.comparison.runs import read_runs
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner

if TYPE_CHECKING:
    from edgeprune.deployment.options import DeployOptions
    from edgeprune.pipeline.train import TrainOptions, TrainOutcome
    from edgeprune.pruning.options import DataOptions, NetworkSource, PruneOptions
    from edgeprune.pruning.pruned import Pruned
    from edgeprune.training.evaluation import EvalResult


@dataclass(frozen=True)
class Output:
    """Where a verb writes its bundle."""

    folder: Path
    overwrite: bool = False

    def check(self) -> None:
        """InputError if nothing can be written there; called before any long work."""
        check_out(self.folder, overwrite=self.overwrite)


@dataclass(frozen=True)
class SplitOptions:
    """Over what to split."""

    devices: str = ""
    """A number of devices, or a TOML file that describes them; empty: no split."""
    device_profile: str = ""
    """Device type of devices that name none; empty: this machine's."""

    def check(self) -> None:
        """InputError if the devices do not exist; called before any long work."""
        if self.devices:
            load_devices(self.devices, default_profile=self.device_profile)
        elif self.device_profile:
            load_profile(self.device_profile)


def train(source: NetworkSource, options: TrainOptions, out: Output) -> TrainOutcome:
    """`edgeprune train`: a bundle with the trained weights, and pruned where a method was at work."""
    from edgeprune.pipeline import train as training_run

    return training_run.train(source, options, out.folder, overwrite=out.overwrite)


def prune(source: NetworkSource, options: PruneOptions, data: DataOptions, out: Output) -> tuple[Bundle, Pruned]:
    """`edgeprune prune`: a bundle with the plan and the pruned weights."""
    for given in (out, source, options, data):
        given.check()
    from edgeprune.deployment.exporting import manifest_of  # torch: not before all that can be checked without it
    from edgeprune.pruning.pruned import save_pruned

    pruned = _prune(source, options, data)
    with new_bundle(out.folder, overwrite=out.overwrite) as stage:
        save_pruned(pruned, stage)
        write_manifest(stage, manifest_of(pruned))
    return open_bundle(out.folder), pruned


def export(
    source: NetworkSource,
    options: PruneOptions,
    data: DataOptions,
    deploy: DeployOptions,
    lowering: LowerOptions,
    split: SplitOptions,
    out: Output,
) -> tuple[Bundle, Pruned]:
    """`edgeprune export CKPT|DIR`: from a checkpoint, or what DIR holds, to a bundle with ONNX files."""
    folder = source.checkpoint
    if folder is not None and folder.is_dir() and open_bundle(folder).has(PLAN):
        if options.asks_for_pruning:
            progress.note(f"{folder} is pruned already: how to prune is not used")
        return export_bundle(folder, source.arch, data, deploy, lowering, split, out)
    for given in (out, source, options, data, deploy, lowering, split):
        given.check()
    pruned = _prune(source, options, data)
    return write_export(pruned, deploy, lowering, split, out), pruned


def export_bundle(
    folder: Path,
    arch: str,
    data: DataOptions,
    deploy: DeployOptions,
    lowering: LowerOptions,
    split: SplitOptions,
    out: Output,
) -> tuple[Bundle, Pruned]:
    """`edgeprune export DIR`: the same from a bundle that `prune` wrote."""
    for given in (out, data, deploy, lowering, split):
        given.check()
    from edgeprune.pruning.pruned import load_images, note_off_block, open_pruned, with_accuracy

    opened = open_pruned(open_bundle(folder), arch=arch)
    note_off_block(opened.plan, opened.graph, lowering.device_profile)
    pruned = with_accuracy(opened, data, load_images(data, opened.network))
    return write_export(pruned, deploy, lowering, split, out), pruned


def write_export(
    pruned: Pruned, deploy: DeployOptions, lowering: LowerOptions, split: SplitOptions, out: Output
) -> Bundle:
    """Fold, export, verify, lower, split if asked, and publish the bundle; nothing is left if a gate fails."""
    from edgeprune.deployment.exporting import export_into

    with new_bundle(out.folder, overwrite=out.overwrite) as stage:
        manifest = export_into(stage, pruned, deploy)
        manifest = lower_into(stage, manifest, lowering, deploy.tolerance)
        if split.devices:
            planned = stage / PLAIN_MODEL
            _split_into(stage, load_model(planned if planned.is_file() else stage / MODEL), split)
        write_manifest(stage, manifest)
    return open_bundle(out.folder)


def _prune(source: NetworkSource, options: PruneOptions, data: DataOptions) -> Pruned:
    from edgeprune.methods import load_method, parse_settings, wants_gradients
    from edgeprune.pruning.network import load_network
    from edgeprune.pruning.pruned import load_images, prune_network, with_accuracy

    settings = parse_settings(options.method, options.assignments)
    network = load_network(source)
    images = load_images(data, network, calibrate=wants_gradients(load_method(options.method), settings))
    return with_accuracy(prune_network(network, options, data, images), data, images)


def split(model: Path, options: SplitOptions, out: Output) -> tuple[Bundle, PartitionManifest]:
    """`edgeprune split`: a bundle with one subgraph a device and stage, beside what the source bundle holds."""
    out.check()
    if model.is_dir():
        source = open_bundle(model)
        if source.has(PARTITION):
            raise InputError("is split already", where=model, remedy="split the bundle that it was made from")
        source.require_sound()
        # A report says what was known of the unsplit bundle: it would be stale here.
        names = [name for name in source.manifest.files if not name.startswith("report.")]
        planned = PLAIN_MODEL if source.has(PLAIN_MODEL) else MODEL
        path, manifest = source.path(planned), source.manifest
    else:
        names, path = [], model
        manifest = Manifest(SCHEMA_VERSION, metadata.version("edgeprune"))
    loaded = load_model(path)
    with new_bundle(out.folder, overwrite=out.overwrite) as stage:
        copy_files(names, model, stage)
        if not names:
            (stage / MODEL).write_bytes(loaded.SerializeToString(deterministic=True))
        partition = _split_into(stage, loaded, options)
        write_manifest(stage, manifest)
    return open_bundle(out.folder), partition


def _split_into(stage: Path, model: ModelProto, options: SplitOptions) -> PartitionManifest:
    partition = partition_model(model, load_devices(options.devices, default_profile=options.device_profile))
    write_partition(partition, stage)
    return partition.manifest


class RunResult(msgspec.Struct, frozen=True):
    """`run --json`."""

    outputs: dict[str, tuple[int, ...]]
    """Name -> shape."""
    milliseconds: float
    devices: dict[str, float]
    """Device -> its computing time in ms; empty for an unsplit model."""
    transferred_bytes: int


def run(folder: Path, source: Path, destination: Path, threads: int) -> RunResult:
    """`edgeprune run`: one batch through a bundle, on every device's own session if it is split."""
    if source.resolve() == destination.resolve():
        raise InputError("the output would replace the input", where=destination, remedy="choose another --output")
    outputs, result = run_arrays(open_bundle(folder), load_array(source), threads)
    save_arrays(destination, outputs)
    return result


def run_arrays(
    bundle: Bundle, inputs: NDArray[np.generic], threads: int = 1, *, unsplit: bool = False
) -> tuple[dict[str, NDArray[np.generic]], RunResult]:
    """Outputs by name for inputs (N, C, H, W), and what they cost; `unsplit` runs the whole model of a split bundle."""
    if bundle.has(PARTITION) and not unsplit:
        bundle.require_sound()
        with LocalExecutor(bundle.folder, threads) as executor:
            outputs = executor.run({executor.input_names[0]: inputs})
            stats = executor.last_run
        milliseconds, devices, moved = stats.latency_ms, stats.device_ms, stats.transferred_bytes
    else:
        with OrtRunner(bundle.path(MODEL), RunOptions(threads)) as runner:
            started = time.perf_counter()
            outputs = runner.run({runner.input_names[0]: inputs})
            milliseconds, devices, moved = (time.perf_counter() - started) * 1e3, {}, 0
    shapes = {name: tuple(array.shape) for name, array in outputs.items()}
    return outputs, RunResult(shapes, milliseconds, devices, moved)


def tune(folder: Path, options: LowerOptions) -> tuple[Bundle, LoweringRecord]:
    """`edgeprune tune`: measures here which forms are fastest, and writes the bundle's model anew with them.

    If that changes the model, what was measured of it before is removed; reports are in any case, for they show how
    the forms were chosen before.
    """
    options.check()
    bundle = open_bundle(folder)
    if bundle.has(PARTITION):
        raise InputError("is split already", where=folder, remedy="tune the bundle that it was made from")
    if not bundle.has(MODEL):
        raise InputError(
            "holds no ONNX model yet", where=folder, remedy=f"edgeprune export {folder} --tune -o OUT exports and tunes"
        )
    check_update(folder)
    with updated_bundle(folder) as stage:
        tolerance = bundle.manifest.parity.tolerance if bundle.manifest.parity else TOLERANCE
        manifest = lower_into(stage, bundle.manifest, options, tolerance)
        if not (stage / LOWERING).is_file():
            raise InputError("has no grouped layer", where=folder, expected="a network that was pruned into groups")
        stale = _stale(bundle.manifest.files, stage)
        for name in stale:
            (stage / name).unlink()
        write_manifest(stage, manifest)
    if told := [name for name in stale if name == PROFILE or name.startswith("report.")]:
        verb, why = ("profile", "the model") if PROFILE in told else ("report", "the choice of forms")
        progress.note(
            f"removed {', '.join(told)}, which told of {why} before: `edgeprune {verb} {shlex.quote(str(folder))}` "
            "writes it anew"
        )
    tuned = open_bundle(folder)
    return tuned, load_lowering(tuned.path(LOWERING))


def _stale(before: Mapping[str, str], stage: Path) -> list[str]:
    """Which of a bundle's files (name -> SHA-256 before its model was written anew) tell of what is no more."""
    model = (MODEL, f"{MODEL}.data")
    now = {name: sha256_of(stage / name) for name in model if (stage / name).is_file()}
    is_same = now == {name: before[name] for name in model if name in before}

    def is_of_model(name: str) -> bool:
        return name == PROFILE or name.startswith(f"{ENGINES}/") or is_converted(name)

    return [name for name in before if name.startswith("report.") or (is_of_model(name) and not is_same)]


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
    bundle keeps these files, too. What could not be measured is in the result's `failures`; where that is everything,
    the first error is raised.
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


def report(folder: Path, formats: Sequence[str]) -> list[Path]:
    """`edgeprune report`: the report files, written into the bundle; returns their paths."""
    if folder.is_file():
        remedy = "a profile.json is compared with other runs: edgeprune report OLD NEW"
        raise InputError("is a file", where=folder, expected="a bundle", remedy=remedy)
    bundle = open_bundle(folder)
    check_update(folder)
    with updated_bundle(folder) as stage:
        names = [path.name for path in write_report(folder, formats, into=stage)]
        write_manifest(stage, bundle.manifest)
    return [folder / name for name in names]


class CompareResult(msgspec.Struct, frozen=True):
    """`report --json`, where runs are compared."""

    files: tuple[str, ...]
    baseline: str
    """The run that the others were held against."""
    changes: tuple[ChangeRecord, ...]
    """Of the last run against the baseline."""
    differences: tuple[str, ...]
    """What differs between the runs besides their figures."""
    other_networks: str
    """A warning where their dense networks differ; else empty."""
    not_compared: tuple[str, ...]
    """Settings that the baseline or the last run alone measured."""
    nothing_shared: str
    """A sentence where that is all of them, with what other runs have in common; else empty."""
    failures: tuple[str, ...]
    """What could not be measured in any of the runs."""
    regressions: tuple[str, ...]
    """What got worse in the last run by more than the gate accepts."""
    passed: str
    """What the gate looked at, in a sentence, where it found nothing; else empty."""


def compare(paths: Sequence[Path], out: Path | None, formats: Sequence[str], gate: Gate | None) -> CompareResult:
    """`edgeprune report A B ...`: runs (bundles or profiles) lined up, the first as what the others are held against.

    Written to `out` with the ending of each format; `None` writes nothing. With a gate, the result says in what the
    last run is worse than the first. InputError if the runs cannot be read or, with a gate, have nothing in common.
    """
    if len(paths) < 2:
        raise InputError("a single run", where=paths[0], expected="two runs or more to compare")
    if out is not None and out.is_dir():
        raise InputError("is a folder", where=out, expected="a file for the page, such as comparison.html")
    runs = read_runs(paths)
    compared = Compared(runs, metadata.version("edgeprune"))
    found = regressions(runs[0], runs[-1], gate) if gate else ()
    files = {name: out.with_suffix(f".{name}") for name in formats} if out else {}
    if files:
        write_comparison(compared, files)
    left_out = tuple(map(str, unchecked(runs[0], runs[-1])))
    changed = tuple(map(ChangeRecord.of, changes(runs[0], runs[-1])))
    told = differences(runs), other_networks(runs), left_out, nothing_shared(runs), failures(runs)
    fine = passed(runs[0], runs[-1], gate) if gate and not found else ""
    return CompareResult(tuple(map(str, files.values())), runs[0].name, changed, *told, found, fine)


def evaluate(model: Path, data: str, source: NetworkSource | None, batch_size: int, limit: int | None) -> EvalResult:
    """`edgeprune eval`: an ONNX file, or a bundle's, in ONNX Runtime; a checkpoint or a bundle without one in torch."""
    from edgeprune.pruning.network import load_network
    from edgeprune.pruning.pruned import dataset, open_pruned
    from edgeprune.training.evaluation import evaluate as measure

    bundle = open_bundle(model) if model.is_dir() else None
    if bundle is not None and bundle.has(MODEL):
        return _evaluate_onnx(bundle.path(MODEL), data, batch_size, limit)
    if model.suffix == ".onnx":
        return _evaluate_onnx(model, data, batch_size, limit)
    if source is None:
        raise InputError("a checkpoint alone does not say its architecture", where=model, remedy="pass --arch")
    if bundle is not None and bundle.has(PLAN):
        pruned = open_pruned(bundle, arch=source.arch)
        network = replace(pruned.network, model=pruned.model)
    else:
        network = load_network(source)
    return measure(network.model, dataset(data, "test", network, limit=limit), batch_size=batch_size)


def _evaluate_onnx(path: Path, data: str, batch_size: int, limit: int | None) -> EvalResult:
    from edgeprune.datasets.images import load_data
    from edgeprune.training.evaluation import evaluate as measure

    with OrtRunner(path, RunOptions(threads=os.cpu_count() or 1)) as runner:
        name, (batch, *sizes) = runner.input_names[0], runner.input_specs[0].shape or (None,)
        shape = tuple(size for size in sizes if isinstance(size, int))
        if len(shape) != 3 or len(sizes) != 3:
            raise InputError(f"takes inputs of shape {(batch, *sizes)}", where=path, expected="(N, C, H, W)")
        given = runner.output_specs[0].shape
        classes = given[1] if len(given) == 2 and isinstance(given[1], int) else None
        loaded = load_data(data, split="test", input_shape=shape, num_classes=classes, limit=limit)
        size = batch if isinstance(batch, int) else batch_size
        return measure(lambda images: next(iter(runner.run({name: images}).values())), loaded, batch_size=size)
