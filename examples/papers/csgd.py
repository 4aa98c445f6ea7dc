"""C-SGD on CIFAR-10 or ImageNet: filters trained to become equal, then trimmed without loss.

The main experiments of "Manipulating Identical Filter Redundancy for Efficient Pruning on Deep and Complicated CNN"
(paper 001).

python examples/papers/csgd.py --data cifar10:DIR -o runs/csgd [--networks resnet56,densenet40] [--dry-run]
python examples/papers/csgd.py --data imagefolder:ILSVRC2012 -o runs/csgd --networks torchvision:resnet50
    --checkpoint torchvision:resnet50=resnet50.pth
python examples/papers/csgd.py --short -o runs/csgd_short

- training: 600 epochs; the paper does not say more, and here it is batch 64, SGD 0.1, a tenth after 200 and 400,
  weight decay 1e-4; ImageNet: torchvision's weights;
- C-SGD: 600 epochs, batch 64, learning rate 0.03, a tenth after 200 and 400, epsilon 0.003, clusters by k-means; weight
  decay 1e-4 as on ImageNet, where it is 70 epochs, batch 256, a tenth after 30, 50 and 60, and epsilon 0.05;
- no fine-tuning.

This is the paper's section V, but that the momentum is Nesterov's and images of ImageNet are augmented more plainly.

Top-1 in per cent, and what was trimmed away (its tables I and III). Widths are those of the stages.

| network | widths | dense | pruned | MACs less | parameters less |
|---|---|---|---|---|---|
| VGG-16 | 20-50-80-80-80-80-80-60-60-60-60-60-60 | 93.53 | 93.59 | 85.02% | 96.54% |
| ResNet-56 | 10-20-40 | 93.39 | 93.62 | 60.85% | 60.90% |
| ResNet-110 | 10-20-40 | 94.38 | 94.41 | 60.89% | 60.92% |
| ResNet-164 | 12-24-46 | 94.83 | 95.08 | 45.24% | 54.75% |
| DenseNet-40 | 5-8-10 new channels a layer | 93.81 | 94.56 | 60.05% | 36.16% |
| ResNet-50, ImageNet | 70% of the inner channels | 76.15 | 75.94 | 36.38% | 33.38% |
| ResNet-50, ImageNet | 60% | 76.15 | 75.80 | 46.51% | 42.83% |
| ResNet-50, ImageNet | 50% | 76.15 | 75.29 | 55.44% | 51.50% |

The widths give the paper's savings to within a point, but for two: 46.9% of ResNet-164's parameters, and 52.1% and
31.5% of DenseNet-40, whose transitions stay whole here (the paper does not say how it prunes them).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from steps import Asked, Experiment, Published, Training, main

BASE = Training(600, 64, 0.1, 1e-4, milestones=(200, 400))
CIFAR = Training(600, 64, 0.03, 1e-4, milestones=(200, 400))
IMAGENET_BASE = Training(90, 256, 0.1, 1e-4, milestones=(30, 60))
IMAGENET = Training(70, 256, 0.03, 1e-4, milestones=(30, 50, 60))

VGG = {0: 64, 3: 64, 7: 128, 10: 128, 14: 256, 17: 256, 20: 256, 24: 512, 27: 512, 30: 512, 34: 512, 37: 512, 40: 512}
"""Number of the layer in `features` -> its width."""
VGG_KEPT = (20, 50, 80, 80, 80, 80, 80, 60, 60, 60, 60, 60, 60)


def layer_rates(widths: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """Flags for layers (names or patterns) of so many filters, of which so many are to be left."""
    flags: list[str] = []
    for layer, (width, kept) in widths.items():
        # Rounded up: the number of filters that go is rounded down.
        flags += ["--layer-rate", f"{layer}={math.ceil(1e4 * (width - kept) / width) / 1e4:g}"]
    return tuple(flags)


INNER = ("--skip", "conv1", "--skip", "layer?.*.conv3", "--skip", "layer?.*.downsample.*")
"""The residual streams of a torchvision ResNet stay as they are."""
SLIMMED: dict[str, tuple[tuple[str, tuple[str, ...], Published], ...]] = {
    "vgg16-cifar": (
        (
            "C",
            (
                "--include-first",
                *layer_rates({f"features.{n}": (VGG[n], kept) for n, kept in zip(VGG, VGG_KEPT, strict=True)}),
            ),
            Published(93.53, 93.59, 85.02, 96.54),
        ),
    ),
    "resnet56": (("10-20-40", ("--rate", "0.375"), Published(93.39, 93.62, 60.85, 60.90)),),
    "resnet110": (("10-20-40", ("--rate", "0.375"), Published(94.38, 94.41, 60.89, 60.92)),),
    "resnet164": (
        (
            "12-24-46",
            (
                *("--include-first", "--include-shortcuts", "--rate", "0.25"),
                *layer_rates({"layer3.*": (64, 46)}),
            ),
            Published(94.83, 95.08, 45.24, 54.75),
        ),
    ),
    "densenet40": (
        (
            "5-8-10",
            (
                *("--skip", "trans*"),
                *layer_rates({"dense1.*": (12, 5), "dense2.*": (12, 8), "dense3.*": (12, 10)}),
            ),
            Published(93.81, 94.56, 60.05, 36.16),
        ),
    ),
    "torchvision:resnet50": (
        ("70", (*INNER, "--rate", "0.3"), Published(76.15, 75.94, 36.38, 33.38)),
        ("60", (*INNER, "--rate", "0.4"), Published(76.15, 75.80, 46.51, 42.83)),
        ("50", (*INNER, "--rate", "0.5"), Published(76.15, 75.29, 55.44, 51.50)),
    ),
}
OTHERS = (("3-8 less", ("--rate", "0.375"), Published()),)
"""For networks that the paper does not have, and the short form."""


def experiments(asked: Asked) -> Iterator[Experiment]:
    for network in asked.networks:
        imagenet = network.startswith("torchvision:")
        steps, dense = asked.trained(network, IMAGENET_BASE if imagenet else BASE)
        # A short run has few steps in which filters can meet: epsilon=auto takes what they need.
        epsilon = "auto" if asked.short else "0.05" if imagenet else "0.003"
        for name, flags, published in SLIMMED.get(network, OTHERS):
            pruning = (
                *("train", "--from", str(dense), *asked.network(network), "--method", "csgd", *flags),
                *("--set", f"epsilon={epsilon}", *asked.training(IMAGENET if imagenet else CIFAR).flags()),
            )
            yield Experiment(f"{network}, {name}", asked.folder(network, f"csgd {name}"), steps, pruning, published)


if __name__ == "__main__":
    main(__doc__, experiments, ("resnet56", "resnet110", "resnet164", "densenet40", "vgg16-cifar"))
