"""Data that brings a metric: targets of any structure, and what a factory may get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeprune.datasets.images import batches, load_data
from edgeprune.datasets.targets import as_targets, leaves, moved, taken
from edgeprune.errors import InputError

HEAD = """
import numpy as np
import torch

def load(split):
    images = torch.arange(6, dtype=torch.float32).reshape(6, 1, 1, 1).expand(6, 1, 4, 4)
"""


def factory(folder: Path, returned: str) -> str:
    path = folder / "mine.py"
    path.write_text(f"{HEAD}    return {returned}\n")
    return f"{path}:load"


TARGETS: dict[str, Any] = {
    "tensor": torch.arange(6).reshape(6, 1),
    "array": np.arange(6),
    "list of dictionaries": [{"boxes": torch.zeros(n, 4), "number": n} for n in range(6)],
    "dictionary": {"a": torch.arange(6), "b": list(range(6))},
    "tuple": (torch.arange(6), {"deep": np.arange(6)}),
}


@pytest.mark.parametrize("name", TARGETS)
def test_some_of_the_targets_have_the_same_structure(name: str) -> None:
    given = as_targets(TARGETS[name], 6, "here")
    for chosen in (slice(1, 4, 2), torch.tensor([1, 3])):
        some = taken(given, chosen)
        assert type(some) is type(given)
        numbers = {int(leaf.flatten()[0]) for leaf in leaves(some) if isinstance(leaf, torch.Tensor) and leaf.numel()}
        assert numbers <= {0, 1, 3}  # 0: of boxes
    assert [type(leaf) for leaf in leaves(moved(given, torch.device("cpu")))] == [type(leaf) for leaf in leaves(given)]


@pytest.mark.parametrize("wrong", [[1, 2], torch.arange(5), torch.tensor(3), "six", {"a": list(range(6)), "b": [1]}])
def test_targets_are_for_every_image(wrong: object) -> None:
    with pytest.raises(InputError, match="for 6 images"):
        as_targets(wrong, 6, "here")


def test_targets_stay_with_their_images(tmp_path: Path) -> None:
    spec = factory(tmp_path, '{"images": images, "targets": list(range(6)), "metric": max}')
    data = load_data(spec, split="train", input_shape=(1, 4, 4), num_classes=3)  # no labels: nothing to check
    assert data.task is not None
    assert data.task.higher_is_better
    generator = torch.Generator().manual_seed(0)
    for images, targets in batches(data, 4, shuffle=generator, augment=True):
        assert images[:, 0, 0, 0].tolist() == targets
        assert images.flatten(1).std() >= 0  # whole: nothing was shifted out
        assert (images == images[:, :, :1, :1]).all()
    few = load_data(spec, split="train", input_shape=(1, 4, 4), limit=2)
    assert few.labels == [0, 1]
    assert len(few) == 2


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ('{"images": images}', 'lacks "targets"'),
        ('{"images": images, "targets": [1] * 6}', 'lacks "metric"; expected (images, labels)'),
        ('{"images": images, "targets": [1] * 6, "metrics": max}', "did you mean metric"),
        ('{"images": images, "targets": [1], "metric": max}', "targets of a list of 1"),
        ('{"images": images, "targets": [1] * 6, "metric": 3}', "the metric is a int"),
        ('{"images": images, "targets": [1] * 6, "metric": dict}', "the metric is the class dict"),
        ('{"images": images, "targets": [1] * 6, "metric": max, "loss": 3}', "the loss is a int"),
        ('{"images": images[:, 0], "targets": [1] * 6, "metric": max}', "expected (N, 1, 4, 4)"),
        ("images, torch.rand(6, 4)", "targets of another kind come with a metric"),
    ],
)
def test_what_a_factory_with_a_metric_does_wrong(tmp_path: Path, returned: str, expected: str) -> None:
    with pytest.raises(InputError) as error:
        load_data(factory(tmp_path, returned), split="test", input_shape=(1, 4, 4))
    assert expected in str(error.value)
    assert "mine.py:load" in str(error.value)


def test_the_line_of_an_error_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine.py:load, line 7: the factory raised ZeroDivisionError"):
        load_data(factory(tmp_path, "1 / 0"), split="test", input_shape=(1, 4, 4))
