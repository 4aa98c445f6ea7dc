"""What a plan leaves, fitted to what the dense layers gave: nearer to the dense outputs, in the same structure."""

from __future__ import annotations

from pathlib import Path

import networks
import pytest
import torch
from torch import nn

from edgeprune.cli import main
from edgeprune.datasets.images import Dataset
from edgeprune.errors import InputError
from edgeprune.methods import load_method, require_images
from edgeprune.methods.base import PruneRequest
from edgeprune.methods.shared.reconstruction import Reconstruction
from edgeprune.plans.plan import LayerPlan, Plan, SetPlan
from edgeprune.pruning.network import Network, layer_weights, load_network
from edgeprune.pruning.options import NetworkSource, PruneOptions
from edgeprune.pruning.pruned import Pruned, prune_network, reconstructed
from edgeprune.rewriting.rewrite import rewrite
from edgeprune.tracing.trace import trace

IMAGES = Dataset(
    "noise", torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
    torch.zeros(64, dtype=torch.int64), (), (0.0,) * 3, (1.0,) * 3,
)  # fmt: skip


@pytest.fixture(scope="module")
def network() -> Network:
    found = load_network(NetworkSource("resnet8-w8", random_init=True, input_size=(3, 16, 16)))
    networks.settled(found.model)
    return found


def error(model: nn.Module, dense: nn.Module) -> float:
    """Mean squared, on the calibration images."""
    with torch.no_grad():
        return float((model(IMAGES.images) - dense(IMAGES.images)).square().mean())


def pruned(network: Network, method: str, *assignments: str, reconstruct: bool, groups: int = 4) -> Pruned:
    request = PruneRequest(groups=groups, rate=0.4)
    options = PruneOptions(method, request, assignments, reconstruct=reconstruct)
    return prune_network(network, options, seen=IMAGES)


@pytest.mark.parametrize(
    ("method", "assignments"),
    [("fpgm", ("coupling=coupled",)), ("sfp", ("coupling=separate",)), ("gconv", ()), ("tmi-gkp", ("scheme=kpca",))],
)
def test_the_outputs_are_nearer_to_the_dense_ones(network: Network, method: str, assignments: tuple[str, ...]) -> None:
    plain = pruned(network, method, *assignments, reconstruct=False)
    fitted = pruned(network, method, *assignments, reconstruct=True)
    assert fitted.plan.sha256() == plain.plan.sha256()
    shapes = {key: value.shape for key, value in plain.model.state_dict().items()}
    assert {key: value.shape for key, value in fitted.model.state_dict().items()} == shapes
    assert error(fitted.model, network.model) < 0.7 * error(plain.model, network.model)
    assert fitted.calibration_images == 64
    kinds = {bool(entry.filters) for entry in plain.plan.layers}, any(e.kept_filters for e in plain.plan.layers)
    assert kinds[0] == ({False, True} if method in ("gconv", "tmi-gkp") else {False})
    assert kinds[1] == (method == "sfp")


def test_linear_layers_behind_a_flattened_map_are_fitted() -> None:
    torch.manual_seed(0)
    model = networks.settled(networks.Flattening())
    flat = Network("flattening", model, (3, 16, 16))
    graph = trace(model, flat.example_input(1)).graph
    sets = (SetPlan(graph.layer("b").writes, (0, 2, 3, 5, 6, 8)),)
    plan = Plan("by hand", {}, 0, tuple(LayerPlan(layer.name) for layer in graph.layers), sets)
    assert Reconstruction(plan, graph, layer_weights(model)).names == ["hidden", "middle", "head"]
    fitted = reconstructed(model, plan, flat, graph, IMAGES)
    small = rewrite(fitted.eval(), plan, graph)
    assert small.hidden.weight.shape == (16, 6 * 4)
    assert error(small, model) < 0.7 * error(rewrite(model, plan, graph), model)
    gone = fitted.hidden.weight.detach().unflatten(1, (10, 4))[:, [1, 4, 7, 9]]
    assert not gone.any(), "what is left gives the same without them"


def test_a_plan_that_leaves_nothing_out_changes_nothing(network: Network) -> None:
    graph = trace(network.model, network.example_input(1)).graph
    plan = Plan("by hand", {}, 0, tuple(LayerPlan(layer.name) for layer in graph.layers))
    fitted = reconstructed(network.model, plan, network, graph, IMAGES)
    assert error(fitted, network.model) == 0


def test_merged_channels_are_not_fitted(network: Network) -> None:
    graph = trace(network.model, network.example_input(1)).graph
    inner = graph.layer(next(layer.branch[0] for layer in graph.layers if layer.branch)).writes
    kept = tuple(c for c in range(8) if c != 5)
    layers = tuple(LayerPlan(layer.name) for layer in graph.layers)
    for entry in (SetPlan(inner, kept, merged=((2, 5),)), SetPlan(inner, kept, constant=(2, 5))):
        with pytest.raises(InputError, match="--reconstruct does not fit channels that csgd merged"):
            reconstructed(network.model, Plan("csgd", {}, 0, layers, (entry,)), network, graph, IMAGES)


def test_it_needs_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="layers are fitted on images, and there are none"):
        require_images(load_method("fpgm"), given=False, reconstruct=True)
    out = tmp_path / "bundle"
    code = main(["prune", "--arch", "resnet8-w8", "--random-init", "--method", "fpgm", "--reconstruct", "-o", str(out)])
    assert code
    assert "--reconstruct" in capsys.readouterr().err
    assert not out.exists()
