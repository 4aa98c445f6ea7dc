"""The library's functions on networks as people write them: what they return, check and fix, and what is refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from edgeprune import api
from edgeprune.errors import GateError, InputError

X = torch.zeros(1, 3, 12, 12)


class TwoLayers(nn.Module):
    """Two convolutions and a classifier, with whatever forward a test gives it."""

    def __init__(self, forward: Callable[[TwoLayers, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head, self.given = nn.Linear(16, 4), forward

    def forward(self, x: Tensor) -> Any:
        return self.given(self, x)

    def scores(self, x: Tensor) -> Tensor:
        return self.head(self.second(x).relu().mean((2, 3)))  # type: ignore[no-any-return]


def with_a_name(net: TwoLayers, x: Tensor) -> dict[str, object]:
    return {"scores": net.scores(net.first(x).relu()), "name": "two layers", "layers": 3, "loss": None}


def in_float32(net: TwoLayers, x: Tensor) -> Tensor:
    return net.head(net.second(net.first(x).relu()).float().mean((2, 3)))  # type: ignore[no-any-return]


def checking_channels(net: TwoLayers, x: Tensor) -> Tensor:
    x = net.first(x).relu()
    assert x.shape[1] == net.second.in_channels
    return net.scores(x)


def assigning(net: TwoLayers, x: Tensor) -> Tensor:
    x = net.first(x).relu()
    x[:, :8] = 0
    return net.scores(x)


class Scores(NamedTuple):
    scores: Tensor
    features: Tensor


def by_name(net: TwoLayers, x: Tensor) -> Scores:
    x = net.first(x).relu()
    return Scores(net.scores(x), x)


@pytest.mark.parametrize(
    ("forward", "method"),
    [*product([with_a_name, in_float32, checking_channels], ["gconv", "tmi-gkp"]), (by_name, "gconv")],
)
def test_what_a_forward_returns_fixes_and_checks_is_left_to_it(
    forward: Callable[..., Any], method: str, tmp_path: Path
) -> None:
    pruned = api.prune(TwoLayers(forward), X, method=method, groups=2)
    pruned.model(torch.randn(2, 3, 12, 12))
    bundle = api.export(pruned, tmp_path / "out")
    assert bundle.manifest.parity is not None
    assert bundle.manifest.parity.passed


def test_assignments_into_a_tensor_are_refused_under_that_name() -> None:
    with pytest.raises(InputError, match="assigns into a tensor"):
        api.prune(TwoLayers(assigning), X, method="gconv", groups=2)


def test_a_layer_without_weights_yet_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.LazyConv2d(8, 3))
    with pytest.raises(InputError, match="lazy layer.*run it once"):
        api.prune(network, X, method="gconv", groups=2)


@pytest.mark.parametrize("name", ["groups", "seed", "share_partitions", "nonsense"])
def test_arguments_that_are_not_taken_are_refused_under_the_functions_name(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^train\(\) got an unexpected keyword argument '{name}'"):
        api.train(nn.Conv2d(3, 8, 3), X, "cifar10", method="fpgm", **{name: 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^export\(\) got an unexpected keyword argument 'nonsense'"):
        api.export(None, "out", nonsense=1)  # type: ignore[arg-type]


def plain(net: TwoLayers, x: Tensor) -> Tensor:
    return net.scores(net.first(x).relu())


def doubled(_: nn.Module, given: Any, output: Tensor | None = None) -> Any:
    return (given[0] * 2,) if output is None else output * 2


def test_hooks_that_are_lost_are_named(tmp_path: Path) -> None:
    network = TwoLayers(plain)
    network.register_forward_hook(doubled)
    with pytest.raises(InputError, match="TwoLayers: a forward hook on the network changes what it gives"):
        api.prune(network, X, method="gconv", groups=2)
    network = TwoLayers(plain)
    network.first.register_forward_hook(lambda *_: None)  # only looks
    network.second.register_forward_pre_hook(doubled)
    pruned = api.prune(network, X, method="gconv", groups=2)
    with pytest.raises(GateError, match="parity failed.*the forward hooks on second change what it computes"):
        api.export(pruned, tmp_path / "out")


def test_hooks_that_only_look_are_no_reason_for_anything(tmp_path: Path) -> None:
    network = TwoLayers(plain)
    network.register_forward_hook(lambda *_: None)
    assert api.prune(network, X, method="gconv", groups=2).plan.grouped()


def test_the_callers_model_stays_in_training(tmp_path: Path) -> None:
    network = TwoLayers(plain).train()
    pruned = api.prune(network, X, method="gconv", groups=2)
    assert all(module.training for module in network.modules())
    assert not pruned.network.model.training


def test_tied_weights_are_said_to_be() -> None:
    network = TwoLayers(plain)
    network.third = nn.Conv2d(16, 16, 3, padding=1)
    network.third.weight = network.second.weight
    network.given = lambda net, x: net.scores(net.third(net.first(x)).relu())
    with pytest.raises(InputError, match="third: its weights are used at several places; second: its weights"):
        api.prune(network, X, method="gconv", groups=2)


def test_what_is_no_network_is_told_so() -> None:
    network = TwoLayers(plain).eval()
    for given, told in (
        (torch.jit.trace(network, X), "is TorchScript, which has no Python forward to trace.*TorchScript file"),
        (torch.compile(network), "is what torch.compile made of a network.*pass model._orig_mod"),
        (
            torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)).eval()),
            "is no tensor, as in a quantized network.*prune first",
        ),
        (network.forward, "the model is a method; expected a torch.nn.Module"),
    ):
        with pytest.raises(InputError, match=told):
            api.prune(given, X, method="gconv", groups=2)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the example input is a ndarray; expected a tensor"):
        api.prune(network, X.numpy(), method="gconv", groups=2)  # type: ignore[arg-type]


def test_help_shows_what_is_taken() -> None:
    assert {"rate", "budget", "skip", "align"} <= set(inspect.signature(api.train).parameters)
    assert inspect.signature(api.export).parameters["opset"].default == 20
