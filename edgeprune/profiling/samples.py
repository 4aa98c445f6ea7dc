"""Inputs that calibrate a network in another precision, and those on which it is compared with FP32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from edgeprune.errors import InputError
from edgeprune.io.arrays import Feeds, load_array
from edgeprune.onnx_files.inputs import input_specs, output_specs, static_batch
from edgeprune.precision.formats import Precision
from edgeprune.profiling.setup import random_feeds

CALIBRATED_ON, COMPARED_ON = 256, 500
"""Images at most."""
RANDOM_BATCHES, BATCH = 4, 32
RANDOM = "random inputs"

LIKE_PIXELS = 16.0
"""Normalised images seldom reach it; those from 0 to 255 nearly always."""
BEYOND = 1.25
"""How much larger compared inputs may be than those that calibrated, before it is told."""

Floats = NDArray[np.float32]


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
        if precision != "int8":
            return ()
        if self.told == RANDOM:
            return (
                "INT8 was calibrated on random inputs: the times are right, but nothing is known of the accuracy, and "
                "the model must not be used; pass --data",
            )
        (low, high), (least, most) = _range(self.calibrate), _range(self.compare)
        found = []
        if low >= 0 and high > LIKE_PIXELS:
            found.append(
                f"the inputs that calibrated INT8 run from {low:g} to {high:g}, like pixels that nobody normalised: "
                "they have to be as the network takes them"
            )
        if max(-least, most) > BEYOND * max(-low, high):
            found.append(
                f"the inputs that calibrated INT8 run from {low:.3g} to {high:.3g}, those compared from {least:.3g} to "
                f"{most:.3g}: what lies beyond is cut"
            )
        return tuple(found)


def load_samples(
    model: ModelProto, data: str, seed: int, *, calibrate: int = CALIBRATED_ON, compare: int = COMPARED_ON
) -> Samples:
    """Images of a data source (its train split calibrates, its test split compares) or of a .npy file with inputs
    (N, C, H, W) as the network takes them; without `data`, random inputs. `calibrate` and `compare`: images at most.

    InputError if the data is missing or does not fit the network.
    """
    if min(calibrate, compare) < 1:
        raise InputError(f"--calibration-images {calibrate} is out of range", expected="1 or more")
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
        return Samples(_in_batches(images[:calibrate], name, batch), batches, None, Path(data).name)
    calibration, _ = _images(data, "train", shape, None, calibrate)
    compared, labels = _images(data, "test", shape, _classes(model), compare)
    told = data.partition(":")[0] if ".py:" not in data else Path(data.rpartition(":")[0]).name
    batches = _in_batches(compared, name, batch)
    known = None if labels is None else labels[: _count(batches)]
    return Samples(_in_batches(calibration, name, batch), batches, known, told)


def rebatched(batches: Sequence[Feeds], size: int) -> tuple[Feeds, ...]:
    """The same inputs in batches of this size, as many as are whole; where they are too few for one, they repeat."""
    joined = {name: np.concatenate([feeds[name] for feeds in batches]) for name in batches[0]}
    joined = {name: np.resize(all_, (max(len(all_), size), *all_.shape[1:])) for name, all_ in joined.items()}
    count = min(map(len, joined.values()))
    return tuple(
        {name: values[start : start + size] for name, values in joined.items()}
        for start in range(0, count - size + 1, size)
    )


def _range(batches: Sequence[Feeds]) -> tuple[float, float]:
    """The least and the largest value of the first input."""
    values = [next(iter(feeds.values())) for feeds in batches]
    return min(float(part.min()) for part in values), max(float(part.max()) for part in values)


def _own_inputs(path: Path, shape: tuple[int, ...]) -> Floats:
    images = load_array(path)
    if images.shape[1:] != shape or images.dtype != np.float32:
        what = f"holds {images.dtype} {images.shape}"
        raise InputError(what, where=path, expected=f"float32 {('N', *shape)}".replace("'", ""))
    if not len(images):
        raise InputError("holds no inputs", where=path, expected="one or more")
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
