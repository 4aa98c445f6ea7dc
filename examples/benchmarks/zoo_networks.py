"""Networks of the kinds that people deploy beside classifiers: a detector, a feature pyramid and a segmenter, small."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Unit(nn.Sequential):
    """Convolution, BatchNorm, SiLU."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, stride: int = 1) -> None:
        convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


class Bottleneck(nn.Module):
    """Two 3x3 convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Unit(channels, channels, 3), Unit(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x))


class C2f(nn.Module):
    """YOLOv8's stage: the channels are split, and every bottleneck's output is concatenated."""

    def __init__(self, inputs: int, outputs: int, blocks: int = 1) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1, self.cv2 = Unit(inputs, 2 * half), Unit((2 + blocks) * half, outputs)
        self.m = nn.ModuleList(Bottleneck(half) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        parts.extend(block(parts[-1]) for block in self.m)
        return self.cv2(torch.cat(parts, 1))


class Sppf(nn.Module):
    """Spatial pyramid pooling, one pooling after another."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Unit(channels, channels // 2), Unit(channels * 2, channels)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.cv1(x)]
        found.extend(self.pool(found[-1]) for _ in range(3))
        return self.cv2(torch.cat(found, 1))


class Head(nn.Module):
    """Decoupled: boxes as distributions over `bins` distances, and classes."""

    def __init__(self, channels: tuple[int, ...], classes: int, bins: int = 16) -> None:
        super().__init__()
        self.bins = bins
        self.boxes = nn.ModuleList(
            nn.Sequential(Unit(c, 32, 3), Unit(32, 32, 3), nn.Conv2d(32, 4 * bins, 1)) for c in channels
        )
        self.classes = nn.ModuleList(
            nn.Sequential(Unit(c, 32, 3), Unit(32, 32, 3), nn.Conv2d(32, classes, 1)) for c in channels
        )
        self.register_buffer("distances", torch.arange(bins).float().reshape(1, 1, bins, 1))

    @staticmethod
    def branch(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(Unit(inputs, 32, 3), Unit(32, 32, 3), nn.Conv2d(32, outputs, 1))

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        boxes = torch.cat([head(x).flatten(2) for head, x in zip(self.boxes, maps, strict=True)], 2)
        scores = torch.cat([head(x).flatten(2) for head, x in zip(self.classes, maps, strict=True)], 2)
        shares = boxes.view(boxes.shape[0], 4, self.bins, -1).softmax(2)
        return (shares * self.distances).sum(2), scores.sigmoid()


class YoloLike(nn.Module):
    """Backbone of C2f stages with SPPF, a path aggregation neck, a decoupled head; two outputs."""

    def __init__(self, width: int = 16, classes: int = 8) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(Unit(3, w, 3, 2), Unit(w, 2 * w, 3, 2), C2f(2 * w, 2 * w))
        self.p3 = nn.Sequential(Unit(2 * w, 4 * w, 3, 2), C2f(4 * w, 4 * w, 2))
        self.p4 = nn.Sequential(Unit(4 * w, 8 * w, 3, 2), C2f(8 * w, 8 * w), Sppf(8 * w))
        self.up, self.down = C2f(12 * w, 4 * w), C2f(12 * w, 8 * w)
        self.smaller = Unit(4 * w, 4 * w, 3, 2)
        self.head = Head((4 * w, 8 * w), classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p3 = self.p3(self.stem(x))
        p4 = self.p4(p3)
        n3 = self.up(torch.cat([F.interpolate(p4, scale_factor=2.0), p3], 1))
        n4 = self.down(torch.cat([self.smaller(n3), p4], 1))
        return self.head([n3, n4])


class FeaturePyramid(nn.Module):
    """Lateral convolutions added from the top down, one head for all levels; a dictionary of outputs."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.c2 = nn.Sequential(Unit(3, width, 3, 2), Unit(width, width, 3, 2), Bottleneck(width))
        self.c3 = nn.Sequential(Unit(width, 2 * width, 3, 2), Bottleneck(2 * width))
        self.c4 = nn.Sequential(Unit(2 * width, 4 * width, 3, 2), Bottleneck(4 * width))
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in (width, 2 * width, 4 * width))
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.shared = nn.Sequential(Unit(width, width, 3), nn.Conv2d(width, 6, 3, padding=1))

    def forward(self, x: Tensor) -> Mapping[str, Tensor]:
        c2 = self.c2(x)
        c3 = self.c3(c2)
        c4 = self.c4(c3)
        top = self.lateral[2](c4)
        middle = self.lateral[1](c3) + F.interpolate(top, scale_factor=2.0)
        low = self.lateral[0](c2) + F.interpolate(middle, scale_factor=2.0)
        levels = [smooth(level) for smooth, level in zip(self.smooth, (low, middle, top), strict=True)]
        return {f"level{number}": self.shared(level) for number, level in enumerate(levels)}


class Unet(nn.Module):
    """Encoder and decoder with skip connections and transposed convolutions."""

    def __init__(self, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        sizes = (width, 2 * width, 4 * width)
        self.down = nn.ModuleList(
            nn.Sequential(Unit(i, o, 3), Unit(o, o, 3)) for i, o in zip((3, *sizes[:-1]), sizes, strict=True)
        )
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 2, 2) for i, o in ((4 * width, 2 * width), (2 * width, width))
        )
        self.up = nn.ModuleList(nn.Sequential(Unit(2 * o, o, 3), Unit(o, o, 3)) for o in (2 * width, width))
        self.last = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for number, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if number else x)
            skipped.append(x)
        for grow, block, beside in zip(self.grow, self.up, skipped[-2::-1], strict=True):
            x = block(torch.cat([beside, grow(x)], 1))
        return self.last(x)


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {"yolo-like": YoloLike, "fpn": FeaturePyramid, "unet": Unet}
