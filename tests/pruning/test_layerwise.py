"""What a pass computes node by node is what both networks compute as a whole, whatever their forwards write over."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from edgeprune.datasets.images import Dataset
from edgeprune.graph import Layer
from edgeprune.methods.on_images import Moments, Refitted
from edgeprune.pruning import layerwise
from edgeprune.pruning.layerwise import Calibration

IMAGES = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NOISE = Dataset("noise", IMAGES, torch.zeros(10, dtype=torch.int64), (), (0.0,) * 3, (1.0,) * 3)
NAMES = ["a", "b", "c", "d", "head"]


class Chain(nn.Module):
    """Four convolutions; `middle` is given what the first two give, and what the third makes of it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.d = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(8, 5)

    def middle(self, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.head(F.relu(self.d(self.middle(x, self.b(x)))).mean((2, 3)))


class ModuleInPlace(Chain):
    def middle(self, x: Tensor, y: Tensor) -> Tensor:
        self.relu(y)
        return self.c(y)


class FunctionInPlace(Chain):
    def middle(self, x: Tensor, y: Tensor) -> Tensor:
        F.leaky_relu_(y, 0.3)
        return self.c(y) + y


class MethodInPlace(Chain):
    def middle(self, x: Tensor, y: Tensor) -> Tensor:
        y.add_(x)
        y.requires_grad_(False)
        return self.c(y)


class StreamInPlace(Chain):
    """The stream that the branch was read from is written over before the branch is added."""

    def middle(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.c(y)
        torch.sigmoid_(y)
        return F.relu(z + y)


class Preactivated(Chain):
    """The skip path leaves in front of an activation that works in place, and so behind it."""

    def middle(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.c(self.relu(y))


class Doubled(Chain):
    def middle(self, x: Tensor, y: Tensor) -> Tensor:
        return self.c(F.relu(y + y))


class Parts(Chain):
    def middle(self, x: Tensor, y: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return F.relu(self.c(torch.cat([right, left], 1)) + y) + torch.cat([left, right], 1)


def weight_of(model: nn.Module, layer: Layer) -> NDArray[np.float64]:
    weight = model.get_submodule(layer.name).weight
    assert isinstance(weight, Tensor)
    return weight.detach().double().numpy()


def reads_and_gives(model: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, x, y: seen.extend((x[0].clone(), y.clone())))
    with torch.no_grad():
        model(IMAGES.clone())
    handle.remove()
    return seen[0], seen[1]


@pytest.mark.parametrize(
    "kind", [ModuleInPlace, FunctionInPlace, MethodInPlace, StreamInPlace, Preactivated, Doubled, Parts]
)
def test_layers_read_and_give_what_they_do_in_a_whole_run(kind: type[Chain], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = networks.settled(kind()).eval()
    rng = np.random.default_rng(0)
    changed = list[str]()

    class Watched(layerwise._Pass):
        def _change(self, node: fx.Node, layer: Layer) -> None:
            _, gives = reads_and_gives(model, layer.name)
            reads, _ = reads_and_gives(self.model, layer.name)
            torch.testing.assert_close(torch.cat(self._dense[node]), gives)
            torch.testing.assert_close(torch.cat(self._pruned[node.all_input_nodes[0]]), reads, atol=1e-4, rtol=1e-4)
            changed.append(layer.name)
            super()._change(node, layer)

    def some(layer: Layer, moments: Moments) -> Refitted:
        weight = weight_of(model, layer)
        weight = weight * (rng.random(weight.shape[:2]) < 0.6).reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
        return Refitted(weight, moments.wanted - weight.reshape(len(weight), -1) @ moments.read)

    monkeypatch.setattr(layerwise, "_Pass", Watched)
    monkeypatch.setattr(layerwise, "BATCH_SIZE", 4)
    Calibration(model, NOISE).refit(NAMES, some)
    assert changed == NAMES


class LateStream(nn.Module):
    """A convolution whose branch waits for a long residual tower that runs behind it."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.a, self.skip = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.tower = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(blocks))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        skip = self.skip(x)
        for block in self.tower:
            x = x + 0.1 * block(x)
        return self.head(F.relu(skip + x).mean((2, 3)))


def test_a_branch_that_waits_for_many_others_looks_at_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = LateStream(16).eval()
    work, looked, inputs_of = Calibration(model, NOISE), list[fx.Node](), fx.Node.all_input_nodes.fget
    assert inputs_of is not None

    def counted(node: fx.Node) -> list[fx.Node]:
        looked.append(node)
        return list(inputs_of(node))

    def same(layer: Layer, moments: Moments) -> Refitted:
        weight = weight_of(model, layer)
        return Refitted(weight, moments.wanted - weight.reshape(len(weight), -1) @ moments.read)

    monkeypatch.setattr(fx.Node, "all_input_nodes", property(counted))
    work.refit(["a", "skip", "head"], same)
    assert len(looked) < 4000, "twice as many for each block more"
