"""Measure dense and pruned beside each other, and put the realistic speed-up beside the theoretical one.

Both models run in turn in one loop, on the same inputs, with the same threads. MACs come from the ONNX files, so that
what is promised is what the files hold. Everything is measured in the calling process; `sweep` starts one for each
target and thread count.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from onnx import ModelProto

from edgeprune.devices.channel_block import LAYOUT_CHANNELS
from edgeprune.devices.device_profile import load_profile
from edgeprune.devices.roofline import Roofline
from edgeprune.devices.this_machine import default_profile_name, this_machine_block
from edgeprune.errors import InputError
from edgeprune.io import progress
from edgeprune.onnx_files.graph import TensorSpec
from edgeprune.onnx_files.inputs import input_specs, output_specs
from edgeprune.precision.formats import Precision
from edgeprune.profiling.agreement import References
from edgeprune.profiling.batch import measure_batch, memory_checked
from edgeprune.profiling.environment import current_environment
from edgeprune.profiling.explaining.advice import advice
from edgeprune.profiling.explaining.facts import MachineFacts
from edgeprune.profiling.result import ProfileResult, Result, Settings, load_profile_result
from edgeprune.profiling.setup import Batch, Pair, ProfileOptions, Which, is_gpu, random_feeds
from edgeprune.profiling.subject import Subject
from edgeprune.profiling.tuned_for import RUNTIMES, is_tuned_for
from edgeprune.runners import registry
from edgeprune.runners.base import ProfiledRunner
from edgeprune.runners.cores import check_cores, pinned
from edgeprune.runners.onnxruntime.runner import TimedOrtRunner
from edgeprune.runners.target import OpenOptions, Source

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Pair",
    "ProfileOptions",
    "ProfileResult",
    "TimedOrtRunner",
    "Which",
    "load_profile_result",
    "profile_files",
    "profile_runners",
]

MakeRunner = Callable[[Which], ProfiledRunner]


def profile_files(
    subject: Subject,
    targets: Sequence[str],
    options: ProfileOptions,
    engines: Path | None = None,
    references: Path | None = None,
) -> ProfileResult:
    """Measure a subject's networks (or the one, without a baseline) on every target, with every batch size.

    In `engines` a runtime may keep what it builds for this device; in `references` may be what the networks give in
    ONNX Runtime (`References`). InputError as `check_measurable`, and what runtimes refuse; GateError where a target
    gives other outputs, before it is timed.
    """
    check_measurable(subject, targets, options)
    modules = subject.modules() if any(registry.target_named(name).runs == "module" for name in targets) else {}
    environment = current_environment(options.threads)
    results, is_full = [], options.precision == "fp32"
    for target in targets:
        pair = subject.pair_for(registry.target_named(target))
        make = _maker(target, subject.files_for(registry.target_named(target)), pair, options, modules, engines)
        # In other precisions outputs were compared when the networks were converted.
        held = References(subject.networks, options.seed, options.threads, references) if is_full else None
        results += [_advised(result, subject, pair) for result in profile_runners(make, pair, target, options, held)]
    settings = Settings(
        options.warmup,
        options.iterations,
        options.seed,
        options.pin,
        options.spinning,
        options.time_limit_s,
        options.interval,
        input_size=options.input_size,
    )
    return ProfileResult(environment, settings, tuple(results))


def _advised(result: Result, subject: Subject, pair: Pair) -> Result:
    """With what to try next. Only a bundle can be tuned, and only in FP32."""
    tunable = subject.bundle is not None and result.precision == "fp32"
    may_tune = tunable and not is_tuned_for(subject.lowering, result.target, result.threads, result.batch_size)
    may_batch = any(spec.is_batched for spec in input_specs(pair.pruned))
    found = advice(result, may_tune=may_tune and result.target in RUNTIMES, may_batch=may_batch)
    return msgspec.structs.replace(result, advice=found)


def check_measurable(subject: Subject, targets: Sequence[str], options: ProfileOptions) -> None:
    """InputError for what can be known beforehand, before anything is measured: a target that cannot be used or does
    not take these networks, models with different inputs or outputs, a batch size that does not fit them."""
    options.check()
    check_cores(options.pin)
    check_targets(targets, options.precision)
    for name in targets:
        pair = subject.pair_for(registry.target_named(name))
        if registry.target_named(name).runs == "module":
            subject.require_modules(name)
        machine = machine_facts(name, options.threads, options.machine_profile, options.precision)
        if pair.dense is not None:
            check_same_shapes(pair.dense, pair.pruned, where=subject.dense)
        for size in options.batch_sizes:
            Batch.of(pair, name, size, machine, options.precision)
        least = min(options.batch_sizes)
        with memory_checked(name, least):
            random_feeds(input_specs(pair.pruned), least, options.seed)


def profile_runners(
    make: MakeRunner, pair: Pair, target: str, options: ProfileOptions, references: References | None = None
) -> list[Result]:
    """One result a batch size. `make` is called once with "pruned" and, if the pair has one, once with "dense". Outputs
    are compared with the references, if there are any."""
    machine = machine_facts(target, options.threads, options.machine_profile, options.precision)
    if options.precision != "fp32":  # blocks, rates and peaks are those of FP32
        machine = MachineFacts(0, options.threads, dispatch_ms=machine.dispatch_ms)
    batches = [Batch.of(pair, target, size, machine, options.precision) for size in options.batch_sizes]
    which: tuple[Which, ...] = ("pruned",) if pair.dense is None else ("dense", "pruned")
    with ExitStack() as stack:
        runners: dict[Which, ProfiledRunner] = {}
        for name in which:
            with memory_checked(target, max(options.batch_sizes)):
                runners[name] = make(name)
            stack.callback(runners[name].close)
        stack.enter_context(pinned(options.pin[:1]))
        tracked = progress.track(batches, f"profiling on {target}", total=len(batches))
        return [measure_batch(runners, batch, options, references) for batch in tracked]


def check_targets(names: Sequence[str], precision: Precision = "fp32") -> None:
    """InputError for the first target that is unknown, cannot be used on this machine, or not in this precision."""
    for name in names:
        registry.require(name, precision)


def machine_facts(
    target: str, threads: int, machine_profile: str | Path = "", precision: Precision = "fp32"
) -> MachineFacts:
    """What the causes need to know of a target on this machine.

    The device's peaks are those of `machine_profile`, or for targets that run on the processor of the shipped profile
    nearest to this machine. InputError for an unknown profile.
    """
    if is_gpu(target):
        profile = load_profile(machine_profile) if machine_profile else None
        roofline = Roofline.of(profile, threads) if profile and profile.kind == "gpu" else None
        # GPUs of all makes work on tiles of 8 or more channels; threads only start kernels.
        return MachineFacts(8, roofline=roofline, dispatch_ms=0.01)
    profile = load_profile(machine_profile or default_profile_name())
    known = profile.on_if_known(target, precision)
    is_known = (target, precision) == ("cpu", "fp32") or known is not profile
    block = known.channel_block.fp32 if machine_profile or known is not profile else this_machine_block()
    roofline, costs = Roofline.of(profile, threads) if profile.kind == "cpu" else None, known.convolution
    if not is_known or costs is None:  # a table of another runtime's kernels
        return MachineFacts(block, threads, roofline=roofline)
    facts = MachineFacts(
        block, threads, off_block_rate=costs.off_block_rate, filter_rates=costs.rates, roofline=roofline
    )
    if target == "cpu" and platform.machine().lower() in ("x86_64", "amd64"):
        facts = replace(facts, off_block="the runtime falls back to im2col", layout_channels=LAYOUT_CHANNELS)
    return facts


def check_same_shapes(dense: ModelProto, pruned: ModelProto, *, where: object = "") -> None:
    """InputError if the baseline takes other inputs than the pruned model, or gives other outputs. Names, and names of
    axes, may differ."""

    def shown(specs: Sequence[TensorSpec], what: str) -> str:
        texts = [f"{s.dtype} ({', '.join(str(d) if isinstance(d, int) else 'N' for d in s.shape)})" for s in specs]
        return f"{len(specs)} {what}: {', '.join(texts)}" if len(specs) != 1 else texts[0]

    for verb, what, specs in (("takes", "inputs", input_specs), ("gives", "outputs", output_specs)):
        of_dense, of_pruned = shown(specs(dense), what), shown(specs(pruned), what)
        if of_dense != of_pruned:
            raise InputError(
                f"the baseline {verb} {of_dense}",
                where=where,
                expected=f"what the pruned model {verb}, {of_pruned}",
                remedy="name the dense model that was pruned",
            )


def _maker(
    target: str,
    files: Mapping[Which, Path],
    pair: Pair,
    options: ProfileOptions,
    modules: Mapping[Which, nn.Module],
    engines: Path | None,
) -> MakeRunner:
    """The factory of a target's runners."""
    names = tuple(spec.name for spec in input_specs(pair.pruned))
    how = OpenOptions(options.run_options(), options.precision, engines)

    def make(which: Which) -> ProfiledRunner:
        return registry.open_runner(target, Source(files[which], modules.get(which), names), how)

    return make
