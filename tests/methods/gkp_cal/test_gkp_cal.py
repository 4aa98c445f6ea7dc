"""gkp-cal: exact elimination, divisions by cost, and the pass over a network, against least squares by hand."""

from __future__ import annotations

import itertools

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import edgeprune
from edgeprune.datasets.images import Dataset, load_data
from edgeprune.errors import InputError
from edgeprune.graph import Layer
from edgeprune.methods.gkp_cal.assignment import group
from edgeprune.methods.gkp_cal.elimination import Matrix, eliminate, errors_without, saliency, solved
from edgeprune.methods.on_images import Moments, Refitted
from edgeprune.pruning.layerwise import Calibration
from edgeprune.training.evaluation import EvalResult, evaluate
from edgeprune.training.loop import TrainSettings, fit
from edgeprune.zoo import build

SIZE = 4  # weights of a kernel


def problem(seed: int, channels: int = 5, filters: int = 3) -> tuple[Matrix, Matrix, Matrix]:
    """Columns u (columns, n), outputs y (filters, n), and the damping's matrix is left out: H = u u^T / n."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(channels * SIZE, channels * SIZE))
    u = mixing @ rng.normal(size=(channels * SIZE, 300))
    y = rng.normal(size=(filters, channels * SIZE)) @ u + rng.normal(size=(filters, 300))
    return u, y, u @ u.T / 300


def least_error(u: Matrix, y: Matrix, channels: tuple[int, ...]) -> tuple[Matrix, Matrix]:
    """(filters, kept * SIZE) weights and (filters,) mean squared errors, by a solver that knows no inverse."""
    rows = u.reshape(-1, SIZE, u.shape[1])[list(channels)].reshape(-1, u.shape[1])
    weights = np.linalg.lstsq(rows.T, y.T, rcond=None)[0].T
    return weights, np.square(y - weights @ rows).mean(1)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), keep=st.integers(1, 4))
def test_elimination_is_exact_after_any_number_of_steps(seed: int, keep: int) -> None:
    u, y, covariance = problem(seed)
    weights, inverse = solved(covariance, y @ u.T / u.shape[1], np.zeros((len(y), len(u))), 0.0)
    found = eliminate(weights, inverse, SIZE, keep)
    expected, errors = least_error(u, y, found.kept)
    np.testing.assert_allclose(found.weights.reshape(len(y), -1), expected, rtol=1e-6, atol=1e-8)
    rise = errors.sum() - least_error(u, y, tuple(range(5)))[1].sum()
    assert found.error == pytest.approx(rise, rel=1e-6)


def test_the_first_channel_to_go_is_the_cheapest_of_all() -> None:
    u, y, covariance = problem(1)
    weights, inverse = solved(covariance, y @ u.T / u.shape[1], np.zeros((len(y), len(u))), 0.0)
    found = eliminate(weights, inverse, SIZE, 4)
    best = min(itertools.combinations(range(5), 4), key=lambda kept: least_error(u, y, kept)[1].sum())
    assert found.kept == best


def test_saliency_and_errors_are_what_least_squares_says() -> None:
    u, y, covariance = problem(2)
    weights, inverse = solved(covariance, y @ u.T / u.shape[1], np.zeros((len(y), len(u))), 0.0)
    dense = least_error(u, y, tuple(range(5)))[1]
    single = saliency(weights, inverse, SIZE)
    for channel in range(5):
        kept = tuple(c for c in range(5) if c != channel)
        np.testing.assert_allclose(single[:, channel], least_error(u, y, kept)[1] - dense, rtol=1e-6)
    without = errors_without(weights, inverse, SIZE, (1, 3))
    np.testing.assert_allclose(without, least_error(u, y, (0, 2, 4))[1] - dense, rtol=1e-6)


def test_weights_go_from_the_dense_ones_only_as_far_as_the_images_tell() -> None:
    u, y, covariance = problem(4)
    dense = np.random.default_rng(0).normal(size=(3, 20))
    added = 0.5 * float(np.trace(covariance)) / 20
    weights, _ = solved(covariance, y @ u.T / u.shape[1], dense, added)
    rows = np.concatenate([u / np.sqrt(u.shape[1]), np.sqrt(added) * np.eye(20)], axis=1)
    targets = np.concatenate([y / np.sqrt(u.shape[1]), np.sqrt(added) * dense], axis=1)
    np.testing.assert_allclose(weights, np.linalg.lstsq(rows.T, targets.T, rcond=None)[0].T, rtol=1e-8)
    nothing, _ = solved(np.zeros((20, 20)), np.zeros((3, 20)), dense, 1e-3)
    np.testing.assert_allclose(nothing, dense)


def test_groups_are_of_one_size_and_found_where_they_are() -> None:
    """Filters that read either the first or the last channels go to groups of their own."""
    rng = np.random.default_rng(0)
    reads = rng.permutation(np.repeat([0, 1], 6))
    weights = rng.normal(size=(12, 8, SIZE)) * 1e-3
    for filter_, side in enumerate(reads):
        weights[filter_, 4 * side : 4 * side + 4] += rng.normal(size=(4, SIZE))
    found = group(weights.reshape(12, -1), np.eye(32), SIZE, 2, 4, np.random.default_rng(1))
    assert len(set(zip(found.labels.tolist(), reads.tolist(), strict=True))) == 2
    assert {part.kept for part in found.groups} == {(0, 1, 2, 3), (4, 5, 6, 7)}
    again = group(weights.reshape(12, -1), np.eye(32), SIZE, 2, 4, np.random.default_rng(1))
    assert (again.labels == found.labels).all()


def test_exact_errors_never_make_the_division_worse() -> None:
    u, y, covariance = problem(3, channels=6, filters=8)
    weights, inverse = solved(covariance, y @ u.T / u.shape[1], np.zeros((len(y), len(u))), 1e-3)
    errors = [group(weights, inverse, SIZE, 4, 3, np.random.default_rng(0), refine=n).error for n in (0, 1, 3)]
    assert errors[0] >= errors[1] >= errors[2]


# -- the pass over a network -------------------------------------------------------------------------------------------
def images(count: int = 40, size: int = 16) -> Dataset:
    pixels = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Dataset("noise", pixels, torch.zeros(count, dtype=torch.int64), (), (0.0,) * 3, (1.0,) * 3)


def least_squares(layer: Layer, moments: Moments) -> Refitted:
    """All kernels, fitted."""
    weights, _ = solved(moments.covariance, moments.cross, np.zeros_like(moments.cross), 1e-9)
    shape = (layer.out_channels, layer.in_channels, *layer.kernel_size)
    return Refitted(weights.reshape(shape), moments.wanted - weights @ moments.read)


def test_a_network_that_is_fitted_to_itself_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = networks.settled(networks.Residual())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    work, seen = Calibration(model, images()), list[Moments]()

    def fitted(layer: Layer, moments: Moments) -> Refitted:
        seen.append(moments)
        return least_squares(layer, moments)

    names = ["a", "b", "c", "d", "e"]
    work.refit(names, fitted)
    assert len(seen) == len(names)
    x = images(4).images
    with torch.no_grad():
        wanted = model(x)
        torch.testing.assert_close(work.model(x), wanted, rtol=0, atol=0.01 * float(wanted.abs().max()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "the given one is left"


class Stream(nn.Module):
    """Two branches that are added to a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.a_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.b_norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        x += self.a_norm(self.a(x))
        y = self.b_norm(self.b(x))
        y += x
        return y


def test_moments_are_those_of_what_a_layer_reads_by_then_and_of_what_the_stream_lacks() -> None:
    torch.manual_seed(0)
    model = networks.settled(Stream())
    found = dict[str, Moments]()

    def halved(layer: Layer, moments: Moments) -> Refitted:
        found[layer.name] = moments
        weight = model.get_submodule(layer.name).weight.detach().double().numpy() / 2
        return Refitted(weight, np.full(layer.out_channels, 0.25))

    work = Calibration(model, images())
    work.refit(["a", "b"], halved)
    with torch.no_grad():
        stem = F.relu(model.stem(images().images))
        dense = stem + model.a_norm(model.a(stem))
        by_then = stem + model.a_norm(model.a(stem) / 2 + 0.25)
        u = F.unfold(by_then, 3, padding=1).transpose(0, 1).reshape(72, -1).double()
        norm = model.b_norm
        scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).reshape(1, -1, 1, 1)
        y = (model.b(dense) + (dense - by_then) / scale).transpose(0, 1).reshape(8, -1).double()
    moments = found["b"]
    assert moments.count == u.shape[1] == 40 * 16 * 16
    np.testing.assert_allclose(moments.covariance, np.cov(u.numpy(), bias=True), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(moments.wanted, y.mean(1).numpy(), rtol=1e-3, atol=1e-4)
    centred = y - y.mean(1, keepdim=True)
    np.testing.assert_allclose(moments.cross, (centred @ u.T / u.shape[1]).numpy(), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        x = images(3).images
        stem = F.relu(model.stem(x))
        stream = stem + model.a_norm(model.a(stem) / 2 + 0.25)
        torch.testing.assert_close(work.model(x), stream + model.b_norm(model.b(stream) / 2 + 0.25))


def test_a_bias_counts_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        model[2].bias.fill_(5.0)
    work = Calibration(model, images())
    work.refit(["2"], least_squares)
    torch.testing.assert_close(work.model[2].bias, model[2].bias, rtol=0, atol=1e-3)


def test_activations_that_are_not_finite_are_told_with_their_layer() -> None:
    model = networks.settled(networks.Residual())
    with torch.no_grad():
        model.stem.weight[0, 0, 0, 0] = torch.inf
    with pytest.raises(InputError, match="a gives NaN or infinite values"):
        Calibration(model, images(4)).refit(["a"], least_squares)


# -- the method --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Dataset]:
    """A small network for scans of digits, and the images that it was not trained on."""
    shape = (1, 16, 16)
    torch.manual_seed(0)
    model = build("resnet8-w16", num_classes=10, in_channels=1, input_size=shape[1:]).model
    train = load_data("digits", split="train", input_shape=shape, num_classes=10)
    test = load_data("digits", split="test", input_shape=shape, num_classes=10)
    return fit(model, train, TrainSettings(epochs=4, learning_rate=0.1, batch_size=64)).model.eval(), test


def accuracy(model: nn.Module, data: Dataset) -> float:
    result = evaluate(model, data)
    assert isinstance(result, EvalResult)
    return result.top1


def test_it_keeps_what_other_methods_lose_without_training(trained: tuple[nn.Module, Dataset]) -> None:
    model, test = trained
    example, asked = torch.zeros(1, 1, 16, 16), {"groups": 4, "rate": 0.5, "heal": "none"}
    dense = accuracy(model, test)
    calibrated = edgeprune.prune(model, example, method="gkp-cal", data="digits", **asked)
    by_weights = edgeprune.prune(model, example, method="tmi-gkp", settings={"scheme": "kpca"}, **asked)
    assert calibrated.macs.pruned == by_weights.macs.pruned
    assert accuracy(calibrated.model, test) > dense - 12
    assert accuracy(calibrated.model, test) > accuracy(by_weights.model, test) + 10
    again = edgeprune.prune(model, example, method="gkp-cal", data="digits", **asked)
    assert again.plan.sha256() == calibrated.plan.sha256()


def test_images_that_say_nothing_do_no_harm(trained: tuple[nn.Module, Dataset]) -> None:
    """All black: the moments have no rank at all in the first layers."""
    model, _ = trained
    black = Dataset("black", torch.zeros(20, 1, 16, 16), torch.zeros(20, dtype=torch.int64), (), (0.0,), (1.0,))
    pruned = edgeprune.prune(model, torch.zeros(1, 1, 16, 16), method="gkp-cal", groups=4, data=black, heal="none")
    with torch.no_grad():
        assert pruned.model(torch.randn(2, 1, 16, 16)).isfinite().all()


def test_it_says_what_it_needs(trained: tuple[nn.Module, Dataset]) -> None:
    model, _ = trained
    example = torch.zeros(1, 1, 16, 16)
    with pytest.raises(InputError, match="fitted on images, and there are none.*pass --data"):
        edgeprune.prune(model, example, method="gkp-cal")
    few = load_data("digits", split="train", input_shape=(1, 16, 16)).first(1)
    notes = edgeprune.prune(model, example, method="gkp-cal", groups=4, data=few, heal="none").result.notes
    assert any("images" in note and "would do" in note for note in notes)
    for name, value in (("damping", 0.0), ("refine", -1)):
        with pytest.raises(InputError, match=f"setting {name}"):
            edgeprune.prune(model, example, method="gkp-cal", data=few, settings={name: value})


@pytest.mark.parametrize("include_shortcuts", [False, True])
def test_shortcuts_with_convolutions(include_shortcuts: bool) -> None:
    """Two layers end in one addition there, and each would make up for what the other lacks."""
    torch.manual_seed(3)
    network = build("resnet8-b", num_classes=10).model.eval()
    pruned = edgeprune.prune(
        network, torch.zeros(1, 3, 32, 32), method="gkp-cal", groups=4, data=images(32, 32), heal="none",
        include_shortcuts=include_shortcuts,
    )  # fmt: skip
    assert pruned.macs.pruned < pruned.macs.dense
    assert bool(pruned.model(torch.randn(2, 3, 32, 32)).isfinite().all())
