"""What two processes find when they train together: each runs this module, prints what it found as JSON, and prunes and
fine-tunes by the command line.

`found_by_both` starts them, as torchrun would.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.cli import main
from edgeprune.datasets.images import Dataset
from edgeprune.errors import EdgepruneError
from edgeprune.methods.base import Budget, PruneRequest
from edgeprune.pruning.given_model import network_of
from edgeprune.pruning.while_training import MethodChoice, train_network
from edgeprune.training import collectives
from edgeprune.training.hooks import TrainingHooks
from edgeprune.training.loop import TrainSettings, fit
from edgeprune.training.ranks import Ranks
from edgeprune.training.state import weights_fingerprint
from edgeprune.zoo import build

BEGIN = "found: "
SETTINGS = TrainSettings(epochs=2, batch_size=16, learning_rate=0.05, precision="fp32", device="cpu")
STILL = replace(SETTINGS, epochs=1, learning_rate=1e-12)
"""Leaves the weights as they are, so that the statistics of the batches can be compared."""
METHODS: Mapping[str, tuple[str, ...]] = {"sfp": (), "fpgm-mix": (), "csgd": (), "lfpc": ("validation_batch=8",)}


def found_by_both(folder: Path) -> list[dict[str, Any]]:
    """What rank 0 and rank 1 found, and under "said" what the command line then said; it wrote the bundle `pruned` into
    the folder, in which each rank left a file with its output."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = []
    for rank in ("0", "1"):
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        with (folder / rank).open("w") as output:
            command, environment = [sys.executable, __file__], {**os.environ, **told}
            started.append(subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=output))
    try:
        codes = [process.wait(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    said = [(folder / rank).read_text().partition(BEGIN)[2] for rank in ("0", "1")]
    assert codes == [0, 0], said
    first_lines = [text.partition("\n") for text in said]
    return [{**json.loads(found), "said": rest} for found, _, rest in first_lines]


def toy_data(count: int = 35) -> Dataset:
    """Images whose class is their brightest channel. Of 35 in batches of 16 the last has 3: too few for both ranks."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    images = torch.rand(count, 3, 16, 16, generator=generator) * 0.5
    images[torch.arange(count), labels] += 0.5
    return Dataset("toy", images, labels, (), (0.5,) * 3, (0.5,) * 3)


class WithoutNorms(nn.Module):
    """The same on pieces as on whole batches; one layer is used in no forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear, self.unused = nn.Conv2d(3, 8, 3), nn.Linear(8, 3), nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.conv(images).relu().mean((2, 3)))


def without_norms() -> nn.Module:
    torch.manual_seed(0)
    return WithoutNorms()


def with_norms() -> nn.Module:
    torch.manual_seed(0)
    parts = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2))
    return nn.Sequential(*parts, nn.Linear(4, 3))


class Seeing(TrainingHooks):
    """Keeps BatchNorm's statistics of the last epoch."""

    def begin(self, model: nn.Module, optimizer: torch.optim.SGD) -> None:
        self.model = model

    def after_epoch(self, epoch: int) -> None:
        self.mean = self.model.get_buffer("1.running_mean").tolist()


class Drawing(TrainingHooks):
    """Moves weights at random, by torch's global random numbers, which differ between ranks."""

    def begin(self, model: nn.Module, optimizer: torch.optim.SGD) -> None:
        self.bias = model.get_parameter("conv.bias")

    @torch.no_grad()
    def after_epoch(self, epoch: int) -> None:
        self.bias += torch.rand(1)


def pruned_by(method: str) -> dict[str, Any]:
    torch.manual_seed(0)
    network = network_of(build("resnet8", num_classes=3).model, torch.zeros(1, 3, 16, 16))
    request = PruneRequest(rate=0.5, budget=Budget(macs=0.6) if method == "lfpc" else Budget())
    pruned = train_network(network, toy_data(), SETTINGS, MethodChoice(method, request, METHODS[method]))
    return {"plan": pruned.plan.sha256(), "weights": weights_fingerprint(pruned.model)}


def error_of(run: Callable[[], object]) -> str:
    try:
        run()
    except EdgepruneError as error:
        return str(error)
    return ""


def found() -> Mapping[str, Any]:
    rank, seen = Ranks.here().rank, Seeing()
    plain = fit(without_norms(), toy_data(), SETTINGS)
    fit(with_norms(), toy_data(32), STILL, hooks=seen)
    normed = fit(with_norms(), toy_data(), SETTINGS, test=toy_data(12))
    other = replace(toy_data(), images=toy_data().images + rank)
    return {
        "plain": {name: value.tolist() for name, value in plain.model.state_dict().items()},
        "history": [(record.loss, record.accuracy) for record in plain.history],
        "still": seen.mean,
        "normed": weights_fingerprint(normed.model),
        "test accuracy": [record.test_accuracy for record in normed.history],
        "sums": collectives.added_up([1.0 + rank, 10.0]),
        "of_first": [collectives.of_first(lambda: b"only there").decode(), collectives.of_first(bytes).decode()],
        "methods": {method: pruned_by(method) for method in METHODS},
        "other data": error_of(lambda: fit(without_norms(), other, SETTINGS)),
        "own numbers": error_of(lambda: fit(without_norms(), toy_data(), SETTINGS, hooks=Drawing())),
        "small batch": error_of(lambda: fit(without_norms(), toy_data(), replace(SETTINGS, batch_size=3))),
    }


def prune() -> int:
    flags = "--arch resnet8 --random-init --num-classes 10 --input-size 1,16,16 --method fpgm --rate 0.5"
    return main(f"prune {flags} --data digits --finetune-epochs 1 --precision fp32 -o pruned".split())


if __name__ == "__main__":
    print(BEGIN + json.dumps(found()), flush=True)
    sys.exit(prune())
