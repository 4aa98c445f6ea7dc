"""SFP, ASFP, FPGM, FPGM-mix and LFPC on CIFAR-10 or ImageNet: filters pruned while the network is trained.

The main experiments of "Accelerating Deep Convolutional Neural Networks via Filter Pruning" (paper 004).

python examples/papers/filter_pruning.py --data cifar10:DIR -o runs/filters [--networks resnet56] [--only fpgm,lfpc]
python examples/papers/filter_pruning.py --data imagefolder:ILSVRC2012 -o runs/filters --networks torchvision:resnet50
    --checkpoint torchvision:resnet50=resnet50.pth [--dry-run]
python examples/papers/filter_pruning.py --short -o runs/filters_short

- training, as in the paper on wide residual networks that this one names: 200 epochs, batch 128, SGD 0.1, a fifth
  after 60, 120 and 160, Nesterov's momentum 0.9, weight decay 5e-4; on ImageNet as in those on residual networks: batch
  256, SGD 0.1, a tenth after every 30 epochs, weight decay 1e-4 (how many epochs is not said; here 100);
- pruning from scratch: the same training, pruned at the end of every epoch; from a trained network: a tenth of the
  learning rate, as many epochs;
- all layers at one rate but the projection shortcuts; ASFP with D = 1/8 and P_min = 0; FPGM-mix 40% is 30% by norm and
  10% by distance;
- LFPC: 600 epochs of search with fixed weights, half of the images held out, Adam 0.001 with weight decay 0.001, tau
  from 5 to 0.1, weight 2 of the computation loss; then the training from a trained network.

This is the paper's sections 3.4.1, 4.4.1, 5.4.1 and 6.4.1, but that LFPC searches with batches of 128 instead of 256
and retrains with steps instead of a cosine (by the paper as good: 93.54 and 93.56). LFPC from scratch is not here: the
paper searches on a trained network and then trains another one anew. The short form takes the methods' defaults, which
let the network settle in its last epochs.

Top-1 in per cent, mean of three runs (its tables 3.1, 4.1, 5.1 and 6.2; on ImageNet 3.2, 4.3 and 5.2). ResNet-20 has
92.20 when dense, ResNet-32 92.63, ResNet-56 93.59, ResNet-110 93.68.

| method | network | from scratch | from a trained network | MACs less |
|---|---|---|---|---|
| SFP 30% | ResNet-20, -32 | 90.83, 92.08 | - | 42.2%, 41.5% |
| SFP 40% | ResNet-56, -110 | 92.26, 92.62 | 93.35, 92.90 | 52.6%, 52.3% |
| ASFP 40% | ResNet-56, -110 | 92.44, 93.20 | 93.12, 93.10 | 52.6%, 52.3% |
| FPGM 40% | ResNet-20, -32 | 90.44, 91.93 | - | 54.0%, 53.2% |
| FPGM 40% | ResNet-56, -110 | 92.93, 93.73 | 93.49, 93.74 | 52.6%, 52.3% |
| FPGM-mix 40% | ResNet-20, -32 | 90.62, 91.91 | - | 54.0%, 53.2% |
| FPGM-mix 40% | ResNet-56, -110 | 92.89, 93.85 | 93.26, - | 52.6%, 52.3% |
| LFPC | ResNet-56, -110 | 93.34, 93.79 | 93.24, 93.07 | 52.9%, 60.3% |
| SFP, FPGM 30% | ResNet-50, ImageNet, 76.15 | 74.61, 75.03 | 62.14, 75.59 | 41.8%, 42.2% |
| ASFP, FPGM-mix 30% | ResNet-50, ImageNet, 76.15 | 74.88, 74.94 | 75.53, 75.50 | 41.8%, 42.2% |
| ASFP, FPGM 30% | ResNet-18, ImageNet, 70.23 and 70.28 | 67.41, 67.78 | 68.02, 68.34 | 41.8% |

"MACs less" will be a little lower here: the paper counts with the rate itself (0.6 of 16 filters are 9.6), while whole
filters go, rounded down (10 stay): 49.8% where it says 52.6% of ResNet-56.
The paper measured ResNet-50 on a GTX 1080 Ti, batch 64: 29.8% less time where theory says 41.8%.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from steps import Asked, Experiment, Published, Training, main

CIFAR = Training(200, 128, 0.1, 5e-4, milestones=(60, 120, 160), gamma=0.2)
IMAGENET = Training(100, 256, 0.1, 1e-4, milestones=(30, 60, 90))
SEARCH_EPOCHS = 600
PAPER = ("settle=0", "limit_growth=false")
"""Where the defaults of SFP, ASFP and FPGM, made for fewer epochs, differ from the paper."""
PAPER_LFPC = (
    *("search_share=0.75", "weights=fixed", "validation_share=0.5", "validation_batch=256"),
    *("learning_rate=0.001", "weight_decay=0.001", "first_temperature=5", "last_temperature=0.1"),
    "computation_weight=2",
)
"""The same of LFPC, whose defaults are made for short searches."""


@dataclass(frozen=True)
class Case:
    """A method at a rate, or within a budget."""

    method: str
    amount: tuple[str, str]
    top1: Mapping[str, float | None]
    """What it starts from ("scratch", "trained") -> the paper's top-1."""
    macs_less: float | None = None

    @property
    def name(self) -> str:
        return f"{self.method} {self.amount[1]}"


def rate(value: float) -> tuple[str, str]:
    return "--rate", f"{value:g}"


def macs(value: float) -> tuple[str, str]:
    return "--budget", f"macs={value:g}"


CASES: dict[str, tuple[float, tuple[Case, ...]]] = {
    "resnet20": (
        92.20,
        (
            Case("sfp", rate(0.3), {"scratch": 90.83}, 42.2),
            Case("fpgm", rate(0.4), {"scratch": 90.44}, 54.0),
            Case("fpgm-mix", rate(0.4), {"scratch": 90.62}, 54.0),
        ),
    ),
    "resnet32": (
        92.63,
        (
            Case("sfp", rate(0.3), {"scratch": 92.08}, 41.5),
            Case("fpgm", rate(0.4), {"scratch": 91.93}, 53.2),
            Case("fpgm-mix", rate(0.4), {"scratch": 91.91}, 53.2),
        ),
    ),
    "resnet56": (
        93.59,
        (
            Case("sfp", rate(0.4), {"scratch": 92.26, "trained": 93.35}, 52.6),
            Case("asfp", rate(0.4), {"scratch": 92.44, "trained": 93.12}, 52.6),
            Case("fpgm", rate(0.4), {"scratch": 92.93, "trained": 93.49}, 52.6),
            Case("fpgm-mix", rate(0.4), {"scratch": 92.89, "trained": 93.26}, 52.6),
            Case("lfpc", macs(0.471), {"trained": 93.24}, 52.9),
        ),
    ),
    "resnet110": (
        93.68,
        (
            Case("sfp", rate(0.4), {"scratch": 92.62, "trained": 92.90}, 52.3),
            Case("asfp", rate(0.4), {"scratch": 93.20, "trained": 93.10}, 52.3),
            Case("fpgm", rate(0.4), {"scratch": 93.73, "trained": 93.74}, 52.3),
            Case("fpgm-mix", rate(0.4), {"scratch": 93.85}, 52.3),
            Case("lfpc", macs(0.397), {"trained": 93.07}, 60.3),
        ),
    ),
    "torchvision:resnet18": (
        70.28,
        (
            Case("asfp", rate(0.3), {"scratch": 67.41, "trained": 68.02}, 41.8),
            Case("fpgm", rate(0.3), {"scratch": 67.78, "trained": 68.34}, 41.8),
        ),
    ),
    "torchvision:resnet50": (
        76.15,
        (
            Case("sfp", rate(0.3), {"scratch": 74.61, "trained": 62.14}, 41.8),
            Case("asfp", rate(0.3), {"scratch": 74.88, "trained": 75.53}, 41.8),
            Case("fpgm", rate(0.3), {"scratch": 75.03, "trained": 75.59}, 42.2),
            Case("fpgm-mix", rate(0.3), {"scratch": 74.94, "trained": 75.50}, 42.2),
        ),
    ),
}
"""Network -> top-1 of the dense network, and the experiments on it."""
SOFT = tuple(Case(method, rate(0.3), {"scratch": None}) for method in ("sfp", "asfp", "fpgm", "fpgm-mix"))
OTHERS: tuple[float | None, tuple[Case, ...]] = (None, (*SOFT, Case("lfpc", macs(0.5), {"trained": None})))
"""For networks that the paper does not have, and the short form."""


def experiments(asked: Asked) -> Iterator[Experiment]:
    for network in asked.networks:
        full = IMAGENET if network.startswith("torchvision:") else CIFAR
        steps, dense = asked.trained(network, full)
        dense_top1, cases = CASES.get(network, OTHERS)
        for case in cases:
            for start, top1 in case.top1.items():
                origin = ("--from", str(dense)) if start == "trained" else ()
                pruning = (
                    *("train", *origin, *asked.network(network)),
                    *("--method", case.method, *case.amount, *method_flags(case.method, asked.short)),
                    *asked.training(schedule(case.method, start, full)).flags(),
                )
                yield Experiment(
                    f"{network}, {case.name}, {start}",
                    asked.folder(network, f"{case.name} {start}"),
                    steps,
                    pruning,
                    Published(dense_top1, top1, case.macs_less),
                    dense if steps and start == "scratch" else None,
                )


def schedule(method: str, start: str, full: Training) -> Training:
    """A trained network gets a tenth of the learning rate; LFPC's search comes before the same training."""
    if start == "trained":
        full = replace(full, learning_rate=full.learning_rate / 10)
    if method == "lfpc":
        milestones = tuple(SEARCH_EPOCHS + epoch for epoch in full.milestones)
        full = replace(full, epochs=SEARCH_EPOCHS + full.epochs, milestones=milestones)
    return full


def method_flags(method: str, short: bool) -> tuple[str, ...]:
    """The paper's settings of a method; a short run takes the defaults, which do more in few epochs."""
    settings = () if short else PAPER_LFPC if method == "lfpc" else PAPER
    return tuple(word for setting in settings for word in ("--set", setting))


if __name__ == "__main__":
    main(__doc__, experiments, ("resnet20", "resnet32", "resnet56", "resnet110"))
