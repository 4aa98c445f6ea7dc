"""Weights that torch computes at each forward become plain ones, and the network that has them stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from edgeprune.modules.baked import baked

WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "prune twice": lambda layer: prune.random_unstructured(prune.l1_unstructured(layer, "weight", 0.3), "weight", 0.3),
    "parametrized weight_norm": parametrizations.weight_norm,
    "parametrized spectral_norm": parametrizations.spectral_norm,
}
X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def network(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), wrap(nn.Conv2d(8, 8, 3)), nn.Flatten(), wrap(nn.Linear(200, 4))
    return nn.Sequential(*layers).eval()


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(X)


@pytest.mark.parametrize("name", WRAPS)
def test_the_copy_computes_the_same_with_plain_weights(name: str) -> None:
    model = network(WRAPS[name])
    model(X)  # leaves a computed tensor behind, which torch does not copy
    keys, expected = list(model.state_dict()), outputs(model)
    copied = baked(model)
    assert copied is not model
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(200, 4))
    assert set(copied.state_dict()) == set(plain.state_dict())
    plain.load_state_dict(copied.state_dict())
    torch.testing.assert_close(outputs(copied), expected)
    torch.testing.assert_close(outputs(plain), expected)
    assert type(copied[2]) is nn.Conv2d
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(outputs(model), expected)


def test_a_network_with_plain_weights_is_given_back_itself() -> None:
    model = network(lambda layer: layer)
    assert baked(model) is model
