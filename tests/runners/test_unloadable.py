"""A runtime whose package is there, but does not load, is the machine's fault and no bug."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import small_bundle as small

from edgeprune.cli import main
from edgeprune.errors import InputError, unloadable
from edgeprune.runners.registry import open_runner
from edgeprune.runners.target import Source


@pytest.fixture
def broken_ncnn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ncnn")
    (tmp_path / "broken" / "ncnn").mkdir(parents=True)
    (tmp_path / "broken" / "ncnn" / "__init__.py").write_text('raise ImportError("libgomp.so.1: cannot open")\n')
    monkeypatch.syspath_prepend(str(tmp_path / "broken"))
    held = ("ncnn", "edgeprune.exporters.ncnn", "edgeprune.runners.ncnn.runner")
    for name in [name for name in sys.modules if any(f"{name}.".startswith(f"{one}.") for one in held)]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("broken_ncnn")
def test_the_package_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small.write_models(tmp_path)
    words = "the package ncnn cannot be loaded: libgomp.so.1: cannot open; install it anew"
    with pytest.raises(InputError, match=f"target ncnn: {words}"):
        open_runner("ncnn", Source(tmp_path / "model.onnx"))
    out = tmp_path / "net.param"
    assert main(["convert", str(tmp_path / "model.onnx"), "--to", "ncnn", "-o", str(out), "--quiet"]) == 1
    assert capsys.readouterr().err.startswith(f"edgeprune: {words}")
    assert not out.exists()


def test_modules_of_its_own_that_do_not_load_are_a_bug() -> None:
    assert unloadable(ImportError("cannot import name 'x' from 'edgeprune.y'", name="edgeprune.y")) is None
    assert "the package torch cannot be loaded" in str(unloadable(ImportError("libc10.so", name="torch._C")))
