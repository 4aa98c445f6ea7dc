"""Small networks with the awkward features of real ones, and random plans for them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.graph import Graph
from edgeprune.plan import LayerPlan, Plan


class Residual(nn.Module):
    """A residual stream with two adds, a projection, a zero-channel shortcut, biases, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(16)
        self.a = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.a_bn = nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.b_bn = nn.BatchNorm2d(16)
        self.c = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.c_bn = nn.BatchNorm2d(32)
        self.d = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.d_bn = nn.BatchNorm2d(32)
        self.project = nn.Conv2d(32, 32, 1, bias=False)
        self.project_bn = nn.BatchNorm2d(32)
        self.e = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.e_bn = nn.BatchNorm2d(32)
        self.head = nn.Linear(32 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_bn(self.stem(x)))
        x = F.relu(x + self.b_bn(self.b(F.relu(self.a_bn(self.a(x))))))
        y = self.d_bn(self.d(F.relu(self.c_bn(self.c(x)))))
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)))
        x = F.relu(self.e_bn(self.e(x)) + self.project_bn(self.project(x)))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 2), 1))


class Concatenating(nn.Module):
    """Dense connections with BN before the convolution, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(24), nn.Conv2d(24, 8, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.norm2(x)))], 1)
        return self.head(F.relu(self.norm3(x)).mean((2, 3)))


class Mobile(nn.Module):
    """Inverted bottleneck: depthwise convolution, squeeze-and-excitation, activation as module."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.mid = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.SiLU())
        self.depthwise = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32))
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.project = nn.Sequential(nn.Conv2d(32, 16, 3, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Conv2d(16, 7, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.mid(self.expand(x)))
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(self.project(x * scale)).mean((2, 3))


class Shuffled(nn.Module):
    """Operations that we do not know (a channel shuffle), a shared layer, an existing grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.shared = nn.Conv2d(16, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.after = nn.Conv2d(16, 24, 3)
        self.last = nn.Conv2d(24, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(F.relu(self.shared(F.relu(self.stem(x)))))
        x = self.grouped(x.view(x.size(0), 4, 4, x.size(2), x.size(3)).transpose(1, 2).reshape(x.shape))
        return self.last(F.relu(self.after(x))).mean((2, 3))


class Bare(nn.Module):
    """Nothing between a grouped layer, a zero-channel shortcut or an add, and what reads it; an unused argument."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.c, self.d, self.e = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 8, 1)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(8 * 14 * 14, 3)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = self.stem(x)
        x = self.b(self.a(x)) + self.a.weight.new_ones(1) * x
        x = self.c(F.pad(x, (0, 0, 0, 0, 4, 12)))
        return self.head(self.e(self.norm(self.d(x)).mul(scale)).flatten(1))


class Branching(nn.Module):
    """A submodule with a branch on a tensor's value, which torch.fx cannot trace."""

    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if x.sum() > -1e9 else x

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.moody, self.tail = nn.Conv2d(3, 16, 3), Branching.Moody(), nn.Conv2d(16, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(F.relu(self.moody(F.relu(self.stem(x))))).mean((2, 3))


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode with BatchNorm statistics and parameters that are not the trivial ones."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            size = module.num_features
            module.running_mean = torch.randn(size, generator=generator) * 0.2
            module.running_var = torch.rand(size, generator=generator) + 0.5
            module.weight.data = torch.rand(size, generator=generator) + 0.5
            module.bias.data = torch.randn(size, generator=generator) * 0.2
    return model.eval()


def random_plan(graph: Graph, groups: int, *, overlap: bool, share: bool, seed: int = 0) -> Plan:
    """A plan that groups every layer that can be, at random; `overlap` lets groups share input channels."""
    rng = np.random.default_rng(seed)
    shared: dict[str, np.ndarray] = {}
    layers = []
    for layer in graph.layers:
        plain = layer.kind == "conv" and layer.groups == 1 and not layer.refusal
        if not plain or layer.out_channels % groups or layer.in_channels % groups:
            layers.append(LayerPlan(layer.name, note="not divisible"))
            continue
        order = rng.permutation(layer.out_channels)
        if share:
            order = shared.setdefault(layer.writes, order)
        kept = max(1, layer.in_channels * 5 // 8)
        inputs = (
            [rng.choice(layer.in_channels, kept, replace=False) for _ in range(groups)]
            if overlap
            else np.split(rng.permutation(layer.in_channels), groups)
        )
        layers.append(LayerPlan(layer.name, _tuples(np.split(order, groups)), _tuples(inputs)))
    return Plan("random", {}, seed, tuple(layers))


def _tuples(groups: list[np.ndarray]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(sorted(int(v) for v in group)) for group in groups)
