"""Measure dense and pruned beside each other, and put the realistic speed-up beside the theoretical one.

Both models run in turn in one loop, on the same inputs, with the same threads. MACs come from the ONNX files, so that
what is promised is what the files hold.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune import progress
from edgeprune.causes import MachineFacts
from edgeprune.device_profile import this_machine_block
from edgeprune.environment import current_environment
from edgeprune.errors import InputError
from edgeprune.lowering.record import LoweringRecord
from edgeprune.onnx_model import TensorSpec, input_specs, load_model
from edgeprune.profile_batch import measure_batch
from edgeprune.profile_result import ProfileResult, Result, Settings, load_profile_result
from edgeprune.profile_setup import Batch, Pair, ProfiledRunner, ProfileOptions, Which
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
) -> ProfileResult:
    """Measure two ONNX files (or one, without a baseline) on every target, with every batch size.

    The torch targets run `torch_modules`, which must be the same networks. `notes` are the plan's, by layer; `lowering`
    tells the forms of grouped layers in `pruned`, and `planned` is the network without them, as torch runs it. `files`
    are the same networks in the options' precision, by target, where it does not run the others.
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
        target: _maker(target, (files or {}).get(target, given), pair, options, torch_modules) for target in targets
    }
    if pair.dense is not None:
        check_same_inputs(input_specs(pair.dense), input_specs(pair.pruned), where=dense)
    environment = current_environment(options.threads)
    results = [
        result
        for target, make in makers.items()
        for result in profile_runners(
            make, as_planned if registry.TARGETS[target].runs == "module" else pair, target, options
        )
    ]
    settings = Settings(
        options.warmup, options.iterations, options.seed, options.pin, options.spinning, options.time_limit_s
    )
    return ProfileResult(environment, settings, tuple(results))


def profile_runners(make: MakeRunner, pair: Pair, target: str, options: ProfileOptions) -> list[Result]:
    """One result a batch size. `make` is called once with "pruned" and, if the pair has one, once with "dense"."""
    machine = machine_facts(target, options.threads)
    batches = [Batch.of(pair, target, size, machine) for size in options.batch_sizes]
    which: tuple[Which, ...] = ("pruned",) if pair.dense is None else ("dense", "pruned")
    with ExitStack() as stack:
        runners: dict[Which, ProfiledRunner] = {}
        for name in which:
            runners[name] = make(name)
            stack.callback(runners[name].close)
        stack.enter_context(pinned(options.pin[:1]))
        tracked = progress.track(batches, f"profiling on {target}", total=len(batches))
        return [measure_batch(runners, batch, options) for batch in tracked]


def machine_facts(target: str, threads: int) -> MachineFacts:
    """What the causes need to know of a target on this machine."""
    if target == "cpu" and platform.machine().lower() in ("x86_64", "amd64"):
        block = this_machine_block()
        # ONNX Runtime's kernels for its blocked layout take up to four blocks of filters in one pass over the input.
        return MachineFacts(block, threads, off_block="the runtime falls back to im2col", full_filters=4 * block)
    if target in ("cpu", "openvino", "torch-cpu"):
        return MachineFacts(this_machine_block(), threads)
    return MachineFacts(8, threads)  # GPUs of all makes work on tiles of 8 or more channels


def check_same_inputs(dense: Sequence[TensorSpec], pruned: Sequence[TensorSpec], *, where: object = "") -> None:
    """InputError if the baseline takes other inputs than the pruned model. Names, and names of axes, may differ."""

    def shown(specs: Sequence[TensorSpec]) -> str:
        texts = [f"{s.dtype} ({', '.join(str(d) if isinstance(d, int) else 'N' for d in s.shape)})" for s in specs]
        return f"{len(specs)} inputs: {', '.join(texts)}" if len(specs) != 1 else texts[0]

    if shown(dense) != shown(pruned):
        raise InputError(
            f"the baseline takes {shown(dense)}",
            where=where,
            expected=f"what the pruned model takes, {shown(pruned)}",
            remedy="name the dense model that was pruned",
        )


def _maker(
    target: str,
    files: Mapping[Which, Path],
    pair: Pair,
    options: ProfileOptions,
    torch_modules: Mapping[Which, nn.Module] | None,
) -> MakeRunner:
    """The factory of a target's runners; InputError if the target is unknown or cannot be used."""
    registry.require(target, options.precision)
    modules, names = torch_modules or {}, tuple(spec.name for spec in input_specs(pair.pruned))
    sources: dict[Which, registry.Source] = {
        which: registry.Source(path, modules.get(which), names) for which, path in files.items()
    }
    registry.require_source(target, sources["pruned"])
    how = registry.OpenOptions(options.run_options(), options.precision)
    return lambda which: registry.open_runner(target, sources[which], how)
