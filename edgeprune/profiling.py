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
from edgeprune.causes import MachineFacts
from edgeprune.device_profile import default_profile_name, is_importable, load_profile, this_machine_block
from edgeprune.environment import current_environment
from edgeprune.errors import InputError, unknown_name
from edgeprune.lowering.record import LoweringRecord
from edgeprune.onnx_graph import TensorSpec, input_specs, output_specs
from edgeprune.onnx_model import load_model
from edgeprune.profile_batch import measure_batch, memory_checked
from edgeprune.profile_result import ProfileResult, Result, Settings, load_profile_result
from edgeprune.profile_setup import Batch, Pair, ProfiledRunner, ProfileOptions, Which, is_gpu
from edgeprune.roofline import Roofline
from edgeprune.runners.base import Feeds
from edgeprune.runners.ort import TARGETS, OrtRunner, pinned
from edgeprune.runners.ort import targets as target_states

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Pair",
    "ProfileOptions",
    "ProfileResult",
    "Which",
    "load_profile_result",
    "profile_files",
    "profile_runners",
]

TORCH_TARGETS = ("torch-cpu", "torch-cuda")
MakeRunner = Callable[[Which], ProfiledRunner]


class TimedOrtRunner(OrtRunner):
    """An `OrtRunner` whose checks stay out of the timed region: they take a fifth of a small network's time."""

    def prepared(self, feeds: Feeds) -> Callable[[], object]:
        """See `ProfiledRunner`; the calling thread must be pinned by the caller."""
        self.run(feeds)  # what is wrong with the inputs is said here
        session, names, held = self._session, list(self.output_names), dict(feeds)
        return lambda: session.run(names, held)


def profile_files(
    dense: Path | None,
    pruned: Path,
    targets: Sequence[str],
    options: ProfileOptions,
    torch_modules: Mapping[Which, nn.Module] | None = None,
    notes: Mapping[str, str] | None = None,
    lowering: LoweringRecord | None = None,
    planned: Path | None = None,
) -> ProfileResult:
    """Measure two ONNX files (or one, without a baseline) on every target, with every batch size.

    The torch targets run `torch_modules`, which must be the same networks. `notes` are the plan's, by layer; `lowering`
    tells the forms of grouped layers in `pruned`, and `planned` is the network without them, as torch runs it.
    InputError if a target cannot be used, the two models take different inputs, or a batch size does not fit them: all
    before anything is measured.
    """
    options.check()
    macs = lowering.planned_macs() if lowering else {}
    kinds = {layer.name: layer.kind for layer in lowering.layers} if lowering else {}
    pair = Pair(None if dense is None else load_model(dense), load_model(pruned), notes or {}, macs, kinds)
    as_planned = pair if planned is None else Pair(pair.dense, load_model(planned), pair.notes)
    makers = {target: _maker(target, dense, pruned, pair, options, torch_modules) for target in targets}
    if pair.dense is not None:
        check_same_shapes(pair.dense, pair.pruned, where=dense)
    environment = current_environment(options.threads)
    results = [
        result
        for target, make in makers.items()
        for result in profile_runners(make, as_planned if target in TORCH_TARGETS else pair, target, options)
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
    batches = [Batch.of(pair, target, size, machine) for size in options.batch_sizes]
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


def check_targets(names: Sequence[str]) -> None:
    """InputError for the first target that is unknown, or cannot be used on this machine."""
    known = {state.name: state for state in target_states()}
    for name in names:
        if name not in known:
            raise unknown_name("target", name, known, remedy="`edgeprune list targets` shows all")
        if not known[name].available:
            raise InputError(
                f"{known[name].provider} cannot be used here: {known[name].reason}",
                where=f"target {name}",
                expected=f"one of those present: {', '.join(s.name for s in known.values() if s.available)}",
                remedy="install what is missing, or choose another --target",
            )


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
    block, roofline = this_machine_block(), Roofline.of(profile, threads) if profile.kind == "cpu" else None
    costs = profile.convolution
    if target != "cpu" or costs is None:
        return MachineFacts(block, threads, roofline=roofline)
    # The table is of ONNX Runtime's kernels.
    facts = MachineFacts(block, threads, "", costs.off_block_rate, costs.rates, roofline)
    blocked = platform.machine().lower() in ("x86_64", "amd64")
    return replace(facts, off_block="the runtime falls back to im2col" if blocked else MachineFacts.off_block)


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
    dense: Path | None,
    pruned: Path,
    pair: Pair,
    options: ProfileOptions,
    torch_modules: Mapping[Which, nn.Module] | None,
) -> MakeRunner:
    """The factory of a target's runners; InputError if the target is unknown or cannot be used."""
    if target not in (*TARGETS, *TORCH_TARGETS):
        raise unknown_name("target", target, (*TARGETS, *TORCH_TARGETS), remedy="`edgeprune list targets` shows all")
    if target in TARGETS:
        paths: dict[Which, Path | None] = {"dense": dense, "pruned": pruned}
        return lambda which: TimedOrtRunner(paths[which] or pruned, options.run_options(), target=target)
    if not is_importable("torch"):
        raise InputError("torch is not installed", where=f"target {target}", remedy="pip install 'edgeprune[prune]'")
    if torch_modules is None:
        raise InputError(
            "ONNX files do not run in torch",
            where=f"target {target}",
            expected="a bundle with weights",
            remedy="profile the bundle, or choose --target cpu",
        )
    from edgeprune.runners.torch_modules import TorchRunner  # torch is not installed where models only run

    modules, names = torch_modules, tuple(spec.name for spec in input_specs(pair.pruned))
    return lambda which: TorchRunner(modules[which], names, options.run_options(), target=target)
