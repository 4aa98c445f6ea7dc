"""Weights that a checkpoint holds in parts: masks, weight norm and spectral norm."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from edgeprune.checkpoints.checkpoint import load_into, read_state_dict

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ConvTranspose2d(6, 6, 2, bias=False), nn.ConvTranspose2d(6, 5, 2),
        nn.Conv2d(5, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip


LAYERS = (0, 1, 2, 3, 6)
KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": nn.utils.weight_norm,
    "weight_norm dim 1": lambda layer: nn.utils.weight_norm(layer, dim=1),
    "weight_norm whole": lambda layer: nn.utils.weight_norm(layer, dim=None),
    "parametrized weight_norm": parametrizations.weight_norm,
    "parametrized weight_norm whole": lambda layer: parametrizations.weight_norm(layer, dim=None),
    "spectral_norm": nn.utils.spectral_norm,
    "parametrized spectral_norm": parametrizations.spectral_norm,
    "masks": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
}


def normed(kind: str) -> nn.Sequential:
    """A network whose weights are held in parts that were trained a little."""
    model = net()
    for index in LAYERS:
        KINDS[kind](model[index])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5).add_(torch.randn_like(parameter) * 0.05)
        for _ in range(30):  # spectral norm looks for its u and v while it is trained
            model(torch.randn(2, 3, 6, 6))
    return model.eval()


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    torch.save(tensors, path)
    return path


@pytest.mark.parametrize("prefix", ["", "net.backbone."])
@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_network_gets_the_weights_that_the_parts_make(tmp_path: Path, kind: str, prefix: str) -> None:
    source, target = normed(kind), net().eval()
    path = saved(tmp_path / "net.pt", {prefix + key: value for key, value in source.state_dict().items()})
    state = read_state_dict(path)
    assert any(line.startswith("applied") and "5" in line for line in state.renamed)
    load_into(target, state, where=path)
    x = torch.randn(2, 3, 6, 6)
    assert torch.allclose(target(x), source(x), atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "net.backbone."])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_has_these_parts_gets_them_as_they_are(tmp_path: Path, kind: str, prefix: str) -> None:
    source, target = normed(kind), normed(kind)
    with torch.no_grad():
        for value in target.state_dict().values():
            value.zero_()
    path = saved(tmp_path / "net.pt", {prefix + key: value for key, value in source.state_dict().items()})
    load_into(target, read_state_dict(path), where=path)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())


def test_torchs_own_hook_takes_the_names_of_the_older_weight_norm(tmp_path: Path) -> None:
    source, target = normed("weight_norm"), normed("parametrized weight_norm")
    path = saved(tmp_path / "net.pt", source.state_dict())
    report = load_into(target, read_state_dict(path), where=path)
    assert "own rules" in report.notes[0]
    x = torch.randn(2, 3, 6, 6)
    assert torch.allclose(target(x), source(x), atol=1e-5)


def test_names_that_only_look_like_parts_stay(tmp_path: Path) -> None:
    tensors = {
        "gate.proj_g": torch.ones(3, 2), "gate.proj_v": torch.ones(4, 5), "x_u": torch.ones(1), "x_orig": torch.ones(2),
        "x_v": torch.ones(3), "y_g": torch.ones(3, 1), "original0": torch.ones(2, 1), "original1": torch.ones(2, 2),
    }  # fmt: skip
    state = read_state_dict(saved(tmp_path / "net.pt", tensors))
    assert state.tensors.keys() == tensors.keys()
    assert state.renamed == ()


def test_a_network_of_its_own_with_such_names_gets_its_tensors(tmp_path: Path) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj_g, self.proj_v = nn.Parameter(torch.randn(4, 1)), nn.Parameter(torch.randn(4, 5))

    source = Gated()
    target = copy.deepcopy(source)
    nn.init.zeros_(target.proj_v)
    path = saved(tmp_path / "net.pt", source.state_dict())
    load_into(target, read_state_dict(path), where=path)
    assert torch.equal(target.proj_v, source.proj_v)


def test_the_checkpoint_is_not_changed_by_putting_parts_together(tmp_path: Path) -> None:
    source = normed("parametrized weight_norm")
    before = {key: value.clone() for key, value in source.state_dict().items()}
    state = read_state_dict(saved(tmp_path / "net.pt", source.state_dict()))
    assert all(torch.equal(state.others[0].tensors[key], value) for key, value in before.items())


def test_an_unknown_parametrization_is_answered_with_how_to_bake_it_in(tmp_path: Path) -> None:
    class Positive(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight.abs()

    source = net()
    nn.utils.parametrize.register_parametrization(source[0], "weight", Positive())
    path = saved(tmp_path / "net.pt", source.state_dict())
    with pytest.raises(Exception, match="remove_parametrizations"):
        load_into(net(), read_state_dict(path), where=path)
