"""`edgeprune train`: from an architecture (or a checkpoint) and data to a bundle, plain or with a method at work.

While it runs, the folder holds the checkpoint, the log and the tickets; it becomes a bundle in one step at the end.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from edgeprune.bundles.bundle import Bundle, is_bundle, open_bundle
from edgeprune.bundles.manifest import SCHEMA_VERSION, Accuracy, Count, Manifest
from edgeprune.bundles.names import DENSE_WEIGHTS, PLAN
from edgeprune.bundles.writing import finished_bundle, write_manifest
from edgeprune.datasets.images import Dataset
from edgeprune.deployment.exporting import manifest_of
from edgeprune.errors import InputError
from edgeprune.graph import Graph
from edgeprune.io import progress
from edgeprune.methods import TrainedMethod
from edgeprune.pipeline.output import Output
from edgeprune.plans.plan import load_plan
from edgeprune.pruning.images import accuracy_of, dataset, public_data_name
from edgeprune.pruning.network import Network, environment, load_network, public_arch, save_source
from edgeprune.pruning.options import NetworkSource
from edgeprune.pruning.pruned import (
    Pruned,
    carried_out,
    open_pruned,
    save_pruned,
    save_weights,
)
from edgeprune.pruning.while_training import MethodChoice, at_work
from edgeprune.tracing.trace import trace
from edgeprune.training import collectives
from edgeprune.training.evaluation import evaluate
from edgeprune.training.hooks import TrainingHooks
from edgeprune.training.loop import TrainResult, check_task, fit
from edgeprune.training.ranks import Ranks
from edgeprune.training.run_folder import check_place, interruptible, locked, remove_run
from edgeprune.training.settings import TrainSettings
from edgeprune.training.state import LOG, EpochRecord, RunFiles, flat, read_log, require_same_run


@dataclass(frozen=True)
class TrainOptions:
    """What to train on, and how."""

    data: str
    """digits, imagefolder:DIR, cifar10:DIR or path/to/file.py:factory."""
    training: TrainSettings
    method: MethodChoice | None = None
    resume: bool = False


class TrainSummary(msgspec.Struct, frozen=True):
    """`train --json`."""

    epochs: int
    accuracy: Accuracy
    macs: Count | None
    params: Count | None
    seconds: float
    """Of the whole run: the epochs of earlier parts, and all of this one."""
    plan_sha256: str
    """Empty without a method."""
    history: tuple[EpochRecord, ...]


@dataclass(frozen=True)
class TrainOutcome:
    """What `train` wrote."""

    bundle: Bundle
    summary: TrainSummary
    pruned: Pruned | None = None
    """The pruned network, where it is one; None, too, where a run that is to be resumed had ended before."""


def train(source: NetworkSource, options: TrainOptions, output: Output) -> TrainOutcome:
    """`edgeprune train`: train, and write a bundle; InputError before any long work for what cannot be done.

    A stopped run leaves its last epoch's checkpoint in the folder, and `Interrupted` says how to go on. Of a run that
    is to be resumed and has ended, what it wrote is given again. Of several ranks the first alone reads and writes the
    folder; the others train in step with it and end (SystemExit).
    """
    options.training.check()
    if options.method is not None:
        options.method.settings()
    if not Ranks.here().is_first:
        _follow(source, options, output)
    return _lead(source, options, output)


def _follow(source: NetworkSource, options: TrainOptions, output: Output) -> None:
    """Train in step with the first rank, if it does not find that the run has ended before."""
    subject, data, test = _prepared(source, options)
    if collectives.of_first(bytes):
        files = RunFiles(output.folder, options.resume, subject.described(options))
        with interruptible(output.folder, options.training.epochs):
            fit(subject.model, data, options.training, hooks=subject.hooks, test=test, files=files)
    collectives.leave_to_first()


def _lead(source: NetworkSource, options: TrainOptions, output: Output) -> TrainOutcome:
    out, overwrite = output.folder, output.overwrite
    started = time.perf_counter()
    if options.resume and is_bundle(out):
        return _finished(out, source, options)
    check_place(out, resume=options.resume, overwrite=overwrite)
    subject, data, test = _prepared(source, options)
    with locked(out), interruptible(out, options.training.epochs):
        if options.resume and is_bundle(out):  # another process may have ended there
            return _finished(out, source, options)
        check_place(out, resume=options.resume, overwrite=overwrite)
        if overwrite and not options.resume:
            remove_run(out)
        collectives.of_first(lambda: b"train")
        files = RunFiles(out, options.resume, subject.described(options))
        result = fit(subject.model, data, options.training, hooks=subject.hooks, test=test, files=files)
        collectives.leave_to_first()
        pruned, accuracy = _outcome(subject, result, test, options.data)
        manifest = _manifest(subject, pruned, options)
        earlier = sum(record.seconds for record in result.history[: result.resumed_after])
        seconds = round(earlier + time.perf_counter() - started, 3)
        facts = _training_facts(options) | {"seconds": seconds}
        manifest = msgspec.structs.replace(manifest, accuracy=accuracy, training=facts)
        kept = [LOG, *(path.relative_to(out).as_posix() for path in result.tickets)]
        with finished_bundle(out, kept) as stage:
            if pruned is None:
                save_weights(result.model, stage / DENSE_WEIGHTS)
                save_source(subject.network, stage)
            else:
                save_pruned(pruned, stage)
            manifest = write_manifest(stage, manifest)
    bundle = open_bundle(out)
    return TrainOutcome(bundle, _summary(bundle, accuracy, result.history), pruned)


def _prepared(source: NetworkSource, options: TrainOptions) -> tuple[_Subject, Dataset, Dataset]:
    """What is trained, on what, and what it is tested on."""
    subject = _subject(source, options)
    data, test = (dataset(options.data, split, subject.network) for split in ("train", "test"))
    if data.task is not None:
        check_task(data.task, options.training)
    return subject, data, test


def _summary(bundle: Bundle, accuracy: Accuracy, history: tuple[EpochRecord, ...]) -> TrainSummary:
    manifest = bundle.manifest
    seconds = manifest.training.get("seconds", sum(record.seconds for record in history))
    plan_hash = load_plan(bundle.path(PLAN)).sha256() if bundle.has(PLAN) else ""
    return TrainSummary(len(history), accuracy, manifest.macs, manifest.params, seconds, plan_hash, history)


def _finished(out: Path, source: NetworkSource, options: TrainOptions) -> TrainOutcome:
    """What a run came to that is to be resumed and has ended; InputError if the bundle is of another run."""
    collectives.of_first(bytes)  # nothing for the others to do
    bundle = open_bundle(out)
    manifest = bundle.manifest
    if not manifest.training or manifest.accuracy is None:
        raise InputError(
            "holds a bundle that `edgeprune train` did not write: there is nothing to resume", where=out,
            remedy="choose another -o/--out; --from DIR trains on from a bundle's weights",
        )  # fmt: skip
    asked = _training_facts(options) | {"architecture": public_arch(source.arch) or manifest.arch}
    told = {**manifest.training, "architecture": manifest.arch}
    # What an older version did not write down cannot be compared.
    require_same_run(out, {name: told.get(name, value) for name, value in asked.items()}, asked)
    progress.note(f"{out}: finished already, after all of its {options.training.epochs} epochs")
    return TrainOutcome(bundle, _summary(bundle, manifest.accuracy, read_log(bundle.path(LOG))))


@dataclass(frozen=True)
class _Subject:
    """What is trained: a network, plain or with a method at work, or one that was pruned before."""

    network: Network
    graph: Graph | None
    from_checkpoint: bool
    method: TrainedMethod | None = None
    pruned: Pruned | None = None
    device_profile: str = ""
    """Device type that the network is for; empty: this machine's."""

    @property
    def model(self) -> nn.Module:
        return self.network.model if self.pruned is None else self.pruned.model

    @property
    def hooks(self) -> TrainingHooks | None:
        return None if self.method is None else self.method.hooks

    def described(self, options: TrainOptions) -> dict[str, Any]:
        """What must be the same to resume, beside the training's own settings."""
        method = {} if options.method is None else options.method.described()
        plan = {} if self.pruned is None else {"plan": self.pruned.plan.sha256()}
        return {"architecture": self.network.public_arch, **method, **plan}


def _subject(source: NetworkSource, options: TrainOptions) -> _Subject:
    folder = source.checkpoint
    if folder is not None and folder.is_dir() and (bundle := open_bundle(folder)).has(PLAN):
        if options.method is not None:
            raise InputError(
                "is pruned already", where=folder, expected="a checkpoint, or a bundle of plain training",
                remedy="leave out --method to train the pruned network on",
            )  # fmt: skip
        pruned = open_pruned(bundle, arch=source.arch)
        return _Subject(pruned.network, pruned.graph, True, pruned=pruned)
    network = load_network(source)
    graph = _graph(network, needed=options.method is not None)
    method = at_work(options.method, network, graph, options.training.epochs) if options.method and graph else None
    device_profile = options.method.device_profile if options.method else ""
    return _Subject(network, graph, source.checkpoint is not None, method, device_profile=device_profile)


def _outcome(subject: _Subject, result: TrainResult, test: Dataset, data: str) -> tuple[Pruned | None, Accuracy]:
    """The pruned network, if it is one, and its accuracy."""
    if subject.pruned is not None:
        before = subject.pruned.accuracy
        dense = evaluate(subject.network.model, test)
        start = None if before is None else before.pruned
        accuracy = accuracy_of(dense, evaluate(result.model, test), data, before=start)
        return dataclasses.replace(subject.pruned, model=result.model, accuracy=accuracy), accuracy
    if subject.method is None or subject.graph is None:
        trained = evaluate(result.model, test)
        return None, accuracy_of(trained, trained, data)
    home = subject.network if subject.from_checkpoint else dataclasses.replace(subject.network, model=result.model)
    return _cut(subject.method, result, home, subject.graph, test, data, subject.device_profile)


def _cut(
    method: TrainedMethod,
    result: TrainResult,
    network: Network,
    graph: Graph,
    test: Dataset,
    data: str,
    device_profile: str,
) -> tuple[Pruned, Accuracy]:
    """Cut out what the method decided; accuracy of the start (or the trained network), as trained in full shape, and
    cut."""
    started = time.perf_counter()
    pruned = carried_out(method.result(result.model), result.model, network, graph, started, device_profile)
    # After its last epoch: at the end, C-SGD makes filters equal, which may cost accuracy if they were not.
    full, dense, small = _last_score(result), evaluate(network.model, test), evaluate(pruned.model, test)
    written = "{:.2f}%" if test.task is None else "{:.4g}"
    whole, cut = written.format(full), written.format(small.value)
    progress.note(f"{small.name} {whole} as trained in full shape, {cut} with the pruned channels cut out")
    accuracy = accuracy_of(dense, small, data, full_shape=full)
    return dataclasses.replace(pruned, accuracy=accuracy), accuracy


def _last_score(result: TrainResult) -> float:
    score = result.history[-1].test_accuracy
    assert score is not None  # `fit` had test data
    return score


def _manifest(subject: _Subject, pruned: Pruned | None, options: TrainOptions) -> Manifest:
    if pruned is not None:
        return manifest_of(pruned)
    network, graph = subject.network, subject.graph
    return Manifest(
        schema_version=SCHEMA_VERSION,
        edgeprune_version=metadata.version("edgeprune"),
        arch=network.public_arch,
        seed=options.training.seed,
        input_shape=network.input_shape,
        num_classes=network.num_classes,
        macs=Count(graph.macs, graph.macs) if graph else None,
        params=Count(graph.params, graph.params) if graph else None,
        environment=environment(),
    )


def _training_facts(options: TrainOptions) -> dict[str, Any]:
    """What was asked of the run, by flat names and without local paths."""
    method = {} if options.method is None else options.method.described()
    facts = flat({**dataclasses.asdict(options.training), **method, "data": public_data_name(options.data)})
    return {name: public_arch(value) if isinstance(value, str) else value for name, value in facts.items()}


def _graph(network: Network, *, needed: bool) -> Graph | None:
    """The network's graph; None, saying so, where it cannot be traced and no method needs it."""
    try:
        return trace(network.model, network.example_input(1)).graph
    except InputError as error:
        if needed:
            raise
        progress.note(f"this network can be trained, but not pruned: {error}")
        return None
