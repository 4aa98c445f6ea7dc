"""Several processes that train together: what each is told, its piece of a batch, and what all of them end with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from two_ranks import METHODS, SETTINGS, STILL, Seeing, found_by_both, toy_data, with_norms, without_norms

from edgeprune.bundles.bundle import open_bundle
from edgeprune.datasets.images import batches
from edgeprune.errors import InputError
from edgeprune.io.progress import shown
from edgeprune.training import collectives
from edgeprune.training.loop import RunFiles, TrainSettings, fit
from edgeprune.training.ranks import Ranks
from edgeprune.training.settings import device_named

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1",
}  # fmt: skip


# -- the environment ---------------------------------------------------------------------------------------------------
def test_a_process_knows_its_place_from_torchrun() -> None:
    ranks = Ranks.here(TORCHRUN)
    assert ranks == Ranks(rank=3, size=4, local_rank=1, local_size=2)
    assert not ranks.is_first
    assert not ranks.is_alone
    assert not ranks.on_one_machine


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1"}, {"RANK": "3", "MASTER_ADDR": "somewhere"}])
def test_without_others_a_process_is_alone(environment: dict[str, str]) -> None:
    ranks = Ranks.here(environment)
    assert ranks.is_alone
    assert ranks.is_first
    assert ranks.piece(7) == slice(0, 7)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"RANK": "", "MASTER_PORT": ""}, "WORLD_SIZE=4 is set, but not RANK, MASTER_PORT"),
        ({"RANK": "4"}, "RANK=4 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 makes no sense"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE=many"),
    ],
)
def test_an_environment_that_makes_no_sense(changed: dict[str, str], expected: str) -> None:
    with pytest.raises(InputError) as error:
        Ranks.here({**TORCHRUN, **changed})
    assert expected in str(error.value)
    assert str(error.value).startswith("environment: ")
    assert "start with torchrun, or unset WORLD_SIZE" in str(error.value)


def test_training_is_refused_where_the_environment_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="but not RANK, LOCAL_RANK"):
        TrainSettings().check()


@pytest.fixture
def third_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)


def test_every_process_needs_images(third_of_four: None) -> None:
    TrainSettings(batch_size=8).check()
    with pytest.raises(InputError, match="batch size 7 for 4 processes.* 8 or more.*--batch-size 8"):
        TrainSettings(batch_size=7).check()


def test_what_runs_in_one_process_says_so(third_of_four: None) -> None:
    Ranks().check_alone("the demo")
    with pytest.raises(InputError, match="the demo runs in one process, and torchrun started 4"):
        Ranks.here().check_alone("the demo")


def test_every_process_takes_a_gpu_of_its_own(third_of_four: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_named("auto") == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="2 processes on a machine with 1 GPUs.*--nproc-per-node 1"):
        device_named("auto")


# -- pieces of batches -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10, 128])
def test_the_pieces_are_the_batch(size: int, count: int) -> None:
    pieces = [list(range(count))[Ranks(rank, size).piece(count)] for rank in range(size)]
    assert [number for piece in pieces for number in piece] == list(range(count))
    lengths = [len(piece) for piece in pieces if piece]
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= min(2, count), "BatchNorm needs two"
    assert len(lengths) == min(size, max(count // 2, 1))


@pytest.mark.parametrize("shuffled", [True, False])
def test_pieces_that_are_drawn_apart_fit_together(shuffled: bool) -> None:
    def drawn(**options: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        shuffle = torch.Generator().manual_seed(5) if shuffled else None
        return list(batches(toy_data(), 16, shuffle=shuffle, augment=shuffled, **options))

    ranks = [drawn(piece=Ranks(rank, 3).piece) for rank in range(3)]
    for whole, *pieces in zip(drawn(), *ranks, strict=True):
        for place in (0, 1):
            assert torch.equal(whole[place], torch.cat([piece[place] for piece in pieces]))


# -- alone -------------------------------------------------------------------------------------------------------------
def test_alone_nothing_is_told_and_no_group_is_made() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    collectives.add_up_gradients([parameter])
    assert parameter.grad.tolist() == [1, 2]
    assert collectives.added_up([1.5]) == [1.5]
    assert collectives.of_first(lambda: b"here") == b"here"
    collectives.require_same({"a": b""}, what="parts", remedy="")
    collectives.leave_to_first()
    assert not torch.distributed.is_initialized()


# -- together ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    return found_by_both(folder)


def test_all_end_with_the_same_bits(both: list[dict[str, Any]]) -> None:
    assert {**both[0], "said": ""} == {**both[1], "said": ""}
    assert set(both[0]["methods"]) == set(METHODS)


def test_pieces_of_any_size_give_the_gradient_of_the_batch(both: list[dict[str, Any]]) -> None:
    alone = fit(without_norms(), toy_data(), SETTINGS)
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(torch.tensor(both[0]["plain"][name]), value, rtol=1e-4, atol=1e-6, msg=name)
    losses, accuracies = zip(*both[0]["history"], strict=True)
    assert losses == pytest.approx([record.loss for record in alone.history], rel=1e-5)
    assert list(accuracies) == [record.accuracy for record in alone.history]


def test_batchnorm_ends_with_the_means_over_all_pieces(both: list[dict[str, Any]]) -> None:
    seen = Seeing()
    fit(with_norms(), toy_data(32), STILL, hooks=seen)
    assert both[0]["still"] == pytest.approx(seen.mean, rel=1e-4, abs=1e-6)


def test_what_is_told(both: list[dict[str, Any]]) -> None:
    assert both[1]["sums"] == [3.0, 20.0]
    assert both[1]["of_first"] == ["only there", ""]


def test_ranks_that_do_not_agree_are_told_what_differs(both: list[dict[str, Any]]) -> None:
    assert "network or data of process 1 are not those of process 0: data;" in both[0]["other data"]
    assert "weights after epoch 1 of process 1 are not those of process 0: model.conv.bias;" in both[1]["own numbers"]
    assert "batch size 3 for 2 processes" in both[0]["small batch"]


def test_pruning_fine_tunes_on_both_and_the_first_writes_and_speaks(both: list[dict[str, Any]], folder: Path) -> None:
    assert both[1]["said"] == ""
    assert "1 epochs on 2 processes" in both[0]["said"]
    assert "MACs" in both[0]["said"]
    assert {path.name for path in folder.iterdir()} == {"0", "1", "pruned"}
    assert open_bundle(folder / "pruned").faults() == []


def test_two_processes_note_that_one_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def train(epochs_seen: int, **options: Any) -> None:
        class Stops(Seeing):
            def after_epoch(self, epoch: int) -> None:
                if epoch > epochs_seen:
                    raise KeyboardInterrupt

        fit(with_norms(), toy_data(), SETTINGS, hooks=Stops(), files=RunFiles(tmp_path, **options))

    with pytest.raises(KeyboardInterrupt):
        train(1)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes().replace(b'\\"processes\\":1', b'\\"processes\\":2'))
    with shown():
        train(2, resume=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "the run went on 2 processes so far and goes on with 1: it will not end with the same bits" in said
