"""The two networks in another precision: converted for each target, and compared there with FP32 before they are timed.

Nothing takes the place of `model.onnx`: the converted files have names of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgeprune.bundles.names import DENSE_MODEL, MODEL
from edgeprune.errors import GateError, InputError
from edgeprune.io import progress
from edgeprune.io.arrays import Feeds, load_array
from edgeprune.onnx_files.inputs import input_specs, output_specs, static_batch
from edgeprune.onnx_files.model import load_model, save_onnx
from edgeprune.precision.formats import Precision, PrecisionRecord, require_precise, tolerance
from edgeprune.precision.half import to_half
from edgeprune.precision.quantization import to_int8
from edgeprune.profiling.batch import memory_checked
from edgeprune.profiling.setup import ProfileOptions, Which, random_feeds
from edgeprune.runners import registry
from edgeprune.runners.base import ProfiledRunner
from edgeprune.runners.target import OpenOptions, Source, Target

if TYPE_CHECKING:
    from torch import nn

CALIBRATED_ON, COMPARED_ON = 256, 500
"""Images at most."""
RANDOM_BATCHES, BATCH = 4, 32
RANDOM = "random inputs"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class PreciseModels:
    """What is run instead of the FP32 files."""

    files: Mapping[str, Mapping[Which, Path]] = field(default_factory=dict)
    """Target -> its converted files; targets that convert for themselves are left out."""
    records: tuple[PrecisionRecord, ...] = ()
    warnings: tuple[str, ...] = ()

    def refusal(self, target: str) -> GateError | None:
        """Why nothing is timed on this target: its outputs are outside the tolerance. None if they are not."""
        try:
            require_precise(record for record in self.records if record.target == target)
        except GateError as error:
            return error
        return None


@dataclass(frozen=True)
class Samples:
    """Inputs in whole batches: those that calibrate, and those on which FP32 and the other precision are compared."""

    calibrate: tuple[Feeds, ...]
    compare: tuple[Feeds, ...]
    labels: NDArray[np.int64] | None
    """Of `compare`, one after the other."""
    told: str

    def warnings(self, precision: Precision) -> tuple[str, ...]:
        """What is doubtful about a network that was converted with these."""
        if self.told != RANDOM or precision != "int8":
            return ()
        return (
            "INT8 was calibrated on random inputs: the times are right, but nothing is known of the accuracy, and the "
            "model must not be used; pass --data",
        )


def load_samples(model: ModelProto, data: str, seed: int) -> Samples:
    """Images of a data source (its train split calibrates, its test split compares) or of a .npy file with inputs
    (N, C, H, W) as the network takes them; without `data`, random inputs.

    InputError if the data is missing or does not fit the network.
    """
    batch = static_batch(model) or BATCH
    specs = input_specs(model)
    if not data:
        drawn = [random_feeds(specs, batch, seed + number) for number in range(RANDOM_BATCHES + 1)]
        feeds = [dict(zip((spec.name for spec in specs), values, strict=True)) for values in drawn]
        return Samples(tuple(feeds[1:]), (feeds[0],), None, RANDOM)
    if len(specs) != 1 or len(specs[0].shape) != 4 or not all(isinstance(size, int) for size in specs[0].shape[1:]):
        raise InputError("the network's input is no image of one size", where=data, expected="(N, C, H, W)")
    name, shape = specs[0].name, tuple(size for size in specs[0].shape[1:] if isinstance(size, int))
    if data.endswith(".npy"):
        images = _own_inputs(Path(data), shape)
        batches = _in_batches(images, name, batch)
        return Samples(batches, batches, None, Path(data).name)
    calibration, _ = _images(data, "train", shape, None, CALIBRATED_ON)
    compared, labels = _images(data, "test", shape, _classes(model), COMPARED_ON)
    told = data.partition(":")[0] if ".py:" not in data else Path(data.rpartition(":")[0]).name
    batches = _in_batches(compared, name, batch)
    known = None if labels is None else labels[: _count(batches)]
    return Samples(_in_batches(calibration, name, batch), batches, known, told)


def precise_models(
    networks: Mapping[Which, Path],
    modules: Mapping[Which, nn.Module],
    targets: Sequence[str],
    options: ProfileOptions,
    samples: Samples,
    folder: Path,
    engines: Path | None = None,
) -> PreciseModels:
    """Convert the networks into `folder` as the targets need it, run them there, and compare them with FP32.

    InputError if a target cannot be used, or a network cannot be converted or run. What is outside the tolerance is
    recorded, and is no error here: on such a target nothing is timed.
    """
    precision, run = options.precision, options.run_options()
    wanted = {name: registry.require(name, precision) for name in targets}
    files: dict[str, dict[Which, Path]] = {
        name: {which: _converted(path, which, target, precision, samples, folder) for which, path in networks.items()}
        for name, target in wanted.items()
        if target.is_given(precision)
    }
    records = []
    for which, path in networks.items():
        with closing(registry.open_runner("cpu", Source(path), OpenOptions(run))) as reference:
            names, expected = reference.input_names, _outputs(reference, samples)
        for name in wanted:
            file = files.get(name, networks)[which]
            source, how = Source(file, modules.get(which), names), OpenOptions(run, precision, engines)
            with memory_checked(name), closing(registry.open_runner(name, source, how)) as runner:
                compared = compare(expected, _outputs(runner, samples), samples.labels)
            limit = tolerance(precision)
            records.append(
                PrecisionRecord(
                    name,
                    which,
                    precision,
                    tolerance=limit,
                    passed=compared.max_rel <= limit,
                    data=samples.told,
                    file=file.name if name in files else "",
                    **compared._asdict(),
                )
            )
    return PreciseModels(files, tuple(records), samples.warnings(precision))


class Compared(NamedTuple):
    """How far outputs are from others; per cent of the inputs, as in `PrecisionRecord`."""

    max_rel: float
    agreement: float | None
    n: int
    top1: float | None = None
    top1_fp32: float | None = None


def compare(expected: Sequence[Floats], got: Sequence[Floats], labels: NDArray[np.int64] | None = None) -> Compared:
    """Outputs of the FP32 network and of another, each (n, ...), the first one being the classes' where it is (n, c).

    max_rel is infinite where something is not finite.
    """
    largest = 0.0
    for reference, other in zip(expected, got, strict=True):
        difference = float(np.abs(other.astype(np.float64) - reference).max(initial=0.0))
        scale = float(np.abs(reference).max(initial=0.0)) or 1.0
        largest = max(largest, difference / scale if np.isfinite(difference) else np.inf)
    first, second = expected[0], got[0]
    if first.ndim != 2:
        return Compared(largest, None, len(first))
    before, after = first.argmax(1), second.argmax(1)
    agreement = 100 * float((before == after).mean())
    if labels is None:
        return Compared(largest, agreement, len(first))
    top1, top1_fp32 = (100 * float((found == labels).mean()) for found in (after, before))
    return Compared(largest, agreement, len(first), top1, top1_fp32)


def is_converted(name: str) -> bool:
    """Whether a file of a bundle is one of its networks in another precision."""
    return re.fullmatch(r"\w+\.(fp16|int8|int8-symmetric)\.onnx", name) is not None


def _converted(path: Path, which: Which, target: Target, precision: Precision, samples: Samples, folder: Path) -> Path:
    """The file in the precision; the same for targets that want the same. Named as in a bundle: two loose files may
    have the same name."""
    symmetric = precision == "int8" and target.symmetric
    stem = Path(DENSE_MODEL if which == "dense" else MODEL).stem
    place = folder / f"{stem}.{precision}{'-symmetric' if symmetric else ''}.onnx"
    if not place.exists():
        model = load_model(path)
        progress.note(f"converting {path.name} to {precision}")
        converted = to_half(model) if precision == "fp16" else to_int8(model, samples.calibrate, symmetric=symmetric)
        save_onnx(converted, place)
    return place


def _outputs(runner: ProfiledRunner, samples: Samples) -> list[Floats]:
    """Every output for all of the samples, in the runner's order."""
    taken = [list(runner.run(_renamed(feeds, runner)).values()) for feeds in samples.compare]
    return [np.concatenate(parts) for parts in zip(*taken, strict=True)]


def _renamed(feeds: Feeds, runner: ProfiledRunner) -> Feeds:
    """The dense network's inputs may have other names than the pruned one's."""
    return dict(zip(runner.input_names, feeds.values(), strict=True))


def _own_inputs(path: Path, shape: tuple[int, ...]) -> Floats:
    images = load_array(path)
    if images.shape[1:] != shape or images.dtype != np.float32:
        what = f"holds {images.dtype} {images.shape}"
        raise InputError(what, where=path, expected=f"float32 {('N', *shape)}".replace("'", ""))
    if not np.isfinite(images).all():
        raise InputError("holds values that are not finite", where=path, expected="inputs as the network takes them")
    return images.astype(np.float32, copy=False)


def _images(
    data: str, split: Literal["train", "test"], shape: tuple[int, ...], classes: int | None, limit: int
) -> tuple[Floats, NDArray[np.int64] | None]:
    """Images as the network takes them, and labels; None where the data has targets of another kind."""
    from edgeprune.datasets.images import load_data, normalised  # needs torch, which a device may lack

    channels, height, width = shape
    loaded = load_data(data, split=split, input_shape=(channels, height, width), num_classes=classes, limit=limit)
    return normalised(loaded.images, loaded).numpy(), None if loaded.task else loaded.labels.numpy()


def _classes(model: ModelProto) -> int | None:
    shape = output_specs(model)[0].shape
    return shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None


def _in_batches(images: Floats, name: str, batch: int) -> tuple[Feeds, ...]:
    """Whole batches, what is left over left out; a network with a dynamic batch takes fewer than that at once."""
    if len(images) < batch:
        return ({name: images},)
    return tuple({name: images[start : start + batch]} for start in range(0, len(images) - batch + 1, batch))


def _count(batches: Sequence[Feeds]) -> int:
    return sum(len(next(iter(feeds.values()))) for feeds in batches)
