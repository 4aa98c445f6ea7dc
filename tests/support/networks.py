"""Small networks with the awkward features of real ones, and random plans for them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.googlenet import BasicConv2d
from torchvision.models.googlenet import Inception as InceptionBlock

from edgeprune.graph import CoupledSet, Graph
from edgeprune.methods.base import PruneRequest
from edgeprune.methods.shared.units import units
from edgeprune.plans.plan import LayerPlan, Plan, SetPlan


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


class Flattening(nn.Module):
    """A flattened feature map whose size the forward writes down, and hidden linear layers, as in a small VGG."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_bn = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.b, self.b_bn = nn.Conv2d(12, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.hidden, self.hidden_bn = nn.Linear(10 * 4, 16, bias=False), nn.BatchNorm1d(16)
        self.middle, self.slope, self.head = nn.Linear(16, 9), nn.PReLU(), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.a_bn(self.a(x))), 2)
        x = F.adaptive_avg_pool2d(F.relu(self.b_bn(self.b(x))), 2)
        x = F.dropout(F.relu(self.hidden_bn(self.hidden(x.view(-1, 40)))), training=self.training)
        return self.head(self.slope(self.middle(x)))


class Inception(nn.Module):
    """Two blocks of parallel branches that are concatenated, the second on the first's result."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = BasicConv2d(3, 12, kernel_size=3, stride=2)
        self.first = InceptionBlock(12, 8, 6, 10, 4, 8, 6)  # 32 channels
        self.second = InceptionBlock(32, 9, 6, 7, 5, 6, 4)  # 26 channels
        self.head = nn.Linear(26, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(x))).mean((2, 3)))


class Exciting(nn.Module):
    """Squeeze-and-excitation through linear layers, whose result is viewed as a map and scales a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 10, 3, padding=1), nn.Conv2d(10, 12, 1)
        self.b_bn, self.squeeze, self.excite = nn.BatchNorm2d(12), nn.Linear(12, 4), nn.Linear(4, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.b_bn(self.b(F.relu(self.a(x))))
        samples, channels, _, _ = y.size()
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1).view(samples, channels)))))
        x = F.relu(x + y * scale.view(samples, 12, 1, 1).expand_as(y))
        return self.head(x.mean(3).mean(2)[:, :, None, None].squeeze(-1).squeeze(-1))


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
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
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


def thinnable_sets(graph: Graph) -> list[CoupledSet]:
    """The coupled sets that a plan may name, whatever channels it leaves out."""
    return [
        coupled
        for coupled in graph.coupled_sets
        if coupled.producers
        and not coupled.in_order
        and not coupled.parts
        and not any(graph.layer(name).refusal for name in coupled.producers)
    ]


def random_thin_plan(graph: Graph, share: float, seed: int = 0, *, merge: bool = True) -> Plan:
    """A plan that thins all that can be thinned, at random: `share` of the channels stay, and with `merge` half of the
    others are merged with one that stays; every second residual stream stays whole, and the ends of its branches lose
    filters."""
    rng = np.random.default_rng(seed)
    padded = {padding.target for padding in graph.paddings}
    sets, kept_filters = [], {}
    for coupled in thinnable_sets(graph):
        count = max(1, round(share * coupled.channels))
        ends = [graph.layer(name) for name in coupled.producers if graph.layer(name).ends_branch]
        if ends and rng.random() < 0.5:
            kept_filters |= {layer.name: _some(rng, layer.out_channels, count) for layer in ends if layer.groups == 1}
            continue
        kept = _some(rng, coupled.channels, count)
        merged = _clusters(rng, kept, coupled.channels) if merge and coupled.name not in padded else ()
        sets.append(SetPlan(coupled.name, kept, merged))
    sets += _thinned_in_order(graph, share, rng)
    layers = tuple(LayerPlan(layer.name, kept_filters=kept_filters.get(layer.name, ())) for layer in graph.layers)
    return Plan("random", {}, seed, layers, tuple(sets))


def _thinned_in_order(graph: Graph, share: float, rng: np.random.Generator) -> list[SetPlan]:
    """The sets around convolutions that come in groups, which lose whole units."""
    ordered = {coupled.name: set[int]() for coupled in graph.coupled_sets if coupled.in_order and not coupled.parts}
    gone = dict[str, set[int]]()
    for unit in units(graph, PruneRequest(include_first=True, include_shortcuts=True), "coupled").units:
        if any(name in ordered for name, _ in unit.sets):
            kept = _some(rng, unit.size, max(1, round(share * unit.size)))
            for name, channels in unit.sets:
                lost = {channel for place, channel in enumerate(channels) if place not in kept}
                gone.setdefault(name, set()).update(lost)
    return [
        SetPlan(name, tuple(c for c in range(graph.coupled_set(name).channels) if c not in lost))
        for name, lost in gone.items()
        if lost and not graph.coupled_set(name).parts
    ]


def random_merge_plan(graph: Graph, seed: int = 0) -> Plan:
    """A plan that merges channels at random in every coupled set where that can be without loss, and drops none."""
    rng = np.random.default_rng(seed)
    padded = {padding.target for padding in graph.paddings}
    sets = []
    for coupled in thinnable_sets(graph):
        first = _some(rng, coupled.channels, (coupled.channels + 1) // 2)
        merged = () if coupled.name in padded else _clusters(rng, first, coupled.channels)
        gone = {channel for cluster in merged for channel in cluster[1:]}
        sets.append(SetPlan(coupled.name, tuple(c for c in range(coupled.channels) if c not in gone), merged))
    return Plan("random", {}, seed, tuple(LayerPlan(layer.name) for layer in graph.layers), tuple(sets))


def _some(rng: np.random.Generator, size: int, count: int) -> tuple[int, ...]:
    return tuple(sorted(int(v) for v in rng.choice(size, count, replace=False)))


def _clusters(rng: np.random.Generator, kept: tuple[int, ...], size: int) -> tuple[tuple[int, ...], ...]:
    """Half of the channels that are not kept, each with a kept one before it."""
    clusters: dict[int, list[int]] = {}
    for channel in sorted(set(range(size)) - set(kept)):
        before = [c for c in kept if c < channel]
        if before and rng.random() < 0.5:
            clusters.setdefault(int(rng.choice(before)), []).append(channel)
    return tuple((first, *others) for first, others in sorted(clusters.items()))


def _tuples(groups: list[np.ndarray]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(sorted(int(v) for v in group)) for group in groups)
