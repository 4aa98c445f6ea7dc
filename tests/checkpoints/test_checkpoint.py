"""Checkpoints as people have them, damaged ones, hostile ones, and those of another architecture."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from edgeprune.checkpoints.arch_fit import fitting_arch, shapes_of
from edgeprune.checkpoints.checkpoint import load_into, read_state_dict
from edgeprune.checkpoints.state import LoadedState
from edgeprune.checkpoints.tickets import read_tickets
from edgeprune.errors import InputError
from edgeprune.zoo import build


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return dict(small().state_dict())


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(content: Any, name: str = "net.pt", **options: Any) -> Path:
        path = tmp_path / name
        torch.save(content, path, **options)
        return path

    return save


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def message(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_state_dict(path)
    text = str(error.value)
    assert str(path) in text
    assert "\n" not in text
    return text


# -- where the weights lie, and what they are called -------------------------------------------------------------------
@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net"])
def test_weights_are_found_under_the_usual_keys(
    saved: Callable[..., Path], weights: dict[str, Tensor], key: str
) -> None:
    state = read_state_dict(saved({"epoch": 3, key: weights, "best": 0.5}))
    assert state.key_used == key
    assert state.epoch == 3
    assert same(state.tensors, weights)


def test_a_bare_state_dict_and_the_old_file_format(saved: Callable[..., Path], weights: dict[str, Tensor]) -> None:
    state = read_state_dict(saved(weights, _use_new_zipfile_serialization=False))
    assert state == LoadedState(state.tensors, "", (), None)
    assert same(state.tensors, weights)


def test_averaged_weights_win_over_the_raw_ones_and_nests_are_followed(
    saved: Callable[..., Path], weights: dict[str, Tensor]
) -> None:
    other = {key: value + 1 for key, value in weights.items()}
    assert same(read_state_dict(saved({"state_dict": other, "state_dict_ema": weights})).tensors, weights)
    nested = read_state_dict(saved({"model": {"state_dict": weights}, "optimizer": {"state": {}}}))
    assert nested.key_used == "model.state_dict"
    assert same(nested.tensors, weights)


def test_a_module_called_net_is_not_taken_for_a_nest(saved: Callable[..., Path]) -> None:
    flat = {"net.0.weight": torch.ones(2), "net.0.bias": torch.ones(2)}
    assert same(read_state_dict(saved(flat)).tensors, flat)


def test_safetensors(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save_file(weights, tmp_path / "net.safetensors")
    assert same(read_state_dict(tmp_path / "net.safetensors").tensors, weights)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_around_the_whole_model_are_stripped(
    saved: Callable[..., Path], weights: dict[str, Tensor], prefix: str
) -> None:
    state = read_state_dict(saved({prefix + key: value for key, value in weights.items()}))
    assert same(state.tensors, weights)
    assert any(note.startswith("stripped 'module.'") for note in state.renamed) == ("module." in prefix)
    assert f"from {len(weights)} of {len(weights)} keys" in state.renamed[0]


def test_wrappers_around_a_part_are_stripped(saved: Callable[..., Path]) -> None:
    state = read_state_dict(saved({"features.module.0.weight": torch.ones(1), "classifier.weight": torch.zeros(1)}))
    assert list(state.tensors) == ["features.0.weight", "classifier.weight"]
    assert state.renamed == ("stripped 'module.' from 1 of 2 keys",)


def test_wrappers_stay_where_stripping_would_merge_two_keys(saved: Callable[..., Path]) -> None:
    both = {"module.w": torch.ones(1), "w": torch.zeros(1)}
    assert same(read_state_dict(saved(both)).tensors, both)


def test_counters_and_plain_values_are_left_out(saved: Callable[..., Path]) -> None:
    content = {
        "n_averaged": torch.tensor(4),
        "module.a.weight": torch.ones(2),
        "module.a.total_ops": torch.ones(1),
        "lr": 0.1,
    }
    state = read_state_dict(saved(content))
    assert list(state.tensors) == ["a.weight"]
    assert len(state.renamed) == 3


def test_masks_of_torch_prune_are_applied(saved: Callable[..., Path]) -> None:
    model = small()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.l1_unstructured(model[3], "weight", amount=0.25)
    state = read_state_dict(saved(model.state_dict()))
    assert torch.equal(state.tensors["0.weight"], model[0].weight)
    assert int((state.tensors["0.weight"] == 0).sum()) == 54
    assert not any("mask" in key or "orig" in key for key in state.tensors)
    assert state.renamed == ("applied 2 pruning masks (56 weights are zero)",)
    plain = small()
    load_into(plain, state, where="net.pt")
    x = torch.randn(2, 3, 3, 3)
    assert torch.allclose(plain.eval()(x), model.eval()(x))


def test_arguments_and_numpy_numbers_beside_the_weights_do_no_harm(
    saved: Callable[..., Path], weights: dict[str, Tensor]
) -> None:
    path = saved({"state_dict": weights, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.9), "n": np.int64(3)})
    assert same(read_state_dict(path).tensors, weights)


# -- what is refused ---------------------------------------------------------------------------------------------------
def test_files_that_are_not_there_or_empty(tmp_path: Path) -> None:
    assert "no such file" in message(tmp_path / "nowhere.pt")
    assert "is a folder" in message(tmp_path)
    (tmp_path / "empty.pt").touch()
    assert "is empty" in message(tmp_path / "empty.pt")


@pytest.mark.parametrize("new_format", [True, False])
def test_truncated_files(saved: Callable[..., Path], weights: dict[str, Tensor], new_format: bool) -> None:
    path = saved(weights, _use_new_zipfile_serialization=new_format)
    content = path.read_bytes()
    for size in (10, len(content) // 2, len(content) - 20):
        path.write_bytes(content[:size])
        text = message(path)
        assert "truncated" in text or "damaged" in text
        assert "again" in text


@pytest.mark.parametrize(
    "content",
    [b"just some text\n", b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04 no archive", b"{}", bytes(64), b"\x80\x02."],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_of_other_kinds(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)
    text = message(path)
    assert "weights_only" not in text, "advice to load it unsafely must not be passed on"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), new_format=st.booleans())
def test_damaged_bytes_never_end_in_anything_but_weights_or_an_input_error(
    tmp_path: Path, data: st.DataObject, new_format: bool
) -> None:
    path = tmp_path / "net.pt"
    beside = {"args": argparse.Namespace(out=Path("x")), "loss": np.ones(2), "best": np.float64(1)}
    torch.save({"w": torch.ones(4), **beside}, path, _use_new_zipfile_serialization=new_format)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        assert set(read_state_dict(path).tensors.values())


@pytest.mark.parametrize("position", [-38, -26, -22, -18], ids=["disks", "locator", "end", "disk number"])
def test_a_damaged_end_of_the_archive_is_an_input_error(tmp_path: Path, position: int) -> None:
    path = tmp_path / "net.pt"
    torch.save({"w": torch.ones(4)}, path)
    content = bytearray(path.read_bytes())
    content[position] ^= 7
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        assert read_state_dict(path).tensors["w"].tolist() == [1.0] * 4


def test_a_pickled_module_is_refused_with_the_way_out(saved: Callable[..., Path]) -> None:
    text = message(saved(small()))
    assert "pickled module" in text
    assert "torch.save(model.state_dict()" in text


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    saved: Callable[..., Path], tmp_path: Path, new_format: bool, nested: bool
) -> None:
    marker = tmp_path / "marker"
    attack = Attack(marker)
    content = {"state_dict": {"w": torch.ones(1)}, "extra": attack} if nested else attack
    path = saved(content, _use_new_zipfile_serialization=new_format)
    text = message(path)
    assert "system" in text
    assert "can run any code" in text
    assert not marker.exists()
    command, arguments = attack.__reduce__()
    command(*arguments)
    assert marker.exists(), "the attack would have worked"


def test_allowed_data_types_do_not_open_a_way_to_other_code(saved: Callable[..., Path], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    hidden = argparse.Namespace(inner=np.array([Attack(marker)], dtype=object), direct=Attack(marker))
    assert "can run any code" in message(saved({"args": hidden, "w": torch.ones(1)}))
    assert not marker.exists()


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, {"weights": {"w": 1.0}}])
def test_a_checkpoint_without_tensors_shows_what_it_has(saved: Callable[..., Path], content: dict[str, Any]) -> None:
    text = message(saved(content))
    assert "holds no tensors" in text
    assert all(repr(key) in text for key in content)


@pytest.mark.parametrize("content", [torch.ones(2), [torch.ones(2)], "text", 3, np.ones(2), argparse.Namespace()])
def test_a_checkpoint_that_is_no_mapping(saved: Callable[..., Path], content: object) -> None:
    text = message(saved(content))
    assert "not weights by name" in text
    assert "Unread" not in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named_and_counted(
    saved: Callable[..., Path], weights: dict[str, Tensor], value: float
) -> None:
    weights["0.weight"].view(-1)[:3] = value
    text = message(saved(weights))
    assert "0.weight holds 3 NaN or infinite values of 108" in text


@pytest.mark.filterwarnings("ignore:torch.quantize", "ignore:TypedStorage")
def test_quantised_and_sparse_weights_are_refused(saved: Callable[..., Path]) -> None:
    assert "sparse" in message(saved({"w": torch.eye(3).to_sparse()}))
    assert "quantised" in message(saved({"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}))


def test_tensors_without_values_are_refused(saved: Callable[..., Path]) -> None:
    assert "w has a shape and no values" in message(saved({"w": torch.ones(2, device="meta")}))


def test_a_mask_of_another_shape_is_refused(saved: Callable[..., Path]) -> None:
    assert "a.weight_mask has shape (2,)" in message(
        saved({"a.weight_orig": torch.ones(3), "a.weight_mask": torch.ones(2)})
    )


# -- into a model ------------------------------------------------------------------------------------------------------
def state_of(model: nn.Module) -> LoadedState:
    return LoadedState({key: value.clone() for key, value in model.state_dict().items()}, "")


def misfit(model: nn.Module, state: LoadedState, *, allow_partial: bool = False) -> str:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError) as error:
        load_into(model, state, where="net.pt", allow_partial=allow_partial)
    assert same(dict(model.state_dict()), before), "a model is not half loaded"
    text = str(error.value)
    assert text.startswith("net.pt: ")
    assert "\n" not in text
    return text


def test_all_weights_arrive() -> None:
    torch.manual_seed(1)
    source, target = build("resnet8").model, build("resnet8").model
    report = load_into(target, state_of(source), where="net.pt")
    assert same(dict(target.state_dict()), dict(source.state_dict()))
    assert report.loaded == len(source.state_dict())
    assert report.missing == report.unexpected == report.notes == ()


def test_half_precision_weights_become_the_models_type_and_counters_may_be_missing() -> None:
    model = small()
    tensors = {k: v.half() for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    target = small()
    load_into(target, LoadedState(tensors, ""), where="net.pt")
    assert target[0].weight.dtype == torch.float32
    assert torch.equal(target[0].weight, model[0].weight.half().float())


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_numbers_that_are_no_weights_are_refused(dtype: torch.dtype) -> None:
    model = nn.Conv2d(3, 4, 3)
    before = model.weight.clone()
    tensors = {"weight": torch.ones(4, 3, 3, 3).to(dtype), "bias": torch.zeros(4)}
    with pytest.raises(InputError, match=f"weight is {dtype}"):
        load_into(model, LoadedState(tensors, ""), where="it.pt")
    assert torch.equal(model.weight, before)


def test_a_model_that_is_itself_wrapped_takes_stripped_keys() -> None:
    wrapped = nn.ModuleDict({"module": small()})
    report = load_into(wrapped, state_of(small()), where="net.pt")
    assert report.loaded == len(small().state_dict())
    assert torch.equal(wrapped["module"][0].weight, small()[0].weight)


@pytest.mark.parametrize(
    ("is_of", "asked", "remedy"),
    [
        ("resnet20", "resnet56", "use --arch resnet20"),
        ("resnet56", "resnet20", "use --arch resnet56"),
        ("resnet20-stage", "resnet20", "use --arch resnet20-stage"),
        ("resnet14", "resnet14-stage", "use --arch resnet14"),
        ("resnet8-b-w32", "resnet8", "use --arch resnet8-b-w32"),
        ("resnet8-w24", "resnet8", "use --arch resnet8-w24"),
        ("torchvision:resnet18", "resnet20", "use --arch torchvision:resnet18"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_told_which(is_of: str, asked: str, remedy: str) -> None:
    text = misfit(build(asked).model, state_of(build(is_of).model))
    assert text.endswith(remedy)


def test_the_fit_takes_classes_and_channels_from_the_checkpoint() -> None:
    with torch.device("meta"):
        model = build("resnet14-stage-w8", num_classes=100, in_channels=1).model
    assert fitting_arch(shapes_of(model)) == "resnet14-stage-w8"
    assert fitting_arch(shapes_of(small())) == ""
    assert fitting_arch({"a": (3,)}) == ""


def test_missing_unknown_and_misshapen_tensors_are_named_and_counted() -> None:
    state = state_of(small())
    state.tensors["3.weights"] = state.tensors.pop("3.weight")
    text = misfit(small(), state)
    assert "1 of the network's 8 tensors are missing (3.weight), nearest in the checkpoint 3.weights" in text
    assert "1 of its 8 tensors are unknown to the network (3.weights)" in text
    assert "--allow-partial" in text
    state = state_of(small())
    state.tensors["3.weight"] = torch.ones(5, 4)
    assert "3.weight has shape (5, 4), the network's (2, 4)" in misfit(small(), state)


def test_other_classes_are_said_as_a_shape() -> None:
    text = misfit(build("resnet8", num_classes=10).model, state_of(build("resnet8", num_classes=100).model))
    assert "linear.weight has shape (100, 64), the network's (10, 64) (and 1 more)" in text


def test_a_partial_checkpoint_is_accepted_only_when_asked() -> None:
    state = state_of(small())
    del state.tensors["3.bias"]
    state.tensors["extra"] = torch.ones(1)
    misfit(small(), state)
    target = small()
    bias = target[3].bias.clone()
    report = load_into(target, state, where="net.pt", allow_partial=True)
    assert (report.missing, report.unexpected) == (("3.bias",), ("extra",))
    assert torch.equal(target[3].bias, bias)
    assert len(report.notes) == 2


def test_a_partial_checkpoint_must_fit_somewhere() -> None:
    misfit(small(), LoadedState({"other": torch.ones(1)}, ""), allow_partial=True)
    state = state_of(small())
    state.tensors["3.weight"] = torch.ones(5, 4)
    misfit(small(), state, allow_partial=True)


# -- tickets -----------------------------------------------------------------------------------------------------------
EXPECT = {"0.weight": (4, 3, 3, 3), "3.weight": (2, 4)}


def save_ticket(folder: Path, name: str, fill: float, **extra: object) -> None:
    weights = {key: torch.full_like(value, fill) for key, value in small().state_dict().items()}
    torch.save({"model_state_dict": {f"module.{k}": v for k, v in weights.items()}, **extra}, folder / name)


def test_tickets_come_in_the_order_of_their_epochs(tmp_path: Path) -> None:
    save_ticket(tmp_path, "a.pt", 1, epoch=10)
    save_ticket(tmp_path, "b.pth.tar", 2, epoch=torch.tensor(9))
    save_ticket(tmp_path, "net-12fca82f-epoch=002.ckpt", 3)
    save_ticket(tmp_path, "ticket_100.th", 4)
    (tmp_path / "notes.txt").write_text("not a ticket")
    (tmp_path / "folder.pt").mkdir()
    tickets = read_tickets(tmp_path, EXPECT)
    assert [ticket.epoch for ticket in tickets] == [2, 9, 10, 100]
    assert [float(ticket.tensors["3.weight"][0, 0]) for ticket in tickets] == [3, 2, 1, 4]
    assert all(set(ticket.tensors) == set(EXPECT) for ticket in tickets)
    assert tickets[1].path.name == "b.pth.tar"


def test_a_copy_of_a_ticket_counts_once_and_a_contradiction_is_refused(tmp_path: Path) -> None:
    save_ticket(tmp_path, "best.pt", 1, epoch=5)
    save_ticket(tmp_path, "epoch_5.pt", 1, epoch=5)
    assert len(read_tickets(tmp_path, EXPECT)) == 1
    save_ticket(tmp_path, "last.pt", 2, epoch=5)
    with pytest.raises(InputError, match=r"best.pt and last.pt are both of epoch 5"):
        read_tickets(tmp_path, EXPECT)


def test_no_tickets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_tickets(tmp_path / "nowhere", EXPECT)
    with pytest.raises(InputError, match="holds no tickets"):
        read_tickets(tmp_path, EXPECT)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        read_tickets(tmp_path / "file", EXPECT)


def test_a_ticket_of_another_network_or_without_an_epoch_is_named(tmp_path: Path) -> None:
    save_ticket(tmp_path, "epoch_1.pt", 1)
    torch.save(build("resnet8").model.state_dict(), tmp_path / "epoch_2.pt")
    with pytest.raises(InputError, match=r"epoch_2.pt: this ticket is of another network.*it fits resnet8"):
        read_tickets(tmp_path, EXPECT)
    with pytest.raises(InputError, match=r"epoch_1.pt.*3.weight of shape \(9, 9\)"):
        read_tickets(tmp_path, {"3.weight": (9, 9)})
    (tmp_path / "epoch_2.pt").unlink()
    save_ticket(tmp_path, "deadbeef1.pt", 2)
    with pytest.raises(InputError, match=r"deadbeef1.pt: has no epoch"):
        read_tickets(tmp_path, EXPECT)


# -- real files --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "arch", "key"),
    [
        ("checkpoints/resnet20-12fca82f.th", "resnet20", "state_dict"),
        ("checkpoints/resnet56-4bfd9763.th", "resnet56", "state_dict"),
        ("checkpoints/resnet20_cifar10jpeg.pt", "resnet20", ""),
        ("tickets_resnet20/epoch_300.pt", "resnet20-stage", ""),
    ],
)
def test_public_checkpoints_load(data_dir: Path, name: str, arch: str, key: str) -> None:
    state = read_state_dict(data_dir / name)
    assert state.key_used == key
    model = build(arch).model
    report = load_into(model, state, where=name)
    assert report.loaded == len(state.tensors)
    assert fitting_arch({k: tuple(v.shape) for k, v in state.tensors.items()}) == arch


def test_real_tickets(data_dir: Path) -> None:
    shapes = {k: tuple(v.shape) for k, v in build("resnet20-stage").model.state_dict().items() if v.ndim == 4}
    tickets = read_tickets(data_dir / "tickets_resnet20", shapes)
    assert [ticket.epoch for ticket in tickets] == [35, 40, 45, 50, 55, 60, 65, 70, 300]
    with pytest.raises(InputError, match="it fits resnet20-stage"):
        read_tickets(data_dir / "tickets_resnet20", {"conv1.weight": (16, 3, 3, 3)})
