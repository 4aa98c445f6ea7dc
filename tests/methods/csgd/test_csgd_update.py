"""The update of C-SGD against its definition (6), and the deviation against theorem 2, with real gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.methods.csgd.update import CentripetalUpdate, ClusteredRows, averaging_matrix

CLUSTERS = (0, 1, 0, 2, 1, 0, 3, 4)
LR, DECAY, EPSILON = 0.05, 0.01, 0.3


class Small(nn.Module):
    """A convolution with bias, BatchNorm, and a BatchNorm over flattened features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.flat_norm, self.head = nn.BatchNorm1d(8 * 4), nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.head(self.flat_norm(torch.flatten(x, 1)))

    def clustered(self) -> list[ClusteredRows]:
        tensors = (self.conv.weight, self.conv.bias, *self.norm.parameters(), *self.flat_norm.parameters())
        return [ClusteredRows(tensor, CLUSTERS) for tensor in tensors]


def small(dtype: torch.dtype = torch.float64) -> Small:
    torch.manual_seed(0)
    return Small().to(dtype=dtype, memory_format=torch.channels_last)


def optimizer_for(model: nn.Module, **options: object) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **{"lr": LR, "weight_decay": DECAY, **options})


def backward(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    images = torch.randn(16, 3, 8, 8, generator=generator).to(dtype)
    model.zero_grad()
    F.cross_entropy(model(images), torch.randint(0, 5, (16,), generator=generator)).backward()


def by_the_formula(weight: Tensor, gradient: Tensor) -> Tensor:
    """Equation (6), filter by filter."""
    weight, gradient = weight.detach().reshape(8, -1), gradient.reshape(8, -1)
    new = torch.empty_like(weight)
    for j in range(8):
        cluster = [k for k in range(8) if CLUSTERS[k] == CLUSTERS[j]]
        mean_gradient = sum(gradient[k] for k in cluster) / len(cluster)
        mean = sum(weight[k] for k in cluster) / len(cluster)
        new[j] = weight[j] + LR * (-mean_gradient - DECAY * weight[j] + EPSILON * (mean - weight[j]))
    return new


def test_a_step_is_the_one_of_the_definition_for_kernels_biases_and_norms() -> None:
    model = small()
    optimizer = optimizer_for(model)
    update = CentripetalUpdate(optimizer, model.clustered(), EPSILON)
    backward(model, 1)
    expected = {id(rows.tensor): by_the_formula(rows.tensor, rows.tensor.grad) for rows in model.clustered()}
    update.apply()
    optimizer.step()
    for rows in model.clustered():
        torch.testing.assert_close(rows.rows, expected[id(rows.tensor)], rtol=0, atol=1e-14)


def test_the_matrices_are_those_of_the_paper() -> None:
    gamma = averaging_matrix((7, 3, 7), torch.zeros(1, dtype=torch.float64))
    assert gamma.tolist() == [[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]]


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_filters_that_are_clusters_of_their_own_are_trained_by_plain_sgd(options: dict[str, object]) -> None:
    plain, model = small(), small()
    alone = [ClusteredRows(rows.tensor, tuple(range(8))) for rows in model.clustered()]
    optimizers = [optimizer_for(plain, **options), optimizer_for(model, **options)]
    update = CentripetalUpdate(optimizers[1], alone, EPSILON)
    for seed in range(4):
        backward(plain, seed)
        backward(model, seed)
        update.apply()
        for optimizer in optimizers:
            optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_parameters_outside_the_clusters_keep_their_gradient_and_their_weight_decay() -> None:
    model = small()
    optimizer = optimizer_for(model)
    update = CentripetalUpdate(optimizer, model.clustered(), EPSILON)
    backward(model, 1)
    gradient = model.head.weight.grad.clone()
    update.apply()
    assert torch.equal(model.head.weight.grad, gradient)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(model.head.weight)] == DECAY
    assert decays[id(model.conv.weight)] == 0.0
    assert len(decays) == len(list(model.parameters()))


def test_new_clusters_on_the_same_optimizer_keep_the_weight_decay_of_the_first() -> None:
    model = small()
    optimizer = optimizer_for(model)
    CentripetalUpdate(optimizer, [ClusteredRows(rows.tensor, (0,) * 8) for rows in model.clustered()], 1.0)
    groups = len(optimizer.param_groups)
    update = CentripetalUpdate(optimizer, model.clustered(), EPSILON)
    assert len(optimizer.param_groups) == groups
    backward(model, 1)
    expected = by_the_formula(model.conv.weight, model.conv.weight.grad)
    update.apply()
    optimizer.step()
    torch.testing.assert_close(model.conv.weight.reshape(8, -1), expected, rtol=0, atol=1e-14)


def test_a_parameter_without_a_gradient_is_still_drawn_to_its_mean() -> None:
    model = small()
    optimizer = optimizer_for(model)
    update = CentripetalUpdate(optimizer, model.clustered(), EPSILON)
    expected = by_the_formula(model.conv.weight, torch.zeros_like(model.conv.weight))
    update.apply()
    optimizer.step()
    torch.testing.assert_close(model.conv.weight.reshape(8, -1), expected, rtol=0, atol=1e-14)


def scale_after(steps: int, momentum: float, nesterov: bool) -> float:
    """What is left of a distance of 1 in a cluster: the recurrence that the module's docstring states."""
    distance, velocity, pull = 1.0, 0.0, EPSILON + DECAY
    for _ in range(steps):
        gradient = pull * distance
        velocity = momentum * velocity + gradient
        distance -= LR * (gradient + momentum * velocity if nesterov else velocity)
    return distance


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_the_deviation_falls_as_predicted_whatever_the_loss_does(momentum: float, nesterov: bool) -> None:
    model = small(torch.float32)
    optimizer = optimizer_for(model, momentum=momentum, nesterov=nesterov)
    update = CentripetalUpdate(optimizer, model.clustered(), EPSILON)
    optimizer.register_step_pre_hook(lambda *_: update.apply())
    kernels = ClusteredRows(model.conv.weight, CLUSTERS)
    start, before = kernels.deviation(), model.conv.weight.detach().clone()
    if momentum == 0:
        assert scale_after(100, 0.0, False) == pytest.approx((1 - LR * (EPSILON + DECAY)) ** 100)  # theorem 2
    for step in range(1, 101):
        backward(model, step)
        optimizer.step()
        predicted = start * scale_after(step, momentum, nesterov) ** 2
        if predicted > 1e-8 * start:  # below, the rounding of float32 weights is seen
            assert kernels.deviation() == pytest.approx(predicted, rel=0.01)
    assert (model.conv.weight - before).abs().max() > 0.05  # the loss did move the filters


def test_collapsing_makes_filters_equal_to_the_last_bit_at_their_mean() -> None:
    model = small(torch.float32)
    means = [ClusteredRows(rows.tensor, CLUSTERS).rows.double().clone() for rows in model.clustered()]
    for rows, before in zip(model.clustered(), means, strict=True):
        rows.collapse()
        for j in range(8):
            cluster = [k for k in range(8) if CLUSTERS[k] == CLUSTERS[j]]
            assert torch.equal(rows.rows[j], rows.rows[cluster[0]])
            torch.testing.assert_close(rows.rows[j].double(), before[cluster].mean(0), rtol=0, atol=1e-7)
        assert rows.deviation() < 1e-12
