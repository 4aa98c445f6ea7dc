"""Measure dense and pruned beside each other, and put the realistic speed-up beside the theoretical one.

Both models run in turn in one loop, on the same inputs, with the same threads. MACs come from the ONNX files, so that
what is promised is what the files hold. Everything is measured in the calling process; `pipeline.profile` starts one
for each target and thread count.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import ModelProto

from edgeprune import progress
from edgeprune.devices.channel_block import LAYOUT_CHANNELS
from edgeprune.devices.device_profile import default_profile_name, load_profile, this_machine_block
from edgeprune.devices.roofline import Roofline
from edgeprune.errors import InputError
from edgeprune.lowering.record import LoweringRecord
from edgeprune.onnx_files.graph import TensorSpec, input_specs, output_specs
from edgeprune.onnx_files.model import load_model
from edgeprune.precision.formats import Precision
from edgeprune.profiling.batch import measure_batch, memory_checked
from edgeprune.profiling.causes import MachineFacts
from edgeprune.profiling.environment import current_environment
from edgeprune.profiling.result import ProfileResult, Result, Settings, load_profile_result
from edgeprune.profiling.setup import Batch, Pair, ProfiledRunner, ProfileOptions, Which, is_gpu
from edgeprune.runners import registry
from edgeprune.runners.ort import TimedOrtRunner, pinned

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
    dense: Path | None,
    pruned: Path,
    targets: Sequence[str],
    options: ProfileOptions,
    torch_modules: Mapping[Which, nn.Module] | None = None,
    notes: Mapping[str, str] | None = None,
    lowering: LoweringRecord | None = None,
    planned: Path | None = None,
    files: Mapping[str, Mapping[Which, Path]] | None = None,
    engines: Path | None = None,
) -> ProfileResult:
    """Measure two ONNX files (or one, without a baseline) on every target, with every batch size.

    The torch targets run `torch_modules`, which must be the same networks. `notes` are the plan's, by layer; `lowering`
    tells the forms of grouped layers in `pruned`, and `planned` is the network without them, as torch runs it. `files`
    are the same networks in the options' precision, by target, where it does not run the others. In `engines` a runtime
    may keep what it builds for this device.
    InputError if a target cannot be used, the two models take different inputs, or a batch size does not fit them: all
    before anything is measured.
    """
    options.check()
    macs = lowering.planned_macs() if lowering else {}
    kinds = {layer.name: layer.kind for layer in lowering.layers} if lowering else {}
    pair = Pair(None if dense is None else load_model(dense), load_model(pruned), notes or {}, macs, kinds)
    as_planned = pair if planned is None else Pair(pair.dense, load_model(planned), pair.notes)
    given: dict[Which, Path] = {"dense": dense or pruned, "pruned": pruned}
    makers = {
        target: _maker(target, (files or {}).get(target, given), pair, options, torch_modules, engines)
        for target in targets
    }
    if pair.dense is not None:
        check_same_shapes(pair.dense, pair.pruned, where=dense)
    environment = current_environment(options.threads)
    results = [
        result
        for target, make in makers.items()
        for result in profile_runners(
            make, as_planned if registry.TARGETS[target].runs == "module" else pair, target, options
        )
    ]
    settings = Settings(
        options.warmup,
        options.iterations,
        options.seed,
        options.pin,
        options.spinning,
        options.time_limit_s,
        options.interval,
    )
    return ProfileResult(environment, settings, tuple(results))


def profile_runners(make: MakeRunner, pair: Pair, target: str, options: ProfileOptions) -> list[Result]:
    """One result a batch size. `make` is called once with "pruned" and, if the pair has one, once with "dense"."""
    machine = machine_facts(target, options.threads, options.machine_profile)
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
        return [measure_batch(runners, batch, options) for batch in tracked]


def check_targets(names: Sequence[str], precision: Precision = "fp32") -> None:
    """InputError for the first target that is unknown, cannot be used on this machine, or not in this precision."""
    for name in names:
        registry.require(name, precision)


def machine_facts(target: str, threads: int, machine_profile: str | Path = "") -> MachineFacts:
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
    block = profile.channel_block.fp32 if machine_profile else this_machine_block()
    roofline, costs = Roofline.of(profile, threads) if profile.kind == "cpu" else None, profile.convolution
    if target != "cpu" or costs is None:
        return MachineFacts(block, threads, roofline=roofline)
    # The table is of ONNX Runtime's kernels.
    facts = MachineFacts(
        block, threads, off_block_rate=costs.off_block_rate, filter_rates=costs.rates, roofline=roofline
    )
    if platform.machine().lower() in ("x86_64", "amd64"):
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
    torch_modules: Mapping[Which, nn.Module] | None,
    engines: Path | None,
) -> MakeRunner:
    """The factory of a target's runners; InputError if the target is unknown or cannot be used."""
    registry.require(target, options.precision)
    modules, names = torch_modules or {}, tuple(spec.name for spec in input_specs(pair.pruned))
    sources: dict[Which, registry.Source] = {
        which: registry.Source(path, modules.get(which), names) for which, path in files.items()
    }
    registry.require_source(target, sources["pruned"])
    how = registry.OpenOptions(options.run_options(), options.precision, engines)
    return lambda which: registry.open_runner(target, sources[which], how)
