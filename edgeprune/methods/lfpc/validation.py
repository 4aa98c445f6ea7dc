"""The images that LFPC holds out of the training data, and batches of them without end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edgeprune.datasets.images import Dataset, normalised
from edgeprune.errors import InputError


def split_off(data: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """(the images to train on, the held-out ones), drawn at random; InputError if either would have fewer than 2."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    count = round(share * len(data))
    if min(count, len(data) - count) < 2:
        raise InputError(
            f"validation_share {share:g} of {len(data)} images leaves {len(data) - count} to train on and {count} to "
            "validate with", where=data.name, expected="at least 2 of each", remedy="use more images",
        )  # fmt: skip
    kept, held = order[count:].sort().values, order[:count].sort().values
    return data.some(kept), data.some(held)


class ValidationBatches:
    """Batches in random order, shuffled anew when fewer are left than make a batch."""

    def __init__(self, data: Dataset, batch_size: int, seed: int) -> None:
        self._data, self._batch_size = data, min(batch_size, len(data))
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.long)

    def draw(self) -> tuple[Tensor, Any]:
        """(normalised images, labels) of the next batch."""
        if len(self._order) < self._batch_size:
            self._order = torch.randperm(len(self._data), generator=self._generator)
        chosen, self._order = self._order[: self._batch_size], self._order[self._batch_size :]
        drawn = self._data.some(chosen)
        return normalised(drawn.images, drawn), drawn.labels

    def state(self) -> Mapping[str, Tensor]:
        """What is left of the order, and the generator."""
        return {"validation.order": self._order, "validation.generator": self._generator.get_state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue where `state` was taken."""
        self._order = state["validation.order"]
        self._generator.set_state(state["validation.generator"])
