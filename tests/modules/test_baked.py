"""Weights that torch computes at each forward become plain ones, and the network that has them stays as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from found_networks import StandardisedConv
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from edgeprune.modules.baked import baked
from edgeprune.modules.plain_layers import plain_form

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


class Guarded(nn.Linear):
    """As timm's Linear: the same layer."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, bias=self.bias)


class Doubled(nn.Conv2d):
    """Does more than a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups) * 2


class Dynamic(nn.Conv2d):
    """Its weight depends on the image."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * x.mean(), self.bias)


def test_layers_that_standardise_their_weights_become_the_convolutions_that_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), StandardisedConv(8), nn.Flatten(), Guarded(392, 4)).eval()
    expected, weight = outputs(model), model[3].weight
    copied = baked(model)
    assert [type(layer) for layer in copied] == [nn.Conv2d, nn.Conv2d, nn.Flatten, nn.Linear]
    assert (copied[1].padding, copied[1].stride) == ((1, 1), (1, 1))
    torch.testing.assert_close(outputs(copied), expected)
    assert "1.gain" not in copied.state_dict()
    assert model[3].weight is weight
    assert plain_form(model[3]).weight is weight


def test_layers_that_do_more_are_left_as_they_are() -> None:
    model = nn.Sequential(Doubled(3, 4, 3), Dynamic(4, 4, 3))
    assert baked(model) is model
    hooked = Guarded(4, 4)
    hooked.register_forward_hook(lambda module, inputs, output: output * 2)
    assert plain_form(hooked) is None


def test_a_network_with_plain_weights_is_given_back_itself() -> None:
    model = network(lambda layer: layer)
    assert baked(model) is model
