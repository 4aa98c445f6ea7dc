"""`edgeprune run`: inputs through a bundle, split or not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.bundles.names import MODEL, PARTITION
from edgeprune.errors import InputError
from edgeprune.io.arrays import Array, Feeds, load_array, load_arrays, save_arrays
from edgeprune.onnx_files.inputs import with_input_size
from edgeprune.onnx_files.model import load_model
from edgeprune.partitioning.executor import LocalExecutor
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner


class RunResult(msgspec.Struct, frozen=True):
    """`run --json`."""

    outputs: dict[str, tuple[int, ...]]
    """Name -> shape."""
    milliseconds: float
    devices: dict[str, float]
    """Device -> its computing time in ms; empty for an unsplit model."""
    transferred_bytes: int


def run(
    model: Path, inputs: Sequence[str], destination: Path, threads: int = 1, *, input_size: Sequence[int] = ()
) -> RunResult:
    """`edgeprune run`: one batch through an ONNX file or a bundle, on every device's own session if it is split.

    `inputs`: files of arrays, each for one input (`NAME=FILE`; where there is one input, `FILE`) or with several by
    name (.npz). `input_size` fixes what the model leaves open.
    """
    files = [_file(text) for text in inputs]
    for _, source in files:
        if source.resolve() == destination.resolve():
            raise InputError("the output would replace the input", where=destination, remedy="choose another --output")
    feeds = _read(files)
    if model.suffix == ".onnx" and not model.is_dir():
        outputs, result = _run_whole(model, feeds, threads, input_size)
    else:
        bundle = open_bundle(model)
        if input_size and bundle.has(PARTITION):
            raise InputError("is split, for one size already", where=model, remedy="leave out --input-size")
        if input_size:
            outputs, result = _run_whole(bundle.path(MODEL), feeds, threads, input_size)
        else:
            outputs, result = run_arrays(bundle, feeds, threads)
    save_arrays(destination, outputs)
    return result


def run_arrays(
    bundle: Bundle, inputs: Array | Feeds, threads: int = 1, *, unsplit: bool = False
) -> tuple[dict[str, Array], RunResult]:
    """Outputs by name for inputs (N, C, H, W), by name where there are several, and what they cost; `unsplit` runs the
    whole model of a split bundle."""
    if not bundle.has(PARTITION) or unsplit:
        return _run_whole(bundle.path(MODEL), inputs, threads)
    bundle.require_sound()
    with LocalExecutor(bundle.folder, threads) as executor:
        outputs = executor.run(_named(inputs, executor.input_names))
        stats = executor.last_run
    return outputs, RunResult(_shapes(outputs), stats.latency_ms, stats.device_ms, stats.transferred_bytes)


def _run_whole(
    path: Path, inputs: Array | Feeds, threads: int, input_size: Sequence[int] = ()
) -> tuple[dict[str, Array], RunResult]:
    model = with_input_size(load_model(path, require_conv=False), input_size, where=path) if input_size else path
    with OrtRunner(model, RunOptions(threads)) as runner:
        feeds = _named(inputs, runner.input_names)
        started = time.perf_counter()
        outputs = runner.run(feeds)
        milliseconds = (time.perf_counter() - started) * 1e3
    return outputs, RunResult(_shapes(outputs), milliseconds, {}, 0)


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
