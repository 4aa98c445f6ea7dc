"""A detector end to end: a network with several outputs, targets of its own kind, a metric (mAP) and a loss.

ARCH="--arch examples/detector.py:network" DATA="--data examples/detector.py:scenes --learning-rate 0.02"
edgeprune train $ARCH $DATA --epochs 30 -o big
edgeprune export big $ARCH $DATA --method fpgm --rate 0.4 --finetune-epochs 10 --max-drop 0.05 -o small
edgeprune eval small --data examples/detector.py:scenes

The scenes are scikit-learn's scans of handwritten digits, put on a dark canvas in places drawn at random. `ssdlite` is
how a detector of torchvision is pruned, which takes lists of images and gives lists of boxes by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.ops import box_iou, nms, sigmoid_focal_loss

INPUT_SHAPE = (1, 64, 64)
STRIDE = 8
"""Pixels from one of the network's cells to the next."""


# -- the network: images in, tensors out; what filters boxes stays outside ---------------------------------------------
class Detector(nn.Module):
    """Of each cell of a grid the classes' logits, and how far a box reaches from the cell's centre."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(block(1, 32, 2), block(32, 64, 2), block(64, 64, 2), block(64, 64))
        self.scores = nn.Sequential(block(64, 64), nn.Conv2d(64, num_classes, 1))
        self.sides = nn.Sequential(block(64, 64), nn.Conv2d(64, 4, 1))
        nn.init.constant_(self.scores[-1].bias, -4.0)  # nearly all cells are empty

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1, H, W) -> logits (N, classes, H / 8, W / 8), distances (N, 4, H / 8, W / 8) in cells."""
        x = self.backbone(x)
        return self.scores(x), F.softplus(self.sides(x))


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def network(num_classes: int = 10) -> nn.Module:
    return Detector(num_classes)


class BackboneAndHead(nn.Module):
    """The part of a torchvision detector that computes; resizing before it and filtering behind it stay in Python."""

    INPUT_SHAPE = (3, 320, 320)

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (N, C, H, W) -> a dictionary, which `detector.postprocess_detections` turns into boxes."""
        return self.head(list(self.backbone(images).values()))


def ssdlite(num_classes: int = 91) -> nn.Module:
    """To be pruned with --arch examples/detector.py:ssdlite; SSD, RetinaNet and FCOS go the same way."""
    return BackboneAndHead(ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes))


# -- the data: images, targets as torchvision has them, a metric and a loss --------------------------------------------
def scenes(split: str, count: int | None = None) -> dict[str, Any]:
    """Called with "train" and with "test", whose scenes share no scan; `count` is for shorter runs."""
    bunch = load_digits()
    is_test = np.arange(len(bunch.images)) % 5 == 0
    chosen = is_test if split == "test" else ~is_test
    scans, labels = torch.from_numpy(bunch.images[chosen]).float(), torch.from_numpy(bunch.target[chosen])
    generator = torch.Generator().manual_seed(int(split == "test"))
    drawn = [scene(scans, labels, generator) for _ in range(count or (128 if split == "test" else 768))]
    return {
        "images": torch.stack([image for image, _ in drawn]),  # (N, 1, 64, 64) uint8
        "targets": [target for _, target in drawn],  # an entry an image
        "metric": MeanAveragePrecision(),
        "loss": loss,
    }


def scene(scans: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """One to three scans, 20 to 28 pixels wide, each in a quarter of its own; boxes (n, 4) as x1, y1, x2, y2."""
    image, boxes, found = torch.zeros(INPUT_SHAPE, dtype=torch.uint8), [], []
    count = int(torch.randint(1, 4, (), generator=generator))
    for quarter in torch.randperm(4, generator=generator)[:count].tolist():
        number = int(torch.randint(len(scans), (), generator=generator))
        size = int(torch.randint(20, 29, (), generator=generator))
        x, y = torch.randint(0, 33 - size, (2,), generator=generator).tolist()
        x, y = x + quarter % 2 * 32, y + quarter // 2 * 32
        scan = F.interpolate(scans[None, None, number] * (255 / 16), size=(size, size), mode="bilinear")
        image[:, y : y + size, x : x + size] = scan[0].to(torch.uint8)
        boxes.append([x, y, x + size, y + size])
        found.append(int(labels[number]))
    return image, {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(found)}


def loss(outputs: tuple[Tensor, Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
    """Focal loss of all cells, and the distances' error in the cells that hold a box's centre."""
    logits, sides = outputs
    wanted, error = torch.zeros_like(logits), logits.new_zeros(())
    for number, target in enumerate(targets):
        corners = target["boxes"] / STRIDE
        columns, rows = ((corners[:, :2] + corners[:, 2:]) / 2).long().unbind(1)
        wanted[number, target["labels"], rows, columns] = 1.0
        centres = torch.stack([columns, rows], 1) + 0.5
        reach = torch.cat([centres - corners[:, :2], corners[:, 2:] - centres], 1)  # (n, 4)
        error = error + F.smooth_l1_loss(sides[number, :, rows, columns].T, reach, reduction="sum")
    count = sum(len(target["labels"]) for target in targets)
    return (sigmoid_focal_loss(logits, wanted, reduction="sum") + error) / count


class MeanAveragePrecision:
    """mAP at an IoU of 0.5. The metric of the same name in torchmetrics could stand here, behind `boxes_of`."""

    higher_is_better = True

    def __init__(self) -> None:
        self.found: list[tuple[int, float, bool]] = []
        """Class, score, and whether it is right, of each box that was found."""
        self.there: list[int] = []
        """The classes of the boxes that there are."""

    def update(self, outputs: tuple[Tensor, Tensor], targets: list[dict[str, Tensor]]) -> None:
        for logits, sides, target in zip(*outputs, targets, strict=True):
            self.there += target["labels"].tolist()
            free = torch.ones(len(target["labels"]), dtype=torch.bool)
            for box, score, label in zip(*boxes_of(logits, sides), strict=True):
                fits = (box_iou(box[None], target["boxes"])[0] >= 0.5) & (target["labels"] == label) & free
                self.found.append((int(label), float(score), bool(fits.any())))
                if fits.any():
                    free[fits.nonzero()[0]] = False

    def compute(self) -> dict[str, float]:
        classes = sorted(set(self.there))
        return {"mAP50": sum(self.average_precision(label) for label in classes) / len(classes)}

    def average_precision(self, label: int) -> float:
        """Mean over the boxes that there are of the best precision at which each is found."""
        ranked = sorted((entry for entry in self.found if entry[0] == label), key=lambda entry: -entry[1])
        right = np.cumsum([entry[2] for entry in ranked])
        precision = right / np.arange(1, len(ranked) + 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        return float(sum(best[number] for number, entry in enumerate(ranked) if entry[2])) / self.there.count(label)


def boxes_of(logits: Tensor, sides: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (n, 4), scores (n,) and labels (n,) of one image, the best first and none over another."""
    scores, labels = logits.sigmoid().flatten(1).max(0)  # (cells,)
    rows, columns = torch.meshgrid(torch.arange(logits.shape[1]), torch.arange(logits.shape[2]), indexing="ij")
    centres = torch.stack([columns, rows]).flatten(1) + 0.5  # (2, cells)
    near, far = sides.flatten(1).split(2)
    boxes = torch.cat([centres - near, centres + far]).T * STRIDE
    kept = nms(boxes, scores, 0.5)[:20]
    return boxes[kept], scores[kept], labels[kept]
