"""Where other trainers put the weights, and what they call them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from edgeprune.checkpoints.checkpoint import LoadReport, load_into, read_state_dict
from edgeprune.checkpoints.nests import AVERAGED, NESTS
from edgeprune.checkpoints.tickets import read_tickets
from edgeprune.errors import InputError
from edgeprune.pruning.network import load_network
from edgeprune.pruning.options import NetworkSource
from edgeprune.zoo import build


def small(classes: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


WEIGHTS: dict[str, Tensor] = {k: torch.full_like(v, 3) for k, v in small().state_dict().items()}
OTHERS = {key: value + 1 for key, value in WEIGHTS.items()}
LOSS = {"loss.weight": torch.ones(5)}


def under(prefix: str, weights: dict[str, Tensor] = WEIGHTS) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in weights.items()}


def load(path: Path, content: Any, model: nn.Module | None = None, **options: Any) -> tuple[nn.Module, LoadReport]:
    torch.save(content, path)
    model = small() if model is None else model
    return model, load_into(model, read_state_dict(path), where=path, **options)


def is_loaded(model: nn.Module, weights: dict[str, Tensor] = WEIGHTS) -> bool:
    return all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


# -- where the weights lie ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", NESTS)
def test_weights_are_found_under_each_known_key(tmp_path: Path, key: str) -> None:
    model, _ = load(tmp_path / "net.pt", {"epoch": 3, "best": torch.tensor(0.5), key: WEIGHTS})
    assert is_loaded(model)


@pytest.mark.parametrize("key", AVERAGED)
@pytest.mark.parametrize("beside", ["state_dict", "model", "params", "generator"])
def test_averaged_weights_go_first_and_that_is_told(tmp_path: Path, key: str, beside: str) -> None:
    model, report = load(tmp_path / "net.pt", {beside: OTHERS, key: WEIGHTS})
    assert is_loaded(model)
    assert report.notes == (f"'{beside}' would fit too and is not used",)


@pytest.mark.parametrize(
    "content",
    [
        {"my_network": WEIGHTS, "epoch": torch.tensor(3)},
        {"a": {"b": {"c": WEIGHTS}}},
        (WEIGHTS, {"step": 3}),
        {"models": [WEIGHTS]},
    ],
)
def test_weights_under_an_unknown_key_are_found_where_there_are_no_others(tmp_path: Path, content: Any) -> None:
    assert is_loaded(load(tmp_path / "net.pt", content)[0])


def test_what_training_needs_beside_the_weights_is_never_taken(tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    named = {"exp_avg": WEIGHTS}
    content = {"optimizer": named, "optimizer_states": [optimizer.state_dict()], "lr_schedulers": [named], "x": OTHERS}
    assert is_loaded(load(tmp_path / "net.pt", content)[0], OTHERS)


@pytest.mark.parametrize("keys", [("generator", "discriminator"), ("G", "D"), ("D", "G"), ("teacher", "model")])
def test_of_several_networks_the_one_that_fits_is_taken(tmp_path: Path, keys: tuple[str, str]) -> None:
    wanted, other = keys
    large = {"conv.weight": torch.ones(4, 3, 3, 3), "0.weight": torch.ones(99, 99)}
    model, report = load(tmp_path / "net.pt", {other: large, wanted: WEIGHTS})
    assert is_loaded(model)
    if keys == ("G", "D"):
        assert report.notes == ("taken from under 'G': the network is not under 'D'",)


def test_a_network_saved_in_parts_is_put_together(tmp_path: Path) -> None:
    source = nn.ModuleDict({"encoder": small(4), "decoder": small(3)})
    parts = {name: part.state_dict() for name, part in source.items()}
    target = nn.ModuleDict({"encoder": small(4), "decoder": small(3)})
    with torch.no_grad():
        for value in target.state_dict().values():
            value.zero_()
    model, report = load(tmp_path / "net.pt", {**parts, "epoch": 3}, target)
    assert is_loaded(model, dict(source.state_dict()))
    assert report.notes == ("taken from under 'decoder and encoder': the network is not under 'encoder'",)


def test_an_ambiguous_part_does_no_harm_where_another_fits(tmp_path: Path) -> None:
    content = {"model": under("a.") | under("b.", OTHERS), "net": WEIGHTS}
    assert is_loaded(load(tmp_path / "net.pt", content)[0])
    assert is_loaded(load(tmp_path / "net.pt", {"one": WEIGHTS, "two": OTHERS})[0])


def test_values_are_checked_in_what_is_taken_and_nowhere_else(tmp_path: Path) -> None:
    bad = {key: value * float("nan") if value.is_floating_point() else value for key, value in WEIGHTS.items()}
    assert is_loaded(load(tmp_path / "net.pt", {"model": bad, "ema": WEIGHTS})[0])
    with pytest.raises(InputError, match="NaN"):
        load(tmp_path / "net.pt", {"D": {"x": torch.ones(10_000)}, "G": bad})


def test_a_file_that_contains_itself_is_read_once(tmp_path: Path) -> None:
    content: dict[str, Any] = {"step": 1}
    content["model"] = content
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(InputError, match="holds no tensors"):
        read_state_dict(tmp_path / "net.pt")
    content["model"] = WEIGHTS
    content["all"] = content
    assert is_loaded(load(tmp_path / "net.pt", content)[0])


# -- what they are called ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "prefix",
    ["model.", "net.", "net.backbone.", "encoder_q.", "a.b.c.d.", "model._orig_mod.", "_fsdp_wrapped_module.x."],
)
@pytest.mark.parametrize("beside", [{}, LOSS])
def test_a_prefix_is_stripped_and_told(tmp_path: Path, prefix: str, beside: dict[str, Tensor]) -> None:
    model, report = load(tmp_path / "net.pt", {"state_dict": under(prefix) | beside})
    assert is_loaded(model)
    assert (
        report.notes[0]
        == f"stripped '{re.sub('_orig_mod.|_fsdp_wrapped_module.', '', prefix)}' from {len(WEIGHTS)} keys"
    )
    assert report.notes[1:] == (("left out 1 tensors that lie beside them (loss.weight)",) if beside else ())


def test_a_network_that_is_wrapped_itself(tmp_path: Path) -> None:
    def wrapped() -> nn.Module:
        return nn.ModuleDict({"backbone": small()})

    model, report = load(tmp_path / "net.pt", WEIGHTS, wrapped())
    assert is_loaded(model, under("backbone."))
    assert report.notes == ("put 'backbone.' before 8 keys",)
    model, report = load(tmp_path / "net.pt", under("net.model."), wrapped())
    assert is_loaded(model, under("backbone."))
    assert report.notes == ("replaced 'net.model.' by 'backbone.' in 8 keys",)


def test_a_layer_is_not_taken_for_another_layer(tmp_path: Path) -> None:
    stem, head = nn.ModuleDict({"stem": nn.Linear(3, 2)}), nn.ModuleDict({"head": nn.Linear(3, 2)})
    with pytest.raises(InputError, match="2 of the network's 2 tensors are missing"):
        load(tmp_path / "net.pt", stem.state_dict(), head)


@pytest.mark.parametrize(
    ("taken", "left"),
    [("ema_model.module.", "online_model."), ("encoder_q.", "encoder_k."), ("teacher.backbone.", "student.backbone.")],
)
def test_of_several_prefixes_the_preferred_one_is_taken_and_told(tmp_path: Path, taken: str, left: str) -> None:
    scalars = {"initted": torch.tensor(True), "step": torch.tensor(3)}
    model, report = load(tmp_path / "net.pt", under(left, OTHERS) | under(taken) | scalars)
    assert is_loaded(model)
    assert report.notes[-1] == f"what lies under '{left}' would fit too and is not used"


def test_several_prefixes_of_the_same_rank_are_refused_unless_they_hold_the_same(tmp_path: Path) -> None:
    assert is_loaded(load(tmp_path / "net.pt", under("a.") | under("b."))[0])
    with pytest.raises(InputError, match=r"twice, under 'a\.' and 'b\.', and they differ"):
        load(tmp_path / "net.pt", under("a.") | under("b.", OTHERS))


def test_names_that_fit_as_they_are_are_left_alone(tmp_path: Path) -> None:
    model, report = load(tmp_path / "net.pt", {"state_dict": WEIGHTS})
    assert is_loaded(model)
    assert report.notes == ()
    with pytest.raises(InputError, match=r"1 of its 9 tensors are unknown to the network \(loss.weight\)"):
        load(tmp_path / "net.pt", WEIGHTS | LOSS)


def test_where_nothing_fits_the_error_is_about_the_nearest_names(tmp_path: Path) -> None:
    wrong = {**WEIGHTS, "3.weight": torch.ones(5, 9)}
    with pytest.raises(InputError, match=r"3.weight has shape \(5, 9\), the network's \(2, 4\)"):
        load(tmp_path / "net.pt", under("model.", wrong))
    missing = {key: value for key, value in WEIGHTS.items() if key != "3.bias"}
    with pytest.raises(InputError, match=r"1 of the network's 8 tensors are missing \(3.bias\)"):
        load(tmp_path / "net.pt", under("model.", missing) | LOSS)
    model, report = load(tmp_path / "net.pt", under("model.", missing) | LOSS, allow_partial=True)
    assert report.missing == ("3.bias",)
    assert torch.equal(model.state_dict()["3.weight"], WEIGHTS["3.weight"])


def test_the_number_of_classes_is_found_behind_a_prefix(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def net(num_classes=2):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))\n"
    )
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))
    torch.save({"state_dict": under("model.", dict(layers.state_dict()))}, tmp_path / "net.ckpt")
    source = NetworkSource(arch=f"{tmp_path / 'net.py'}:net", checkpoint=tmp_path / "net.ckpt", input_size=(8, 8))
    network = load_network(source)
    assert network.num_classes == 7
    assert torch.equal(network.model.state_dict()["3.weight"], layers[3].weight)


# -- what the network itself says about its names ----------------------------------------------------------------------
class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.b.weight = self.a.weight
        self.register_buffer("grid", torch.ones(2), persistent=False)


def test_names_that_save_model_left_out_are_honoured(tmp_path: Path) -> None:
    source, target = Tied(), Tied()
    save_model(source, str(tmp_path / "net.safetensors"))
    state = read_state_dict(tmp_path / "net.safetensors")
    assert torch.equal(state.tensors["a.weight"], state.tensors["b.weight"])
    load_into(target, state, where="net.safetensors")
    assert torch.equal(target.b.weight, source.a.weight)


def test_a_shared_tensor_may_be_there_once_and_an_unsaved_buffer_may_be_there(tmp_path: Path) -> None:
    source, target = Tied(), Tied()
    tensors = {key: value for key, value in source.state_dict().items() if key != "a.weight"}
    report = load_into(target, read_state_dict(_safetensors(tmp_path, tensors | {"grid": torch.ones(2)})), where="net")
    assert report.missing == report.unexpected == ()
    assert torch.equal(target.a.weight, source.a.weight)


def test_safetensors_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    path = _safetensors(tmp_path, WEIGHTS)
    path = path.rename(path.with_suffix(".bin"))
    assert read_state_dict(path).tensors.keys() == WEIGHTS.keys()


def _safetensors(folder: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, folder / "net.safetensors")
    return folder / "net.safetensors"


class Renamed(nn.Module):
    """Takes the names that it had in an earlier version, in a hook."""

    def __init__(self, hook: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.register_load_state_dict_pre_hook(lambda module, tensors, prefix, *rest: hook(tensors))


def test_published_densenets_have_the_names_of_before(tmp_path: Path) -> None:
    source, model = build("torchvision:densenet121").model, build("torchvision:densenet121").model
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k): v for k, v in source.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    load(tmp_path / "net.pth", {key: value for key, value in old.items() if "num_batches" not in key}, model)
    assert is_loaded(model, dict(source.state_dict()))


def test_a_networks_own_hooks_are_asked_where_names_do_not_fit(tmp_path: Path) -> None:
    def hook(tensors: dict[str, Any]) -> None:
        for key in [key for key in tensors if key.startswith("old_stem.")]:
            tensors[key.removeprefix("old_")] = tensors.pop(key)

    source = Renamed(hook)
    stem, head = dict(source.stem.state_dict()), dict(source.head.state_dict())
    model, report = load(tmp_path / "net.pt", under("old_stem.", stem) | under("head.", head), Renamed(hook))
    assert is_loaded(model, dict(source.state_dict()))
    assert "own rules" in report.notes[0]


@pytest.mark.parametrize("error", [KeyError, RuntimeError, None])
def test_a_hook_that_fails_changes_nothing(tmp_path: Path, error: type[Exception] | None) -> None:
    def hook(tensors: dict[str, Any]) -> None:
        if error:
            raise error("no such name")

    model = Renamed(hook)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = {key: torch.ones_like(value) for key, value in before.items()} | {"zzz": torch.ones(1)}
    with pytest.raises(InputError, match="does not fit the network"):
        load(tmp_path / "net.pt", weights, model)
    assert is_loaded(model, before)


# -- tickets -----------------------------------------------------------------------------------------------------------
def test_tickets_are_read_in_the_same_way(tmp_path: Path) -> None:
    torch.save({"state_dict": under("model.") | LOSS, "epoch": 1}, tmp_path / "a.ckpt")
    torch.save({"params_ema": WEIGHTS, "params": OTHERS, "epoch": 2}, tmp_path / "b.pth")
    torch.save({key: value.numpy() for key, value in WEIGHTS.items()}, tmp_path / "epoch_3.pt")
    normed = small()
    nn.utils.parametrizations.weight_norm(normed[0])
    torch.save(normed.state_dict(), tmp_path / "epoch_4.pt")
    tickets = read_tickets(tmp_path, {"0.weight": (4, 3, 3, 3), "3.weight": (2, 4)})
    assert [ticket.epoch for ticket in tickets] == [1, 2, 3, 4]
    assert all(torch.equal(ticket.tensors["0.weight"], WEIGHTS["0.weight"]) for ticket in tickets[:3])
    assert torch.allclose(tickets[3].tensors["0.weight"], normed[0].weight)
