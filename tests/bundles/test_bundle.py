"""Bundles: whole or not at all, hashed, and never trusted."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeprune.bundles import writing
from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.manifest import Manifest
from edgeprune.bundles.names import MANIFEST
from edgeprune.bundles.writing import check_out, check_update, new_bundle, updated_bundle, write_manifest
from edgeprune.errors import InputError
from edgeprune.io.files import write_atomically

EMPTY = Manifest(schema_version=1, edgeprune_version="0")


def make(out: Path, text: str = "weights", *, overwrite: bool = False) -> Path:
    with new_bundle(out, overwrite=overwrite) as stage:
        (stage / "inner").mkdir()
        (stage / "inner" / "file").write_text(text)
        write_manifest(stage, EMPTY)
    return out


def test_a_bundle_is_published_whole_with_hashes(tmp_path: Path) -> None:
    bundle = open_bundle(make(tmp_path / "out"))
    assert list(bundle.manifest.files) == ["inner/file"]
    assert bundle.faults() == []
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_bundle(tmp_path / "deep" / "out") as stage:
        (stage / "file").write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path / "deep") == []


def test_an_existing_bundle_is_replaced_only_on_request_and_survives_an_error(tmp_path: Path) -> None:
    out = make(tmp_path / "out", "old")
    with pytest.raises(InputError, match="not empty.*--overwrite"):
        make(out, "new")
    with pytest.raises(RuntimeError), new_bundle(out, overwrite=True):
        raise RuntimeError
    assert (out / "inner" / "file").read_text() == "old"
    make(out, "new", overwrite=True)
    assert (out / "inner" / "file").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"not empty|not a bundle"):
            make(tmp_path / "mine", overwrite=overwrite)
    with pytest.raises(InputError, match="not a folder"):
        make(tmp_path / "mine" / "thesis.txt")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert open_bundle(make(tmp_path / "out")).faults() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_place_is_refused_before_any_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"), new_bundle(tmp_path / "out"):
        pass


@pytest.mark.parametrize("check", [check_out, check_update])
def test_a_file_system_that_takes_no_files_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Callable[[Path], None]
) -> None:
    def refuse(**_: object) -> str:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(InputError, match=r"out: cannot be written: .* \(Read-only file system\)") as caught:
        check(tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_cannot_be_replaced_stays_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path / "out")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    monkeypatch.setattr(writing, "_exchange", lambda first, second: False)
    with pytest.raises(OSError, match="Input/output"), updated_bundle(folder) as stage:
        (stage / "more").write_text("more")
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path for path in tmp_path.iterdir() if any(path.iterdir())] == [folder]


def test_a_place_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), new_bundle(tmp_path / "file" / "out"):
        pass


@pytest.mark.parametrize("existing", [False, True])
def test_a_killed_run_leaves_nothing_or_the_old_bundle(tmp_path: Path, existing: bool) -> None:
    out = tmp_path / "out"
    if existing:
        make(out, "old")
    script = (
        "import sys, time; from pathlib import Path; from edgeprune.bundles.writing import *\n"
        "with new_bundle(Path(sys.argv[1]), overwrite=True) as stage:\n"
        "    (stage / 'file').write_text('half'); print('staged', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "staged\n"
        process.send_signal(signal.SIGKILL)
    time.sleep(0.05)
    if existing:
        assert (out / "inner" / "file").read_text() == "old"
        assert open_bundle(out).faults() == []
    else:
        assert not out.exists()
    make(out, "new", overwrite=True)  # the next run clears what the killed one left
    assert os.listdir(tmp_path) == ["out"]


def test_updating_adds_files_and_hashes_in_one_step(tmp_path: Path) -> None:
    out = make(tmp_path / "out")
    with updated_bundle(out) as stage:
        (stage / "profile.json").write_text("{}")
        write_manifest(stage, EMPTY)
    bundle = open_bundle(out)
    assert sorted(bundle.manifest.files) == ["inner/file", "profile.json"]
    assert bundle.faults() == []
    with pytest.raises(RuntimeError), updated_bundle(out) as stage:
        (stage / "profile.json").write_text("changed")
        raise RuntimeError
    assert (out / "profile.json").read_text() == "{}"


def test_faults_name_changed_missing_and_foreign_files(tmp_path: Path) -> None:
    out = make(tmp_path / "out")
    (out / "inner" / "file").write_text("tampered")
    (out / "stranger").write_text("")
    assert [fault.split(":")[0] for fault in open_bundle(out).faults()] == ["inner/file", "stranger"]
    (out / "inner" / "file").unlink()
    assert "not a file here" in open_bundle(out).faults()[0]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "a\\..\\b"])
def test_paths_that_leave_the_bundle_are_refused(tmp_path: Path, name: str) -> None:
    out = make(tmp_path / "out")
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["files"][name] = "0" * 64
    (out / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="outside the bundle"):
        open_bundle(out)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        open_bundle(tmp_path)
    for text, message in (
        ("{", "is no manifest"),
        ('{"schema_version": 9, "edgeprune_version": "9"}', "bundle schema 9"),
    ):
        (tmp_path / MANIFEST).write_text(text)
        with pytest.raises(InputError, match=message):
            open_bundle(tmp_path)


def test_single_files_are_written_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "file.json", b"{}")
    assert (tmp_path / "new" / "file.json").read_bytes() == b"{}"
    assert os.listdir(tmp_path / "new") == ["file.json"]
    with pytest.raises(InputError, match="cannot be written"):
        write_atomically(tmp_path / "new" / "file.json" / "below", b"")


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    make(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert open_bundle(tmp_path / "disk").faults() == []
