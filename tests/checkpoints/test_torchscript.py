"""TorchScript archives: their weights are read, their code is not."""

from __future__ import annotations

import os
import pickle  # noqa: TID251
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeprune.checkpoints.checkpoint import load_into, read_state_dict
from edgeprune.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::DeprecationWarning", "ignore::FutureWarning")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.names, self.rates = [1, 2], {"a": 1}, [0.5]
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4))
        self.blocks = nn.ModuleList([nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1)])
        self.shared = self.blocks[1]
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.shared(x).mean((2, 3)))


def net(seed: int) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


@pytest.mark.parametrize("traced", [True, False])
def test_the_weights_are_read_by_their_names(tmp_path: Path, traced: bool, recwarn: pytest.WarningsRecorder) -> None:
    source, target, path = net(1), net(2), tmp_path / "net.pt"
    x = torch.randn(2, 3, 5, 5)
    program = torch.jit.trace(source, x) if traced else torch.jit.script(source)
    program.save(path)
    recwarn.clear()
    report = load_into(target, read_state_dict(path), where=path)
    assert not recwarn.list
    assert report.missing == report.unexpected == ()
    assert torch.equal(target(x), source(x))


def test_a_program_of_two_megabytes_in_half_precision(tmp_path: Path) -> None:
    source = nn.Linear(1000, 1000).half()
    torch.jit.script(source).save(tmp_path / "net.pt")
    assert torch.equal(read_state_dict(tmp_path / "net.pt").tensors["weight"], source.weight)


class RunsWhenLoaded(nn.Module):
    """torch.jit.load runs its __setstate__, which makes a file."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker = marker
        self.weight = nn.Parameter(torch.ones(2))

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.marker, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.marker, self.training = state
        self.weight = torch.from_file(self.marker, shared=True, size=4)

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_code_of_a_program_does_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "net.pt"
    torch.jit.script(nn.Sequential(RunsWhenLoaded(str(marker)), nn.Linear(2, 2))).save(path)
    marker.unlink(missing_ok=True)
    assert sorted(read_state_dict(path).tensors) == ["1.bias", "1.weight"]
    assert not marker.exists()
    torch.jit.load(path)
    assert marker.exists(), "the attack would have worked"


def rewritten(path: Path, name: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    """The archive with another content of one member."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, old in members.items():
            is_it = member.endswith(f"/{name}")
            archive.writestr(member, content if is_it else old, compression if is_it else zipfile.ZIP_STORED)


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.marker}",)


def refused(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_state_dict(path)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_pickled_code_in_a_program_is_refused_by_its_name(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "net.pt"
    torch.jit.script(nn.Linear(2, 2)).save(path)
    for name in ("data.pkl", "constants.pkl"):
        rewritten(path, name, pickle.dumps(Attack(marker), 2))
    assert "system" in refused(path)
    assert not marker.exists()


def test_a_program_whose_records_lie_in_one_another_twice_ends(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.jit.script(nn.Linear(2, 2)).save(path)
    record = b"c__torch__\nA\n)\x81"  # an object of a class of the program's own
    leaf = record + b"q\0"
    pairs = (record + b"}(X\x01\0\0\0ah%cX\x01\0\0\0bh%cubq%c" % (below, below, below + 1) for below in range(60))
    rewritten(path, "data.pkl", b"\x80\x02" + leaf + b"".join(pairs) + b".")
    assert "more than 200000 objects" in refused(path)


def test_a_compressed_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.jit.script(nn.Linear(2, 2)).save(path)
    rewritten(path, "data/0", bytes(10_000_000), zipfile.ZIP_DEFLATED)
    assert "is compressed" in refused(path)


def test_programs_without_named_weights_are_refused_for_that_reason(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.jit.freeze(torch.jit.script(net(1))).save(path)
    text = refused(path)
    assert "constants without names" in text
    assert "torch.save(model.state_dict()" in text
