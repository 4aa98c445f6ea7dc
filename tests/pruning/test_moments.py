"""What a layer reads and gives, summed up: against columns by hand in float64, for every way to lay a kernel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.pruning.moments import Fitted, moments

LAYERS: dict[str, Fitted] = {
    "1x1": nn.Conv2d(3, 4, 1),
    "strided 1x1": nn.Conv2d(3, 4, 1, stride=2),
    "strided": nn.Conv2d(3, 4, 3, stride=2, padding=1),
    "uneven": nn.Conv2d(3, 4, (1, 3), stride=(2, 1), padding=(0, 2)),
    "dilated": nn.Conv2d(3, 4, 3, dilation=2, padding=1),
    "same": nn.Conv2d(3, 4, 3, padding="same"),
    "same, more on one side": nn.Conv2d(3, 4, 4, padding="same"),
    "reflected": nn.Conv2d(3, 4, 3, padding=2, padding_mode="reflect"),
    "circular": nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
    "linear": nn.Linear(5, 4),
    "over tokens": nn.Linear(6, 4),
}
READ = {"linear": (7, 5), "over tokens": (7, 8, 6)}


def columns(layer: Fitted, x: Tensor) -> Tensor:
    """(columns, n): the layer's own response to weights that pick one number each."""
    count = layer.weight[0].numel()
    picking = torch.eye(count, dtype=torch.float64)
    if isinstance(layer, nn.Linear):
        return F.linear(x, picking).reshape(-1, count).T
    one = nn.Conv2d(
        3, count, layer.kernel_size, layer.stride, layer.padding, layer.dilation, 1, False, layer.padding_mode,
        dtype=torch.float64,
    )  # fmt: skip
    one.weight.data = picking.reshape(count, 3, *layer.kernel_size)
    return one(x).detach().transpose(0, 1).flatten(1)


@pytest.mark.parametrize("name", LAYERS)
def test_moments_are_those_by_hand(name: str) -> None:
    layer, generator = LAYERS[name], torch.Generator().manual_seed(0)
    x = torch.randn(READ.get(name, (7, 3, 9, 8)), generator=generator, dtype=torch.float64) + 3  # far from 0
    u = columns(layer, x)
    with torch.no_grad():
        give = layer(x.float())
    wanted = torch.randn(give.shape, generator=generator, dtype=torch.float64) - 2
    y = wanted.reshape(-1, 4).T if isinstance(layer, nn.Linear) else wanted.transpose(0, 1).flatten(1)
    weight = layer.weight.detach().double().flatten(1)
    bias = layer.bias.detach().double()[:, None]
    rows = give.reshape(-1, 4).T if isinstance(layer, nn.Linear) else give.transpose(0, 1).flatten(1)
    torch.testing.assert_close(weight @ u + bias, rows.double(), rtol=0, atol=1e-4)  # the columns are the layer's
    batches = [0, 4, 7]
    parts = list(itertools.pairwise(batches))
    found = moments(layer, [x[a:b].float() for a, b in parts], [wanted[a:b].float() for a, b in parts])
    means = u.mean(1, keepdim=True), y.mean(1, keepdim=True)
    assert found.count == u.shape[1]
    np.testing.assert_allclose(found.read, means[0][:, 0], atol=1e-5)
    np.testing.assert_allclose(found.wanted, means[1][:, 0], atol=1e-5)
    np.testing.assert_allclose(found.covariance, (u - means[0]) @ (u - means[0]).T / u.shape[1], atol=1e-4)
    np.testing.assert_allclose(found.cross, (y - means[1]) @ (u - means[0]).T / u.shape[1], atol=1e-4)
