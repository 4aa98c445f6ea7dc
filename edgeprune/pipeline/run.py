"""`edgeprune run`: inputs through a bundle, split or not."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.names import MODEL, PARTITION
from edgeprune.cluster.client import Answer, Cluster
from edgeprune.cluster.requests import ClusterError
from edgeprune.cluster.starting import Execution, opened_cluster
from edgeprune.cluster.timeline import MeasuredTimeline, measured_timeline, median_trace
from edgeprune.errors import InputError
from edgeprune.io import progress
from edgeprune.io.arrays import Array, Feeds, load_array, load_arrays, save_arrays
from edgeprune.onnx_files.inputs import with_input_size
from edgeprune.onnx_files.model import load_model
from edgeprune.partitioning.executor import LocalExecutor
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner


class Latency(msgspec.Struct, frozen=True):
    """Of the inferences that were answered, in ms."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    n: int

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Latency:
        p50, p90, p99 = (float(np.percentile(milliseconds, percent)) for percent in (50, 90, 99))
        return cls(p50, p90, p99, float(np.mean(milliseconds)), len(milliseconds))


class RunResult(msgspec.Struct, frozen=True):
    """`run --json`."""

    outputs: dict[str, tuple[int, ...]]
    """Name -> shape."""
    milliseconds: float
    """Of the first inference."""
    devices: dict[str, float]
    """Device -> its computing time in ms an inference; empty for an unsplit model."""
    transferred_bytes: int
    """Between devices, an inference."""
    executor: str = "local"
    latency: Latency | None = None
    seconds: float = 0.0
    """All inferences together."""
    failures: int = 0
    """Inferences that were not answered, or not in time."""
    dropped: int = 0
    """Of these, how many never found a device free."""
    repeated: int = 0
    """How often an inference was tried again in another way."""
    timeline: MeasuredTimeline | None = None
    """Which device did what when in the inference of median latency; None where the network was not split."""


def run(
    model: Path,
    inputs: Sequence[str],
    destination: Path,
    execution: Execution = Execution(),
    *,
    input_size: Sequence[int] = (),
) -> RunResult:
    """`edgeprune run`: one batch, or the same one several times, through an ONNX file or a bundle, on every device if
    it is split.

    `inputs`: files of arrays, each for one input (`NAME=FILE`; where there is one input, `FILE`) or with several by
    name (.npz). `input_size` fixes what the model leaves open. ClusterError if no inference was answered.
    """
    execution.check()
    files = [_file(text) for text in inputs]
    for _, source in files:
        if source.resolve() == destination.resolve():
            raise InputError("the output would replace the input", where=destination, remedy="choose another --output")
    feeds = _read(files)
    if model.suffix == ".onnx" and not model.is_dir():
        if execution.executor in ("process", "cluster"):
            remedy = "split it (`edgeprune split`), or leave --executor out"
            raise InputError("is one ONNX file", where=model, expected="a bundle for several devices", remedy=remedy)
        outputs, result = _run_whole(model, feeds, execution, input_size)
    else:
        bundle = open_bundle(model)
        if input_size and bundle.has(PARTITION):
            raise InputError("is split, for one size already", where=model, remedy="leave out --input-size")
        if input_size:
            outputs, result = _run_whole(bundle.path(MODEL), feeds, execution, input_size)
        elif execution.chosen(split=bundle.has(PARTITION)) == "local":
            outputs, result = _run_local(bundle, feeds, execution)
        else:
            outputs, result = _run_cluster(bundle, feeds, execution)
    save_arrays(destination, outputs)
    return result


def run_arrays(
    bundle: Bundle, inputs: Array | Feeds, threads: int = 1, *, unsplit: bool = False
) -> tuple[dict[str, Array], RunResult]:
    """Outputs by name for inputs (N, C, H, W), by name where there are several, and what they cost; `unsplit` runs the
    whole model of a split bundle."""
    if unsplit:
        return _run_whole(bundle.path(MODEL), inputs, Execution(threads=threads))
    return _run_local(bundle, inputs, Execution(threads=threads))


def _run_local(bundle: Bundle, inputs: Array | Feeds, execution: Execution) -> tuple[dict[str, Array], RunResult]:
    """In this process, on every device's own session if it is split."""
    if not bundle.has(PARTITION):
        return _run_whole(bundle.path(MODEL), inputs, execution)
    bundle.require_sound()
    with LocalExecutor(bundle.folder, execution.threads) as executor:
        feeds = _named(inputs, executor.input_names)
        outputs, times = _timed(lambda: executor.run(feeds), execution.repeat)
        stats = executor.last_run
    return outputs, _result(outputs, times, stats.device_ms, stats.transferred_bytes)


def _run_whole(
    path: Path, inputs: Array | Feeds, execution: Execution, input_size: Sequence[int] = ()
) -> tuple[dict[str, Array], RunResult]:
    model = with_input_size(load_model(path, require_conv=False), input_size, where=path) if input_size else path
    with OrtRunner(model, RunOptions(execution.threads)) as runner:
        feeds = _named(inputs, runner.input_names)
        outputs, times = _timed(lambda: runner.run(feeds), execution.repeat)
    return outputs, _result(outputs, times, {}, 0)


def _timed(infer: Callable[[], dict[str, Array]], repeat: int) -> tuple[dict[str, Array], list[float]]:
    """The outputs of the last inference, and all times in ms."""
    times = []
    for _ in progress.track(range(repeat), "running") if repeat > 1 else range(repeat):
        started = time.perf_counter()
        outputs = infer()
        times.append((time.perf_counter() - started) * 1e3)
    return outputs, times


def _result(outputs: Feeds, times: Sequence[float], devices: dict[str, float], moved: int) -> RunResult:
    return RunResult(_shapes(outputs), times[0], devices, moved, "local", Latency.of(times), sum(times) / 1e3)


def _run_cluster(bundle: Bundle, inputs: Feeds, execution: Execution) -> tuple[dict[str, Array], RunResult]:
    """On several processes or machines; for throughput as many inferences at a time as the devices take."""
    executor = execution.chosen(split=bundle.has(PARTITION))
    with opened_cluster(bundle, replace(execution, executor=executor)) as cluster:
        feeds = _named(inputs, cluster.input_names)
        started = time.perf_counter()
        outputs = _repeat(cluster, feeds, execution)
        seconds = time.perf_counter() - started
        stats = cluster.settled_stats()
        trace, host = median_trace(cluster.traces), cluster.host
    return outputs, RunResult(
        _shapes(outputs),
        stats.first_ms,
        {device: ms / stats.answered for device, ms in stats.compute_ms.items()},
        stats.bytes_per_inference,
        executor,
        Latency.of(stats.latencies_ms),
        seconds,
        stats.failed,
        stats.dropped,
        stats.repeated,
        None if trace is None else measured_timeline(trace, host),
    )


def _repeat(cluster: Cluster, feeds: Feeds, execution: Execution) -> dict[str, Array]:
    """The outputs of an inference that was answered; ClusterError, that of the last one, if none was."""
    outputs: dict[str, Array] | None = None
    error: ClusterError | None = None
    window = cluster.capacity if execution.goal == "throughput" else 1
    waiting: deque[Answer] = deque()
    with progress.bar("running", execution.repeat) as advance:
        for number in range(execution.repeat + window):
            if number < execution.repeat:
                waiting.append(cluster.submit(feeds))
            if waiting and (len(waiting) >= window or number >= execution.repeat):
                try:
                    outputs = waiting.popleft().result()
                except ClusterError as failed:
                    error = failed
                advance()
    if outputs is None:
        raise error or ClusterError("no inference was answered")
    return outputs


def _shapes(outputs: Feeds) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in outputs.items()}


def _file(text: str) -> tuple[str, Path]:
    """The input's name (or "") and the file, out of `NAME=FILE` or `FILE`."""
    name, equals, file = text.partition("=")
    return ("", Path(text)) if not equals or Path(text).exists() else (name, Path(file))


def _read(files: Sequence[tuple[str, Path]]) -> Feeds:
    """The arrays of all files by the names of the inputs; InputError for two of one name."""
    feeds: dict[str, Array] = {}
    for name, path in files:
        arrays = {name: load_array(path)} if name else load_arrays(path)
        for given, array in arrays.items():
            if given in feeds:
                what = f"input {given!r} is given twice" if given else "two arrays are given without a name"
                raise InputError(what, where=path, expected="--input NAME=FILE for each input")
            feeds[given] = array
    return feeds


def _named(inputs: Array | Feeds, names: Sequence[str]) -> Feeds:
    """Inputs by name. An array without a name, or under another one, is that of a model with one input."""
    feeds = {"": inputs} if isinstance(inputs, np.ndarray) else dict(inputs)
    if len(feeds) == 1 and len(names) == 1:
        return dict(zip(names, feeds.values(), strict=True))
    if "" in feeds:
        raise InputError(
            f"an array without a name, and the model has {len(names)} inputs",
            expected=f"inputs {', '.join(names)}",
            remedy="pass --input NAME=FILE for each, or a .npz file with arrays of these names",
        )
    return feeds
