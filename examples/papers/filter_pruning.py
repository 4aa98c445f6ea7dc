"""SFP, ASFP, FPGM, FPGM-mix and LFPC (paper 004) on CIFAR-10 or ImageNet: filters pruned while the network is trained.

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
paper searches on a trained network and then trains another one anew.

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

The paper measured ResNet-50 on a GTX 1080 Ti, batch 64: 29.8% less time where theory says 41.8%.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from steps import Asked, Experiment, Published, Training, main

CIFAR = Training(200, 128, 0.1, 5e-4, milestones=(60, 120, 160), gamma=0.2)
IMAGENET = Training(100, 256, 0.1, 1e-4, milestones=(30, 60, 90))
SEARCH_EPOCHS = 600
LFPC = (
    *("search_share=0.75", "weights=fixed", "validation_share=0.5", "validation_batch=256"),
    *("learning_rate=0.001", "weight_decay=0.001", "first_temperature=5", "last_temperature=0.1"),
    "computation_weight=2",
)
LFPC_SHORT = ("search_share=0.5",)
"""A tenth of the search's steps and fewer would leave its learning rate of 0.001 no time: the method's own defaults."""


@dataclass(frozen=True)
class Case:
    """One experiment: a method at a rate, or within a budget; top-1 from scratch and from a trained network."""

    method: str
    amount: tuple[str, str]
    macs_less: float | None = None
    scratch: float | None = None
    trained: float | None = None

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
            Case("sfp", rate(0.3), 42.2, 90.83),
            Case("fpgm", rate(0.4), 54.0, 90.44),
            Case("fpgm-mix", rate(0.4), 54.0, 90.62),
        ),
    ),
    "resnet32": (
        92.63,
        (
            Case("sfp", rate(0.3), 41.5, 92.08),
            Case("fpgm", rate(0.4), 53.2, 91.93),
            Case("fpgm-mix", rate(0.4), 53.2, 91.91),
        ),
    ),
    "resnet56": (
        93.59,
        (
            Case("sfp", rate(0.4), 52.6, 92.26, 93.35),
            Case("asfp", rate(0.4), 52.6, 92.44, 93.12),
            Case("fpgm", rate(0.4), 52.6, 92.93, 93.49),
            Case("fpgm-mix", rate(0.4), 52.6, 92.89, 93.26),
            Case("lfpc", macs(0.471), 52.9, None, 93.24),
        ),
    ),
    "resnet110": (
        93.68,
        (
            Case("sfp", rate(0.4), 52.3, 92.62, 92.90),
            Case("asfp", rate(0.4), 52.3, 93.20, 93.10),
            Case("fpgm", rate(0.4), 52.3, 93.73, 93.74),
            Case("fpgm-mix", rate(0.4), 52.3, 93.85),
            Case("lfpc", macs(0.397), 60.3, None, 93.07),
        ),
    ),
    "torchvision:resnet18": (
        70.28,
        (Case("asfp", rate(0.3), 41.8, 67.41, 68.02), Case("fpgm", rate(0.3), 41.8, 67.78, 68.34)),
    ),
    "torchvision:resnet50": (
        76.15,
        (
            Case("sfp", rate(0.3), 41.8, 74.61, 62.14),
            Case("asfp", rate(0.3), 41.8, 74.88, 75.53),
            Case("fpgm", rate(0.3), 42.2, 75.03, 75.59),
            Case("fpgm-mix", rate(0.3), 42.2, 74.94, 75.50),
        ),
    ),
}
"""Network -> top-1 of the dense network, and the experiments on it."""
EVERY_METHOD = tuple(Case(method, rate(0.4)) for method in ("sfp", "asfp", "fpgm", "fpgm-mix"))
OTHERS = (None, (*EVERY_METHOD, Case("lfpc", macs(0.5))))
"""For networks that the paper does not have, and the short form: every method, from the trained network."""


def experiments(asked: Asked) -> Iterator[Experiment]:
    for network in asked.networks:
        full = IMAGENET if network.startswith("torchvision:") else CIFAR
        steps, dense = asked.trained(network, full)
        dense_top1, cases = CASES.get(network, OTHERS)
        for case in cases:
            for start, top1 in (("scratch", case.scratch), ("trained", case.trained)):
                if top1 is None and (start == "scratch" or dense_top1 is not None):
                    continue  # not in the paper
                origin = ("--from", str(dense)) if start == "trained" else ()
                pruning = (
                    *("train", *origin, "--arch", network, "--data", asked.data),
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
    """The settings in which the paper differs from the method's defaults."""
    if method != "lfpc":
        return ()
    return tuple(word for value in (LFPC_SHORT if short else LFPC) for word in ("--set", value))


if __name__ == "__main__":
    main(__doc__, experiments, ("resnet20", "resnet32", "resnet56", "resnet110"))
