"""Weights that are fitted behind an activation: against a general minimiser, and that they never undo the structure."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, fx, nn

from edgeprune.methods.on_images import Moments, Refitted
from edgeprune.pruning.moments import moments
from edgeprune.pruning.past_activation import Behind, affine_of, fitted_behind, limits_of

LIMITS = [(0.0, math.inf), (0.0, 6.0)]


def problem(seed: int, *, filters: int = 3, padding_mode: str = "zeros") -> tuple[nn.Conv2d, Tensor, Tensor, Behind]:
    """A convolution, what it reads by now, what it gave before, and a BatchNorm and a stream behind it."""
    torch.manual_seed(seed)
    conv = nn.Conv2d(4, filters, 3, stride=2, padding=1, bias=False, padding_mode=padding_mode)
    before = torch.randn(16, 4, 9, 9)
    norm = nn.BatchNorm2d(filters).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.5, -0.8, 0.6])[:filters])
        norm.bias.copy_(torch.randn(filters) * 0.3)
        wanted = conv(before)
    scale, shift = affine_of(norm) or (torch.ones(()), torch.zeros(()))
    stream = torch.randn(16, filters, 5, 5) * 0.5
    return conv, before + 0.4 * torch.randn_like(before), wanted, Behind(scale, shift, [stream], (0.0, math.inf))


def plain(conv: nn.Conv2d, found: Moments, reads: np.ndarray) -> Refitted:
    """Ordinary least squares of each filter on the channels that it reads."""
    weights = np.zeros((len(reads), reads.shape[1] * 9))
    for row, pattern in enumerate(reads):
        columns = np.flatnonzero(np.repeat(pattern, 9))
        square = found.covariance[np.ix_(columns, columns)] + 1e-9 * np.eye(len(columns))
        weights[row, columns] = np.linalg.solve(square, found.cross[row, columns])
    return Refitted(weights.reshape(conv.weight.shape), found.wanted - weights @ found.read)


def error(conv: nn.Conv2d, one: Refitted, read: Tensor, wanted: Tensor, how: Behind) -> Tensor:
    """(filters,) the bound of the squared error of what the activation gives: as it is where the dense network is
    hidden, and of what the activation reads elsewhere."""
    low, high = how.limits
    read, wanted, stream = read.double(), wanted.double(), (how.stream or [torch.zeros(())])[0].double()
    if conv.padding_mode != "zeros":
        read = F.pad(read, [1] * 4, mode=conv.padding_mode)
    given = F.conv2d(
        read, torch.from_numpy(one.weight), torch.from_numpy(one.shift), conv.stride,
        conv.padding if conv.padding_mode == "zeros" else 0,
    )  # fmt: skip
    have, aim = (values * how.scale.double() + how.shift.double() + stream for values in (given, wanted))
    passing = torch.where(
        aim <= low, have.clamp(min=low) - low, torch.where(aim >= high, have.clamp(max=high) - high, have - aim)
    )
    return passing.square().sum((0, 2, 3))


READS = np.array([[True, True, False, True], [True, True, False, True], [False, True, True, False]])


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("seed", range(3))
def test_errors_behind_the_activation_fall(seed: int, padding_mode: str, limits: tuple[float, float]) -> None:
    conv, read, wanted, how = problem(seed, padding_mode=padding_mode)
    how = Behind(how.scale * (4 if limits[1] == 6 else 1), how.shift, how.stream, limits)
    found = moments(conv, [read], [wanted])
    first = plain(conv, found, READS)
    fitted = fitted_behind(conv, first, found, [read], [wanted], how)
    before, after = (error(conv, one, read, wanted, how) for one in (first, fitted))
    assert bool((after < before).all())
    assert not fitted.weight[~READS].any()


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_of_many_places_some_are_looked_at(padding_mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the convolution had twice the stride, and there were 12 of the 16 images."""
    monkeypatch.setattr("edgeprune.pruning.past_activation.ENOUGH", 2)
    conv, read, wanted, how = problem(3, padding_mode=padding_mode)
    found = moments(conv, [read], [wanted])
    first = plain(conv, found, READS)
    fitted = fitted_behind(conv, first, found, [read], [wanted], how)

    monkeypatch.setattr("edgeprune.pruning.past_activation.ENOUGH", 1000)
    wider = nn.Conv2d(4, 3, 3, stride=4, padding=1, bias=False, padding_mode=padding_mode)
    wider.load_state_dict(conv.state_dict())
    few, stream = wanted[:12, :, ::2, ::2], (how.stream or [])[0][:12, :, ::2, ::2]
    fewer = moments(wider, [read[:12]], [few])
    assert fewer.count == 12 * 9
    alone = fitted_behind(wider, first, fewer, [read[:12]], [few], Behind(how.scale, how.shift, [stream], how.limits))
    np.testing.assert_allclose(fitted.weight, alone.weight, rtol=0, atol=1e-10)
    np.testing.assert_allclose(fitted.shift, alone.shift, rtol=0, atol=1e-10)


def test_as_small_as_a_general_minimiser_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeprune.pruning.past_activation.ROUNDS", 300)
    monkeypatch.setattr("edgeprune.pruning.past_activation.DAMPING", 1e-9)
    conv, read, wanted, how = problem(5, filters=1)
    found = moments(conv, [read], [wanted])
    reads = np.array([[True, False, True, True]])
    fitted = fitted_behind(conv, plain(conv, found, reads), found, [read], [wanted], how)

    columns = np.flatnonzero(np.repeat(reads[0], 9))

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        """The bound that is minimised: errors where the dense network passes, and what passes where it does not."""
        free = torch.from_numpy(values).requires_grad_()
        weight = torch.zeros(36, dtype=torch.float64)
        weight[torch.from_numpy(columns)] = free[:-1]
        given = F.conv2d(read.double(), weight.reshape(1, 4, 3, 3), free[-1:], conv.stride, conv.padding)
        added = how.shift.double() + (how.stream or [])[0].double()
        have, aim = (part * how.scale.double() + added for part in (given, wanted.double()))
        total = torch.where(aim > 0, have - aim, have.clamp(min=0)).square().sum()
        total.backward()
        assert free.grad is not None
        return float(total.detach()), free.grad.numpy()

    start = np.append(fitted.weight.ravel()[columns], fitted.shift)
    least = minimize(loss, np.zeros_like(start), jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-14})
    assert loss(start)[0] == pytest.approx(least.fun, rel=1e-4)


def test_a_filter_that_reads_nothing_keeps_its_mean() -> None:
    conv, read, wanted, how = problem(1)
    found = moments(conv, [read], [wanted])
    reads = READS.copy()
    reads[1] = False
    first = plain(conv, found, reads)
    fitted = fitted_behind(conv, first, found, [read], [wanted], how)
    assert not fitted.weight[1].any()
    assert fitted.shift[1] == first.shift[1]


@pytest.mark.parametrize(
    ("module", "limits"),
    [(nn.ReLU(), (0.0, math.inf)), (nn.ReLU6(), (0.0, 6.0)), (nn.SiLU(), None), (nn.LeakyReLU(), None)],
)
def test_which_activations_hide_something(module: nn.Module, limits: tuple[float, float] | None) -> None:
    traced = fx.symbolic_trace(nn.Sequential(module))
    node = next(node for node in traced.graph.nodes if node.op == "call_module")
    assert limits_of(node, dict(traced.named_modules())) == limits
