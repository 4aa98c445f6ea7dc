"""Metrics and losses of the user's own: measured alike in torch and outside, and trained with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeprune.datasets.images import Dataset
from edgeprune.datasets.task import Task
from edgeprune.errors import InputError
from edgeprune.pruning.healing import loss_gradients
from edgeprune.training.evaluation import EvalResult, MetricResult, evaluate
from edgeprune.training.loop import TrainSettings, fit
from edgeprune.training.state import data_fingerprint


class Two(nn.Module):
    """Two outputs, in a dictionary that also holds a name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.conv(x)
        return {"map": y, "name": "two", "rest": [y.mean((2, 3)), None]}


class Seen:
    """Counts what it is given, as torchmetrics' metrics would; `reset` where the class below has it."""

    def __init__(self) -> None:
        self.images, self.total = 0, torch.zeros(())

    def update(self, outputs: tuple[Tensor, Tensor], targets: list[float]) -> None:
        self.images += len(targets)
        self.total = self.total + (outputs[1].mean(1) - torch.tensor(targets)).abs().sum()

    def compute(self) -> dict[str, Any]:
        return {"error": self.total / self.images, "each": torch.zeros(3), "images": self.images}


class Resettable(Seen):
    higher_is_better = False

    def reset(self) -> None:
        self.__init__()  # type: ignore[misc]


def loss(outputs: tuple[Tensor, Tensor], targets: list[float]) -> Tensor:
    return (outputs[1].mean(1) - torch.tensor(targets)).square().mean()


def data(metric: Any, of: Any = loss) -> Dataset:
    torch.manual_seed(0)
    images = torch.rand(10, 1, 4, 4)
    return Dataset("toy", images, images.mean((1, 2, 3)).tolist(), (), (0.0,), (1.0,), task=Task(metric, of))


@pytest.mark.parametrize("kind", [Seen, Resettable])
def test_a_metric_is_measured_anew_each_time(kind: type[Seen]) -> None:
    torch.manual_seed(0)
    network, given = Two(), data(kind())
    first, again = (evaluate(network, given, batch_size=4) for _ in range(2))
    assert first == again
    assert isinstance(first, MetricResult)
    assert list(first.metrics) == ["error", "images"]  # "each" is no single number
    assert (first.metric, first.metrics["images"], first.n) == ("error", 10, 10)
    assert first.higher_is_better is (kind is Seen)
    assert network.training

    def session(images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        outputs = network(torch.from_numpy(images))
        return [outputs["map"].detach().numpy(), outputs["rest"][0].detach().numpy()]

    outside = evaluate(session, given, batch_size=4)
    assert outside.value == pytest.approx(first.value, abs=1e-6)
    assert outside.loss == pytest.approx(first.loss, abs=1e-6)


def test_a_function_is_averaged_over_the_images() -> None:
    def share(outputs: tuple[Tensor, Tensor], targets: list[float]) -> float:
        return float(len(targets))

    result = evaluate(Two(), data(share, None), batch_size=4)
    assert isinstance(result, MetricResult)
    assert result.metrics == {"share": pytest.approx((4 * 4 + 4 * 4 + 2 * 2) / 10)}
    assert result.loss is None
    unnamed = evaluate(Two(), data(lambda outputs, targets: torch.tensor(0.5)))
    assert (unnamed.name, unnamed.value) == ("metric", 0.5)


def test_a_single_output_is_a_tensor() -> None:
    result = evaluate(nn.Flatten(), data(lambda outputs, targets: outputs.shape[1], None))
    assert result.value == 16


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (lambda outputs, targets: "good", "the metric gave a str"),
        (lambda outputs, targets: {"each": torch.zeros(3)}, "a dict without a number"),
        (lambda outputs, targets: float("nan"), "metric's metric is nan"),
        (lambda outputs, targets: outputs.argmax(1), "the metric raised AttributeError"),
    ],
)
def test_what_a_metric_does_wrong(metric: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        evaluate(Two(), data(metric))


def test_what_a_network_and_a_loss_do_wrong() -> None:
    with pytest.raises(InputError, match="bring a metric"):
        evaluate(Two(), replace(data(max), labels=torch.zeros(10, dtype=torch.long), task=None))
    with pytest.raises(InputError, match=r"the loss is \(10,\)"):
        evaluate(Two(), data(lambda outputs, targets: 1.0, lambda outputs, targets: torch.zeros(10)))
    with pytest.raises(InputError, match="training needs a loss"):
        fit(Two(), data(Seen(), None), TrainSettings(epochs=1))
    constant = data(Seen(), lambda outputs, targets: torch.tensor(1.0))
    for attempt in (lambda: fit(Two(), constant, TrainSettings(epochs=1)), lambda: loss_gradients(Two(), constant)):
        with pytest.raises(InputError, match="the loss has no gradients"):
            attempt()
    with pytest.raises(InputError, match="label-smoothing"):
        fit(Two(), data(Seen()), TrainSettings(epochs=1, label_smoothing=0.1))


def test_training_follows_the_loss_of_the_data() -> None:
    torch.manual_seed(0)
    given = data(Resettable())
    settings = TrainSettings(epochs=3, batch_size=4, learning_rate=0.1, precision="fp32", weight_decay=0.0)
    result = fit(Two(), given, settings, test=given)
    losses = [record.loss for record in result.history]
    assert losses == sorted(losses, reverse=True)
    last = result.history[-1]
    assert last.accuracy is None
    assert last.test_accuracy == evaluate(result.model, given).value


def test_gradients_are_those_of_the_mean_loss() -> None:
    torch.manual_seed(0)
    network, given = Two(), data(Seen())
    outputs = network(given.images)
    loss((outputs["map"], outputs["rest"][0]), given.labels).backward()  # type: ignore[no-untyped-call]
    assert network.conv.weight.grad is not None
    assert np.allclose(loss_gradients(network, given)["conv"], network.conv.weight.grad.numpy(), atol=1e-6)


def test_other_targets_are_other_data() -> None:
    given = data(Seen())
    changed = replace(given, labels=[*given.labels[:-1], 7.0])
    assert data_fingerprint(given) == data_fingerprint(data(Resettable()))
    assert data_fingerprint(given) != data_fingerprint(changed)


def test_top1_stays_what_it_was() -> None:
    labelled = Dataset("toy", torch.rand(4, 2, 1, 1), torch.tensor([0, 1, 0, 1]), (), (0.0,) * 2, (1.0,) * 2)
    result = evaluate(nn.Flatten(), labelled)
    assert isinstance(result, EvalResult)
    assert result.name == "top-1"
    assert result.value == result.top1
