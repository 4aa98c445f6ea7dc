"""GConv on CIFAR-10 or ImageNet: channels permuted into groups, and a search for the numbers of groups.

The main experiments of "Efficient Structured Pruning and Architecture Searching for Group Convolution" (paper 002).

python examples/papers/gconv.py --data cifar10:DIR -o runs/gconv [--networks resnet164] [--only budget] [--dry-run]
python examples/papers/gconv.py --data imagefolder:ILSVRC2012 -o runs/gconv --networks torchvision:resnet50
    --checkpoint torchvision:resnet50=resnet50.pth
python examples/papers/gconv.py --short -o runs/gconv_short

- training, as in the public repository that the paper names: ResNets 164 epochs, batch 128, SGD 0.1, a tenth after 81
  and 122, weight decay 1e-4; DenseNet-86 300 epochs with a cosine, batch 64; ImageNet: torchvision's weights;
- pruning: one number of groups for all layers, or a search within a budget; N_S = 10 sorting rounds (solver=paper);
  every layer is permuted for itself (--no-share-partitions), 1x1 convolutions and shortcuts too;
- fine-tuning: for CIFAR the paper says only about a third of the epochs and a small learning rate; its authors' scripts
  say 60 epochs from 0.01, a tenth after 30 and 45, weight decay 5e-4 for ResNet-164 (here for ResNet-110, too), and 100
  from 0.005, a tenth after 50 and 75, weight decay 1e-4 for DenseNet-86, all with batch 128;
- fine-tuning on ImageNet: 30 epochs from 0.001, a tenth after 10 and 20; the paper does not say more, and here it is
  batch 256 and weight decay 1e-4.

Here the momentum is Nesterov's.

Top-1 in per cent (the paper gives errors), and what was pruned away (its tables 1 to 3; sizes taken on CIFAR-100):

| network | what | dense | pruned | parameters less | MACs less |
|---|---|---|---|---|---|
| ResNet-110 | 2 groups | - | 93.31 | - | - |
| ResNet-110 | 8 groups | - | 90.61 | - | - |
| ResNet-164 | parameters of "40% pruned" | 95.19 | 95.09 | 15.5% | 8.4% |
| ResNet-164 | parameters of "60% pruned" | 95.19 | 94.92 | 29.7% | 14.7% |
| DenseNet-86 | 4 groups | 95.56 | 94.06 | 70.94% | 73.77% |
| DenseNet-86 | 50% budget | 95.56 | 95.02 | 50.74% | 49.33% |
| ResNet-18, ImageNet | 8 groups | 69.76 | 55.29 | 83.7% | 94.5% |
| ResNet-50, ImageNet | 2 groups | 76.15 | 74.10 | 45.9% | 54.1% |
| ResNet-101, ImageNet | 2 groups | 77.37 | 75.78 | 47.6% | 52.2% |

edgeprune's own solver keeps more of the weights than the paper's: leave out `--set solver=paper`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from steps import Asked, Experiment, Published, Training, main

RESNET = Training(164, 128, 0.1, 1e-4, milestones=(81, 122))
DENSENET = Training(300, 64, 0.1, 1e-4)
IMAGENET = Training(90, 256, 0.1, 1e-4, milestones=(30, 60))


@dataclass(frozen=True)
class Recipe:
    """How a network is trained and fine-tuned, and what it is pruned to."""

    training: Training
    finetuning: Training
    pruned_to: tuple[tuple[str, tuple[str, ...], Published], ...]


def groups(number: int) -> tuple[str, tuple[str, ...]]:
    return f"{number} groups", ("--groups", str(number))


def params(share: float) -> tuple[str, tuple[str, ...]]:
    return f"budget params {share:g}", ("--budget", f"params={share:g}")


RESNET_FINETUNING = Training(60, 128, 0.01, 5e-4, milestones=(30, 45))
DENSENET_FINETUNING = Training(100, 128, 0.005, 1e-4, milestones=(50, 75))
IMAGENET_FINETUNING = Training(30, 256, 0.001, 1e-4, milestones=(10, 20))
RECIPES = {
    "resnet110": Recipe(
        RESNET,
        RESNET_FINETUNING,
        ((*groups(2), Published(pruned=93.31)), (*groups(8), Published(pruned=90.61))),
    ),
    "resnet164": Recipe(
        RESNET,
        RESNET_FINETUNING,
        (
            (*params(0.845), Published(95.19, 95.09, 8.4, 15.5)),
            (*params(0.703), Published(95.19, 94.92, 14.7, 29.7)),
        ),
    ),
    "densenet86": Recipe(
        DENSENET,
        DENSENET_FINETUNING,
        (
            (*groups(4), Published(95.56, 94.06, 73.77, 70.94)),
            (*params(0.4926), Published(95.56, 95.02, 49.33, 50.74)),
        ),
    ),
    "torchvision:resnet18": Recipe(IMAGENET, IMAGENET_FINETUNING, ((*groups(8), Published(69.76, 55.29, 94.5, 83.7)),)),
    "torchvision:resnet50": Recipe(IMAGENET, IMAGENET_FINETUNING, ((*groups(2), Published(76.15, 74.10, 54.1, 45.9)),)),
    "torchvision:resnet101": Recipe(
        IMAGENET, IMAGENET_FINETUNING, ((*groups(2), Published(77.37, 75.78, 52.2, 47.6)),)
    ),
}
OTHERS = Recipe(RESNET, RESNET_FINETUNING, ((*groups(2), Published()), (*params(0.5), Published())))
"""For networks that the paper does not have, and the short form."""


def experiments(asked: Asked) -> Iterator[Experiment]:
    for network in asked.networks:
        recipe = RECIPES.get(network, OTHERS)
        steps, dense = asked.trained(network, recipe.training)
        finetuning = asked.finetuning(recipe.finetuning)
        for name, flags, published in recipe.pruned_to:
            pruning = (
                *("prune", str(dense), *asked.network(network), "--method", "gconv", *flags),
                *("--set", "solver=paper", "--set", "rounds=10", "--no-share-partitions", "--include-shortcuts"),
            )
            folder = asked.folder(network, name)
            yield Experiment(f"{network}, {name}", folder, steps, pruning, published, finetuning=finetuning)


if __name__ == "__main__":
    main(__doc__, experiments, ("resnet110", "resnet164", "densenet86"))
