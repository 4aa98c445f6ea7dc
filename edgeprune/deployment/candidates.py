"""Which networks are measured in which runtime: the tuned forms where a runtime can be tuned for, the plan's elsewhere,
and what INT8 makes of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np

from edgeprune.devices.device_profile import load_profile
from edgeprune.devices.this_machine import default_profile_name
from edgeprune.errors import GateError, InputError
from edgeprune.io import progress
from edgeprune.lowering.layers import grouped_layers
from edgeprune.lowering.model import as_recorded
from edgeprune.lowering.record import LoweringRecord
from edgeprune.onnx_files.model import load_model, save_onnx
from edgeprune.precision.formats import Precision
from edgeprune.profiling.runtimes.joint import Candidate
from edgeprune.profiling.runtimes.record import MissingRuntime, RuntimeRow
from edgeprune.profiling.samples import RANDOM, load_samples
from edgeprune.profiling.setup import ProfileOptions, is_gpu
from edgeprune.profiling.subject import Subject
from edgeprune.profiling.sweeping.sweep import Sweep, failure_words
from edgeprune.profiling.tuned_for import RUNTIMES, is_tuned_for
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner
from edgeprune.runners.registry import TARGETS, require, target_named
from edgeprune.runners.target import Target
from edgeprune.tuning.options import TuneOptions
from edgeprune.tuning.tuner import tune

ALL = "all"
AS_PLANNED = "as planned"
COMPARED: tuple[Precision, ...] = ("fp32", "int8")
"""Precisions in which runtimes are held against each other, FP32 first."""


@dataclass(frozen=True)
class RuntimeOptions:
    """What is measured beside each other, and how."""

    targets: tuple[str, ...]
    tune: TuneOptions = field(default_factory=TuneOptions)
    """Threads, batch size, seed, and what is remembered; its target counts for nothing."""
    precisions: tuple[str, ...] = ("fp32",)
    data: str = ""
    """Calibrates INT8, and tells the accuracy."""
    device_profile: str = ""
    """Where padded forms have their channel block from."""
    time_limit_s: float = 10.0
    """Of measuring, for each runtime and precision; tuning takes its own."""
    missing: tuple[MissingRuntime, ...] = ()
    """What could be here besides."""

    @staticmethod
    def of(text: str, options: RuntimeOptions) -> RuntimeOptions:
        """These options for targets that are separated by commas, or with `all` for every runtime of this machine's
        processor that is installed here and runs files; what is not installed is in `missing`.

        InputError for a target that is unknown or cannot be used here.
        """
        names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
        if ALL not in names:
            return replace(options, targets=names)
        if len(names) > 1:
            raise InputError(f"--target {text}", expected="all, or names of targets separated by commas")
        states = [target.state() for target in TARGETS.values() if target.runs == "onnx" and not is_gpu(target.name)]
        missing = tuple(MissingRuntime(state.name, state.reason) for state in states if not state.available)
        return replace(options, targets=tuple(state.name for state in states if state.available), missing=missing)

    def check(self) -> None:
        """InputError for values that make no sense, or a target that cannot be used here."""
        replace(self.tune, target="cpu").check()
        for name in self.targets:
            require(name)
        if not self.precisions or not set(self.precisions) <= set(COMPARED):
            raise InputError(f"--precision {','.join(self.precisions)}", expected="fp32, int8, or fp32,int8")
        if not any(set(self.precisions) & set(target_named(name).precisions) for name in self.targets):
            raise InputError(
                f"none of {', '.join(self.targets)} computes in {' or '.join(self.precisions)} here",
                expected="another --precision, or a target that does",
            )
        self.profile_options().check()
        load_profile(self.device_profile or default_profile_name())

    @property
    def own_target(self) -> str:
        """For which the bundle's `model.onnx` is written: `cpu`, or else the first that forms can be chosen for; empty
        if there is none."""
        tunable = [name for name in self.targets if name in RUNTIMES]
        return "cpu" if "cpu" in tunable else next(iter(tunable), "")

    def profile_options(self) -> ProfileOptions:
        """For all candidates of one precision together."""
        own = self.tune
        limit = self.time_limit_s * max(len(self.targets) * len(self.precisions), 1)
        return ProfileOptions(own.threads, (own.batch_size,), per_layer=False, seed=own.seed, time_limit_s=limit)


@dataclass(frozen=True)
class Candidates:
    """What is measured, and what was refused before."""

    ready: tuple[Candidate, ...] = ()
    refused: tuple[RuntimeRow, ...] = ()
    accuracies: tuple[tuple[str, str, float], ...] = ()
    """(candidate's key, network, per cent) as far as it is known."""
    unusable: tuple[str, ...] = ()
    """Precisions whose networks nobody should use."""
    warnings: tuple[str, ...] = ()


def full_candidates(subject: Subject, options: RuntimeOptions, folder: Path) -> tuple[Candidate, ...]:
    """The networks in FP32, one candidate a target; those in forms that the bundle does not have are written to
    `folder`."""
    return tuple(_full(subject, target_named(name), options, folder / name) for name in options.targets)


def quantised_candidates(
    subject: Subject, options: RuntimeOptions, full: Sequence[Candidate], folder: Path
) -> Candidates:
    """The networks in INT8, for targets that compute in it, in `folder`: of `cpu` in its forms, elsewhere as planned,
    since forms are chosen in FP32. What cannot be converted, or differs too much from FP32, is refused."""
    ready, refused, accuracies, warnings = [], [], [], dict[str, None]()
    settings = replace(options.profile_options(), precision="int8", fp32_where_faster=True)
    for before in full:
        target = target_named(before.target)
        if "int8" not in target.precisions:
            continue
        keeps = target.name == "cpu" or subject.planned is None
        source = subject if keeps else replace(subject, pruned=subject.planned or subject.pruned, planned=None)
        forms, place = (before.forms, folder / "own") if keeps else (AS_PLANNED, folder / AS_PLANNED)
        row = RuntimeRow(target.name, target.state().reason, "int8", forms)
        try:
            precise = Sweep.of((target.name,), settings).convert(source, options.data, place, folder / "engines")
            if refusal := precise.refusal(target.name):
                raise refusal
        except Exception as error:  # whatever a converter or a runtime raises must not cost the other results
            words, kind = failure_words(error)
            refused.append(msgspec.structs.replace(row, error=words, kind=kind))
            continue
        files = replace(source, converted=precise.files).files_for(target)
        one = Candidate(target.name, "int8", forms, dict(files))
        ready.append(one)
        known = [(record.network, record.top1) for record in precise.records]
        accuracies += [(one.key, network, top1) for network, top1 in known if top1 is not None]
        warnings |= dict.fromkeys(precise.warnings)
    return Candidates(
        tuple(ready), tuple(refused), tuple(accuracies), () if options.data else ("int8",), tuple(warnings)
    )


def full_accuracies(subject: Subject, options: RuntimeOptions) -> dict[str, float]:
    """Top-1 of the networks in ONNX Runtime by `dense` and `pruned`, in per cent; empty where the data has no
    labels. Whatever gives the same outputs has the same."""
    samples = load_samples(load_model(subject.pruned), options.data, options.tune.seed)
    if samples.told == RANDOM or samples.labels is None:
        return {}
    found: dict[str, float] = {}
    for which, path in subject.networks.items():
        with OrtRunner(path, RunOptions(options.tune.threads, spinning=False)) as runner:
            outputs = [
                next(iter(runner.run(dict(zip(runner.input_names, feeds.values(), strict=True))).values()))
                for feeds in samples.compare
            ]
        logits = np.concatenate(outputs)
        if logits.ndim != 2:
            return {}
        found[which] = 100 * float((logits.argmax(1) == samples.labels).mean())
    return found


def forms_words(record: LoweringRecord) -> str:
    """fastest forms: 12 grouped, 4 dense."""
    kinds = Counter(layer.kind for layer in record.layers)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{record.chosen or record.chosen_by}: {counted}" if record.chosen != AS_PLANNED else AS_PLANNED


def has_choice(subject: Subject) -> bool:
    """Whether any layer could have another form."""
    return bool(grouped_layers(load_model(subject.planned or subject.pruned)))


def _full(subject: Subject, target: Target, options: RuntimeOptions, folder: Path) -> Candidate:
    files, own = dict(subject.files_for(target)), options.tune
    lowering = subject.lowering
    if target.as_planned or target.runs == "module" or lowering is None:
        forms = AS_PLANNED
    elif is_tuned_for(lowering, target.name, own.threads, own.batch_size):
        return Candidate(target.name, "fp32", forms_words(lowering), files)
    else:
        forms = f"those of {lowering.target}, {forms_words(lowering)}"
    planned = subject.planned or subject.pruned
    if target.name not in RUNTIMES or not has_choice(subject):
        return Candidate(target.name, "fp32", forms, files)
    try:
        record = _tuned(planned, subject.dense, options, target.name)
    except (GateError, InputError) as error:  # a form may compute something else where the plan's own does not
        progress.note(f"no forms are chosen for {target.name}: {error}")
        return Candidate(target.name, "fp32", AS_PLANNED, {**files, "pruned": planned})
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "model.onnx"
    save_onnx(as_recorded(load_model(planned), record), place)
    return Candidate(target.name, "fp32", forms_words(record), {**files, "pruned": place})


def _tuned(planned: Path, dense: Path | None, options: RuntimeOptions, target: str) -> LoweringRecord:
    progress.note(f"choosing forms for {target}")
    profile = load_profile(options.device_profile or default_profile_name()).on_if_known(target)
    network = None if dense is None else load_model(dense)
    return tune(load_model(planned), network, profile, replace(options.tune, target=target))


def metric_and_source(subject: Subject, options: RuntimeOptions) -> tuple[str, str]:
    """Of the accuracies in FP32: the name of the metric, empty for top-1, and where they are from."""
    accuracy = subject.bundle.manifest.accuracy if subject.bundle else None
    if options.data or accuracy is None:
        return "", options.data
    return accuracy.metric, accuracy.data


def known_accuracies(
    subject: Subject, options: RuntimeOptions, full: Iterable[Candidate]
) -> list[tuple[str, str, float]]:
    """Of the candidates in FP32: those on the data, or else the bundle's."""
    if options.data:
        found = full_accuracies(subject, options)
    else:
        accuracy = subject.bundle.manifest.accuracy if subject.bundle else None
        found = {"dense": accuracy.dense, "pruned": accuracy.pruned} if accuracy else {}
    return [(candidate.key, which, value) for candidate in full for which, value in found.items()]
