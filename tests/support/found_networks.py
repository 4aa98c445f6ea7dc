"""Networks with what people's forwards have beside convolutions: split channels, flags, loops, norms of other kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn


class Found(nn.Module):
    """Two convolutions in front of what is odd (`middle`), and two behind it; 16 channels all along."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), norm(16)
        self.second, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), norm(16)
        self.third, self.last = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def middle(self, x: Tensor) -> Tensor:
        return x

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm2(self.second(F.relu(self.norm(self.first(x))))))
        return F.relu(self.last(F.relu(self.third(self.middle(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Split(Found):
    """As YOLO's C2f: all parts, and what was made of the last, are concatenated."""

    sizes: tuple[int, ...] | int = 8

    def __init__(self) -> None:
        super().__init__()
        width = 8 if isinstance(self.sizes, int) else self.sizes[-1]
        self.inside, self.joined = nn.Conv2d(width, 8, 3, padding=1), nn.Conv2d(24, 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        parts = list(x.split(self.sizes, 1))
        parts.append(F.relu(self.inside(parts[-1])))
        return self.joined(torch.cat(parts, 1))


class UnevenSplit(Split):
    sizes = (5, 11)


class SplitTwice(Found):
    """Split, joined in the same order, split again in other sizes, as in MixNet: the parts are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        a, b = torch.chunk(x, 2, dim=1)
        c, d = x.split([4, 12], dim=1)
        return torch.cat([self.left(a), self.right(b)], 1) + torch.cat([d, c], 1)


class SplitResidual(Found):
    """Parts that go on as streams of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))

    def middle(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([a, F.relu(b + self.branch(b))], 1)


class ChannelShuffle(Found):
    """As in ShuffleNet: what is behind the shuffle reads channels of which only the number is known."""

    def middle(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), 2, 8, x.size(2), x.size(3)).transpose(1, 2).reshape(x.shape)


class Sliced(Found):
    """Some of the channels go another way, taken by their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.branch = nn.PReLU(16), nn.Conv2d(6, 6, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        x = self.slope(x)[:, :16]
        return torch.cat([self.branch(x[:, :6]), x[:, 6:, :, :]], 1)


class Coordinates(Found):
    """Coordinate attention: pooled along each axis, joined and split along the height."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.squeezed = nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8)
        self.high, self.wide = nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        _, _, height, width = x.shape
        y = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).permute(0, 1, 3, 2)], 2)
        high, wide = F.hardswish(self.squeezed(self.squeeze(y))).split([height, width], dim=2)
        return x * self.high(high).sigmoid() * self.wide(wide.permute(0, 1, 3, 2)).sigmoid()


class OnParameter(Found):
    """A convolution of a learned map."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.mapped = nn.Parameter(torch.randn(1, 8, 12, 12)), nn.Conv2d(8, 16, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        return x + self.mapped(self.map)


class NormOnParameter(OnParameter):
    """A BatchNorm behind a layer that reads no image."""

    def __init__(self) -> None:
        super().__init__()
        self.mapped_norm = nn.BatchNorm2d(16)

    def middle(self, x: Tensor) -> Tensor:
        return x + self.mapped_norm(self.mapped(self.map))


class GroupedUpwards(Found):
    """A transposed convolution in groups, which stays as it is, and its BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.up_norm = nn.ConvTranspose2d(16, 16, 2, stride=2, groups=2), nn.BatchNorm2d(16)

    def middle(self, x: Tensor) -> Tensor:
        return self.up_norm(self.up(F.max_pool2d(x, 2)))


class SpatialAttention(Found):
    """A convolution on the largest value and the mean over all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Conv2d(2, 1, 7, padding=3)

    def middle(self, x: Tensor) -> Tensor:
        seen = torch.cat([torch.max(x, 1, keepdim=True)[0], x.mean(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.mask(seen))


class Flags(Found):
    """Arguments with defaults, which decide what is returned."""

    def forward(self, x: Tensor, mask: Tensor | None = None, return_features: bool = False, *rest: Tensor) -> Tensor:
        if mask is not None:
            x = x * mask
        found = self.features(x)
        return found if return_features else self.head(found.mean((2, 3)))


class Branching(Found):
    """Branches on shapes, and a loop whose length is one."""

    def middle(self, x: Tensor) -> Tensor:
        assert x.dim() == 4
        if x.shape[2] > 4 and x.size(1) == 16:
            for _ in range(x.shape[1] // 8):
                x = x + 1
        return x if len(x.shape) == 4 else x[0]


class OverPositions(Found):
    """A linear layer over the positions, the same for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(144, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tokens(self.features(x).flatten(2)).mean(2))


class ChannelsLast(Found):
    """A block of linear layers with the channels behind."""

    def __init__(self) -> None:
        super().__init__()
        self.normal, self.wide, self.narrow = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)

    def middle(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.gelu(self.wide(self.normal(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)


class InGroups(Found):
    """As in ResNeXt and RegNet: many groups of few channels, which go as a whole."""

    groups, outputs = 8, 16

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(16, self.outputs, 3, padding=1, groups=self.groups)
        self.behind = nn.Conv2d(self.outputs, 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        return self.behind(F.relu(self.grouped(x)))


class InTwoGroups(InGroups):
    """Few groups of many channels, which all lose the same ones."""

    groups, outputs = 2, 24


class Multiplied(InGroups):
    """Several filters for each channel."""

    groups, outputs = 16, 48


class GroupsBetween(InGroups):
    """Groups after groups, of other sizes, and an add behind: all of it is in step."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(16, 16, 3, padding=1, groups=4)

    def middle(self, x: Tensor) -> Tensor:
        return x + self.behind(self.other(F.relu(self.grouped(x))))


class Upwards(Found):
    """As in a U-Net: transposed convolutions, one of them depthwise, and what was there before beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.up_norm = nn.ConvTranspose2d(16, 12, 2, stride=2, bias=False), nn.BatchNorm2d(12)
        self.each = nn.ConvTranspose2d(12, 12, 3, padding=1, groups=12)
        self.merged = nn.Conv2d(28, 16, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        up = self.each(F.relu(self.up_norm(self.up(F.max_pool2d(x, 2)))))
        return self.merged(torch.cat([x, up], 1))


class AddedConcatenations(Found):
    """As in GhostNet: concatenations of other sizes are added to each other, and to a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(16, size, 3, padding=1) for size in (6, 10, 10, 6))
        self.whole = nn.Conv2d(16, 16, 1)

    def middle(self, x: Tensor) -> Tensor:
        a, b, c, d = (part(x) for part in self.parts)
        return torch.cat([a, b], 1) + torch.cat([c, d], 1) + self.whole(x)


class StandardisedConv(nn.Conv2d):
    """A convolution whose weight is standardised filter by filter, and scaled (as in NFNet)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, channels).reshape(-1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.gain * 0.2).view(-1)
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, weight=scale, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


class NormAndAct(nn.BatchNorm2d):
    """A BatchNorm that activates as well, written out as a function."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, "images")
        statistics = self.running_mean, self.running_var
        return self.act(F.batch_norm(x, *statistics, self.weight, self.bias, self.training, 0.1, self.eps))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "split": Split,
    "uneven split": UnevenSplit,
    "split twice": SplitTwice,
    "split residual": SplitResidual,
    "channel shuffle": ChannelShuffle,
    "slices and slopes": Sliced,
    "coordinate attention": Coordinates,
    "convolution on a parameter": OnParameter,
    "norm behind a convolution on a parameter": NormOnParameter,
    "transposed in groups": GroupedUpwards,
    "spatial attention": SpatialAttention,
    "flags": Flags,
    "branches on shapes": Branching,
    "linear over positions": OverPositions,
    "channels last": ChannelsLast,
    "in groups": InGroups,
    "in two groups": InTwoGroups,
    "several filters a channel": Multiplied,
    "groups between groups": GroupsBetween,
    "transposed": Upwards,
    "added concatenations": AddedConcatenations,
    "SyncBatchNorm": lambda: Found(nn.SyncBatchNorm),
    "FrozenBatchNorm": lambda: Found(torchvision.ops.FrozenBatchNorm2d),
    "BatchNorm with activation": lambda: Found(NormAndAct),
}
