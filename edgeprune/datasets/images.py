"""Labelled images in memory: what is trained on, evaluated on and calibrated with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from edgeprune.datasets import sources
from edgeprune.datasets.cifar10 import cifar10
from edgeprune.datasets.names import check_source
from edgeprune.datasets.sources import Images, balanced
from edgeprune.datasets.targets import taken
from edgeprune.datasets.task import Task
from edgeprune.datasets.user_data import from_factory
from edgeprune.errors import InputError
from edgeprune.io.progress import note
from edgeprune.io.user_code import is_file_spec

Split = Literal["train", "test"]
Piece = Callable[[int], slice]
"""Of a batch of so many images, those that are wanted here: a slice with both ends."""

# The values that the public CIFAR checkpoints were trained with.
RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Dataset:
    """Images, labels, and how the images become a network's input: (image - mean) / std a channel."""

    name: str
    images: Tensor
    """(N, C, H, W): uint8 from 0 to 255, normalised as value / 255, or float32, taken as it is before mean and std."""
    labels: Any
    """A tensor (N,) int64; with a task, targets of any structure (`datasets.targets`)."""
    classes: tuple[str, ...]
    """Names by label; empty if the source has none."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    may_flip: bool = True
    """Whether a mirrored image still shows its class."""
    task: Task | None = None
    """What a network is held against in place of one class an image."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    def first(self, count: int) -> Dataset:
        """The first `count` samples."""
        return self.some(slice(count))

    def some(self, chosen: slice | Tensor) -> Dataset:
        """The samples of a slice, or with these numbers (n,)."""
        return replace(self, images=self.images[chosen], labels=taken(self.labels, chosen))


def load_data(
    spec: str,
    *,
    split: Split,
    input_shape: tuple[int, int, int],
    num_classes: int | None = None,
    limit: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Dataset:
    """Load one split of a data source (`names.SOURCES`) with images of `input_shape` (C, H, W).

    - `digits`: scikit-learn's handwritten digits, 1437 to train and 360 to test, enlarged bilinearly.
    - `cifar10:DIR`: CIFAR-10's binary or Python version.
    - `imagefolder:DIR`: DIR/train/CLASS/*.jpg and DIR/test/CLASS/*.jpg (or val), or DIR/CLASS/*.jpg, of which every
      tenth image of each class is held out to test. Classes are numbered alphabetically. Images of another size are
      cropped to the shape's aspect, then resized.
    - `path/to/file.py:factory`: factory(split) returns (images, labels): uint8 images, or floats already normalised;
      or {"images": ..., "targets": ..., "metric": ..., "loss": ...} with what `datasets.task` says.

    With `num_classes`, the network's, labels must fit it; where the source has fewer classes, a note says what its
    labels stand for. With `limit`, at most so many samples, the classes taken in turn (with a metric, the first).
    `mean` and `std`, one value a channel, default to what public CIFAR and ImageNet checkpoints use for RGB, 0.5 else
    (and for digits), 0 and 1 for float images.
    Raises InputError if the source is unknown, missing, damaged, or does not give such images.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit of {limit} images", where=spec, expected="at least 1")
    check_source(spec)
    kind, _, folder = spec.partition(":")
    if is_file_spec(spec):
        loaded = from_factory(spec, split, input_shape)
    elif spec == "digits":
        loaded = sources.digits(split, input_shape)
    else:
        load = cifar10 if kind == "cifar10" else sources.image_folder
        loaded = load(folder, split, input_shape, limit)
    if not len(loaded.images):
        raise InputError(f"holds no images in its {split} split", where=spec)
    if loaded.task is not None:
        num_classes = None
    if num_classes is not None and split == "test":  # which every verb loads, and once
        _note_unused_classes(spec, loaded, num_classes)
    if limit is not None and len(loaded.images) > limit:
        chosen = slice(limit) if loaded.task is not None else balanced(loaded.labels, limit)
        loaded = loaded._replace(images=loaded.images[chosen], labels=taken(loaded.labels, chosen))
    default_mean, default_std = _default_normalisation(spec, loaded, input_shape[0])
    dataset = Dataset(
        name=f"{spec} ({split})",
        images=loaded.images,
        labels=loaded.labels,
        classes=loaded.classes,
        mean=_per_channel("mean", mean, default_mean),
        std=_per_channel("std", std, default_std),
        may_flip=spec != "digits",
        task=loaded.task,
    )
    if num_classes is not None:
        check_labels(dataset, num_classes)
    return dataset


def _note_unused_classes(spec: str, loaded: Images, num_classes: int) -> None:
    present = len(loaded.classes) or int(loaded.labels.max()) + 1
    if 0 < present < num_classes:
        named = ", ".join(loaded.classes[:3]) + (", ..." if present > 3 else "")
        numbered = f" are numbered by the folders present ({named}) and" if loaded.classes else ""
        note(
            f"{spec} has {present} classes and the network {num_classes}: labels 0..{present - 1}{numbered} must stand "
            f"for the network's first {present} classes, and no image asks for its other outputs (a network trained "
            f"anew leaves them out with --num-classes {present})"
        )


def _default_normalisation(spec: str, loaded: Images, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if loaded.images.dtype != torch.uint8:
        return (0.0,) * channels, (1.0,) * channels
    if channels == 3 and spec != "digits":
        return RGB_MEAN, RGB_STD
    return (0.5,) * channels, (0.5,) * channels


def _per_channel(what: str, given: Sequence[float] | None, default: tuple[float, ...]) -> tuple[float, ...]:
    if given is None:
        return default
    if len(given) != len(default) or (what == "std" and min(given) <= 0):
        positive = " above 0" if what == "std" else ""
        raise InputError(f"{what} {tuple(given)}", expected=f"{len(default)} values{positive}, one a channel")
    return tuple(float(value) for value in given)


def check_labels(dataset: Dataset, num_classes: int) -> None:
    """InputError unless every label is in 0..num_classes - 1."""
    low, high = int(dataset.labels.min()), int(dataset.labels.max())
    if low < 0 or high >= num_classes:
        raise InputError(
            f"has labels {low}..{high}, and the network has {num_classes} classes", where=dataset.name,
            expected=f"labels 0..{num_classes - 1}", remedy="use the data that the network was trained on",
        )  # fmt: skip


def _whole(count: int) -> slice:
    return slice(0, count)


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    shuffle: torch.Generator | None = None,
    augment: bool = False,
    piece: Piece = _whole,
) -> Iterator[tuple[Tensor, Any]]:
    """Batches of normalised images (n, C, H, W) float32 and their labels; the last batch may be smaller.

    With a generator, in random order; with `augment` too (which needs one), randomly cropped and, where the data allows
    it, mirrored. Targets of a task would not move along, so that its images stay as they are. Of each batch only its
    `piece` is given, by default all of it: order and augmentation are those of the whole batch, so that pieces of it
    that are drawn apart, with generators in the same state, fit together.
    """
    if augment and shuffle is None:
        raise ValueError("augmentation needs a generator")
    order = None if shuffle is None else torch.randperm(len(dataset), generator=shuffle)
    for start in range(0, len(dataset), batch_size):
        count = min(batch_size, len(dataset) - start)
        mine = piece(count)
        place = slice(start + mine.start, start + mine.stop)
        if order is None:
            images, labels = dataset.images[place], taken(dataset.labels, place)
        else:
            chosen = order[place]
            images, labels = torch.from_numpy(dataset.images.numpy()[chosen.numpy()]), taken(dataset.labels, chosen)
        if augment and shuffle is not None and dataset.task is None:
            images = augmented(images, shuffle, flip=dataset.may_flip, batch=(count, mine))
        yield normalised(images, dataset), labels


def normalised(images: Tensor, dataset: Dataset) -> Tensor:
    """(n, C, H, W) uint8 or float -> float32, (x - mean) / std a channel, where x is uint8 / 255."""
    full_scale = 255.0 if images.dtype == torch.uint8 else 1.0
    mean, std = (np.array(v, np.float32)[:, None, None] * np.float32(full_scale) for v in (dataset.mean, dataset.std))
    # NumPy needs one core for a fraction of a millisecond, where torch would wake (and wait for) all of them.
    values = np.subtract(images.numpy(), mean, dtype=np.float32)
    return torch.from_numpy(np.divide(values, std, out=values))


def augmented(
    images: Tensor, generator: torch.Generator, *, flip: bool, batch: tuple[int, slice] | None = None
) -> Tensor:
    """Each image of (n, C, H, W) shifted by up to an eighth of its height (4 pixels of 32), zeros moving in.

    With `flip`, each is mirrored with probability 1/2. `batch`: of how many images they are which, if not all: what is
    drawn is drawn for the whole batch.
    """
    count, mine = batch or (len(images), slice(None))
    height, width = images.shape[2:]
    margin = max(height // 8, 1)
    sides = (margin, margin)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), sides, sides))  # (n, C, H + 2 margin, W + 2 margin)
    windows = sliding_window_view(padded, (height, width), axis=(2, 3))  # (n, C, 2 margin + 1, 2 margin + 1, H, W)
    top, left = torch.randint(0, 2 * margin + 1, (2, count), generator=generator)[:, mine].numpy()
    chosen = windows[np.arange(len(images)), :, top, left]  # (n, C, H, W): NumPy copies whole rows, torch single bytes
    if flip:
        mirrored = (torch.rand(count, generator=generator) < 0.5)[mine].numpy()
        chosen[mirrored] = chosen[mirrored][..., ::-1]
    return torch.from_numpy(chosen)


def mixed(images: Tensor, generator: torch.Generator) -> Tensor:
    """(n, C, H, W) floats: in one batch of five as they are, else each blended with another one (Zhang et al., mixup,
    ICLR 2018), or with a rectangle of another one in its place (Yun et al., CutMix, ICCV 2019). For training that asks
    a network, not labels, what the result shows."""
    kind = int(torch.randint(5, (), generator=generator))
    share = float(torch.rand((), generator=generator))
    if kind == 0:
        return images
    others = images.flip(0)
    if kind < 3:
        return images + share * (others - images)
    height, width = images.shape[2:]
    rows, columns = (max(round(size * math.sqrt(share)), 1) for size in (height, width))
    top = int(torch.randint(height - rows + 1, (), generator=generator))
    left = int(torch.randint(width - columns + 1, (), generator=generator))
    images = images.clone()
    images[..., top : top + rows, left : left + columns] = others[..., top : top + rows, left : left + columns]
    return images
