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
    """Split, joined in the same order, split again in other sizes: the second time nothing is known."""

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
    "slices and slopes": Sliced,
    "coordinate attention": Coordinates,
    "convolution on a parameter": OnParameter,
    "spatial attention": SpatialAttention,
    "flags": Flags,
    "branches on shapes": Branching,
    "linear over positions": OverPositions,
    "channels last": ChannelsLast,
    "SyncBatchNorm": lambda: Found(nn.SyncBatchNorm),
    "FrozenBatchNorm": lambda: Found(torchvision.ops.FrozenBatchNorm2d),
    "BatchNorm with activation": lambda: Found(NormAndAct),
}
