"""Networks that run on one image at a time are refused where there are images, and no bug."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgeprune.datasets.images import Dataset
from edgeprune.errors import InputError
from edgeprune.training.evaluation import evaluate

NOISE = Dataset("noise", torch.randn(6, 3, 4, 4), torch.zeros(6, dtype=torch.int64), (), (0.0,) * 3, (1.0,) * 3)


class OneImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.reshape(1, -1))


def test_it_is_told() -> None:
    with pytest.raises(InputError, match="the network runs on a batch of 1 alone: on 2 images, "):
        evaluate(OneImage(), NOISE)
    assert evaluate(OneImage(), NOISE, batch_size=1).n == 6
