"""Where images come from: scikit-learn's digits and image folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from edgeprune.datasets.task import Task
from edgeprune.errors import InputError
from edgeprune.io.progress import note, track

Shape = tuple[int, int, int]

_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
HELD_OUT = 10
"""Of a folder that is not divided, one image of so many of each class tests."""
_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What PIL raises for damaged files (a broken PNG is a SyntaxError)."""


class Images(NamedTuple):
    """Images (N, C, H, W), labels (N,) int64 and the classes' names, empty if unknown."""

    images: Tensor
    labels: Any
    """With a task, targets of any structure (`datasets.targets`)."""
    classes: tuple[str, ...]
    task: Task | None = None


def balanced(labels: Tensor, count: int) -> Tensor:
    """Positions of `count` labels, each class's first, then each class's second, ...; in ascending order."""
    rank = torch.empty_like(labels)
    for label in set(labels.tolist()):
        where = (labels == label).nonzero().squeeze(1)
        rank[where] = torch.arange(len(where))
    return rank.argsort(stable=True)[:count].sort().values


def digits(split: str, shape: Shape) -> Images:
    """scikit-learn's 1797 digits of 8x8 pixels, split 1437 / 360 with the classes' shares kept."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    train, test = train_test_split(np.arange(len(bunch.target)), test_size=360, stratify=bunch.target, random_state=0)
    chosen = train if split == "train" else test
    grey = torch.from_numpy(bunch.images[chosen]).float()[:, None] * (255 / 16)  # (N, 1, 8, 8), from 0 to 255
    images = resized(grey, shape).expand(-1, shape[0], -1, -1).contiguous()
    return Images(images, torch.from_numpy(bunch.target[chosen]).long(), tuple(str(n) for n in range(10)))


def resized(images: Tensor, shape: Shape) -> Tensor:
    """Values from 0 to 255 -> uint8 of the shape's height and width, bilinearly."""
    if images.shape[2:] != shape[1:]:
        size = shape[1:]
        images = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return images if images.dtype == torch.uint8 else images.round().clamp(0, 255).to(torch.uint8)


def image_folder(folder: str, split: str, shape: Shape, limit: int | None) -> Images:
    """One folder a class, decoded once to uint8. Up to 1% of unreadable files are named and left out.

    Where there are no folders for the splits, every tenth image of each class, by name, from the first on, is the test
    split, and all others are the train split.
    """
    root = Path(folder).expanduser()
    place, classes = _split_folder(root, split)
    files, labels = _listed(place, classes, share=split if place == root else "")
    if limit is not None and limit < len(files):
        chosen = balanced(labels, limit)
        files, labels = [files[int(i)] for i in chosen], labels[chosen]
    needed, free = len(files) * shape[0] * shape[1] * shape[2], psutil.virtual_memory().available
    if needed > 0.8 * free:
        raise InputError(
            f"{len(files)} images need {needed / 1e9:.1f} GB of memory", where=place,
            expected=f"at most {0.8 * free / 1e9:.1f} GB", remedy="use fewer images or a smaller input size",
        )  # fmt: skip
    images = torch.empty(len(files), *shape, dtype=torch.uint8)
    faults = list(_decode_all(files, images))
    if faults:
        listed = ", ".join(str(files[n].relative_to(place)) for n in faults[:5]) + (", ..." if len(faults) > 5 else "")
        if len(faults) > 0.01 * len(files):
            raise InputError(
                f"{len(faults)} of {len(files)} images cannot be read: {listed}", where=place,
                expected="at most 1%", remedy="repair or remove them",
            )  # fmt: skip
        note(f"{place}: left out {len(faults)} of {len(files)} images that cannot be read: {listed}")
        sound = torch.ones(len(files), dtype=torch.bool)
        sound[faults] = False
        images, labels = images[sound], labels[sound]
    return Images(images, labels, tuple(classes))


def _split_folder(root: Path, split: str) -> tuple[Path, list[str]]:
    """The folder that holds the split's class folders, and the classes of all splits."""
    if not root.is_dir():
        raise InputError(
            "no such folder", where=root, expected="a folder with train/CLASS and test/CLASS folders of images"
        )
    splits = [root / name for name in ("train", "test", "val") if (root / name).is_dir()]
    if not splits:
        if split == "test":  # which every verb loads, and once
            note(
                f"{root} has no train and test folders: every {HELD_OUT}th image of each class, by name, is held out "
                "to test, and the others train"
            )
        return root, _class_folders(root)
    wanted = [place for place in splits if place.name in (("train",) if split == "train" else ("test", "val"))]
    if not wanted:
        raise InputError(
            f"has no {split} folder", where=root, expected="train/CLASS and test/CLASS (or val/CLASS) folders"
        )
    return wanted[0], sorted({name for place in splits for name in _class_folders(place)})


def _class_folders(place: Path) -> list[str]:
    names = sorted(p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))
    if not names:
        raise InputError("has no class folders", where=place, expected="one folder of images for each class")
    return names


def _listed(place: Path, classes: list[str], *, share: str) -> tuple[list[Path], Tensor]:
    """The split's image files in a fixed order, and their labels. A class may be absent here, but not empty.

    `share` is the split to take of a folder that holds both, and empty where the folder is a split.
    """
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if not (place / name).is_dir():
            continue
        found = sorted(p for p in (place / name).iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES)
        if not found:
            raise InputError("has no images", where=place / name, expected="files such as *.jpg or *.png")
        if share == "test":
            found = found[::HELD_OUT]
        elif share:
            found = [path for number, path in enumerate(found) if number % HELD_OUT]
        if not found:
            raise InputError(
                "has one image, which is held out to test", where=place / name, expected="two or more to train with",
                remedy="add images, or divide them into train/CLASS and test/CLASS folders",
            )  # fmt: skip
        files += found
        labels += [label] * len(found)
    return files, torch.tensor(labels)


def _decode_all(files: list[Path], images: Tensor) -> Iterator[int]:
    """Decode every file into its place in `images` (N, C, H, W); yields the positions of files that cannot be read."""
    channels, height, width = images.shape[1:]
    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise InputError(f"the network takes {channels} channels", expected="1 or 3 for a folder of images")

    def decode(number: int) -> bool:
        try:
            with Image.open(files[number]) as opened:
                image = _eight_bit(opened).convert(mode)
        except _UNREADABLE:
            return False
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image).reshape(height, width, channels)
        images[number] = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        return True

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # PIL decodes without holding the GIL
        done = pool.map(decode, range(len(files)))
        for number, fine in enumerate(track(done, f"reading {len(files)} images", total=len(files))):
            if not fine:
                yield number


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey scaled to 8 bits, which PIL would clip. ValueError for the modes whose range is not known."""
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range")
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
