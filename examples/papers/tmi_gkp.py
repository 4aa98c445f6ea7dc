"""TMI-GKP on CIFAR-10: grouped kernels pruned, in filter clusters that tickets vote for.

The main experiment of "Revisit Kernel Pruning with Lottery Regulated Grouped Convolutions" (paper 000 in the code).

python examples/papers/tmi_gkp.py --data cifar10:DIR -o runs/tmi_gkp [--networks resnet20,resnet56] [--dry-run]
python examples/papers/tmi_gkp.py --short -o runs/tmi_gkp_short

Trains each network with a ticket after each epoch from 35 to 70, prunes 43.75% of the grouped kernels in 8 groups,
fine-tunes, exports, and measures.

- training: 300 epochs, batch 64, SGD 0.1, a tenth after 100 and 200, momentum 0.9, weight decay 5e-4 (on ImageNet 90
  epochs, a tenth after 30 and 60, weight decay 1e-4); random crops and mirrored images;
- pruning: 8 groups, rate 43.75%, three clustering schemes, 36 tickets, alpha 0.5, gamma 0.2 C_in; beta is 2 for
  ResNet-56, 1 for ResNet-32, else auto; every layer is clustered for itself (--no-share-partitions: this needs Gathers
  at the residual adds, which edgeprune's default saves);
- fine-tuning: the same training again, from a learning rate of 0.01.

This is the paper's supplement 0.3, but for two points: the momentum is Nesterov's, and on ImageNet the tickets are
those of the same shares of the run.

The text of the paper lacks the numbers of its main table. Those below are of the runs that its authors published with
their code, which give the accuracy of the best epoch on the test images; 43% is what the paper says of both savings.

| network | dense | after pruning | after fine-tuning | MACs less | parameters less |
|---|---|---|---|---|---|
| ResNet-20 | 92.35 | 22.81 | 92.01 | about 43% | about 43% |
| ResNet-32 | 92.82 | 18.10 | 93.04 | about 43% | about 43% |
| ResNet-56 | 93.78 | 19.57 | 94.00 | about 43% | about 43% |
| ResNet-110 | 94.26 | 17.32 | 94.90 | about 43% | about 43% |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from steps import Asked, Experiment, Published, Training, main

CIFAR = Training(300, 64, 0.1, 5e-4, milestones=(100, 200))
IMAGENET = Training(90, 64, 0.1, 1e-4, milestones=(30, 60))
FIRST_TICKET, LAST_TICKET = 35 / 300, 70 / 300
"""Shares of the training run."""
BETA = {"resnet56": 2, "resnet32": 1}
PUBLISHED = {
    "resnet20": Published(92.35, 92.01, 43, 43, 22.81),
    "resnet32": Published(92.82, 93.04, 43, 43, 18.10),
    "resnet56": Published(93.78, 94.00, 43, 43, 19.57),
    "resnet110": Published(94.26, 94.90, 43, 43, 17.32),
}


def experiments(asked: Asked) -> Iterator[Experiment]:
    for network in asked.networks:
        full = IMAGENET if network.startswith("torchvision:") else CIFAR
        epochs = asked.training(full).epochs
        first = max(1, round(FIRST_TICKET * epochs))
        last = max(first, round(LAST_TICKET * epochs))
        steps, dense = asked.trained(network, full, "--tickets", f"{first}:{last}:1")
        tickets = ("--tickets", str(dense / "tickets")) if steps else ()
        pruning = (
            *("prune", str(dense), *asked.network(network)),
            *("--method", "tmi-gkp", "--groups", "8", "--rate", "0.4375"),
            *("--set", f"beta={BETA.get(network, 'auto')}", "--no-share-partitions", *tickets),
        )
        yield Experiment(
            f"{network}, 8 groups, 43.75%",
            asked.folder(network, "tmi-gkp"),
            steps,
            pruning,
            PUBLISHED.get(network, Published()),
            finetuning=asked.finetuning(replace(full, learning_rate=0.01)),
        )


if __name__ == "__main__":
    main(__doc__, experiments, tuple(PUBLISHED))
