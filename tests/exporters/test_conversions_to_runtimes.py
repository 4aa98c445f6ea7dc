"""`edgeprune convert` to ncnn and OpenVINO: what is written is held to ONNX Runtime by the runtime itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, helper
from runtimes.small_onnx import difference, feeds_for, in_onnxruntime, normal, small_model

from edgeprune.cli import main
from edgeprune.deployment.converting import converted
from edgeprune.errors import GateError
from edgeprune.exporters.conversions import CONVERSIONS, ConvertOptions
from edgeprune.exporters.ncnn import runtime
from edgeprune.onnx_files.model import save_onnx

node = helper.make_node
IMAGE = (1, 8, 6, 7)
ORDER = np.array([3, 0, 6, 1, 7, 2, 5, 4])


def grouped(groups: int = 4, *, permuted: bool = False) -> ModelProto:
    nodes = [node("Gather", ["x", "i"], ["g"], axis=1)] if permuted else []
    nodes += [node("Conv", ["g" if permuted else "x", "w"], ["y"], name="layer", group=groups, pads=[1] * 4)]
    return small_model(nodes, IMAGE, {"w": normal(8, 8 // groups, 3, 3), **({"i": ORDER} if permuted else {})})


@pytest.mark.parametrize(("to", "suffix"), [("ncnn", ".param"), ("openvino", ".xml")])
def test_the_files_lie_beside_each_other_and_compute_the_same(to: str, suffix: str, tmp_path: Path) -> None:
    pytest.importorskip(CONVERSIONS[to].module, reason=f"what writes {to} is not installed")
    model = grouped()
    save_onnx(model, tmp_path / "net.onnx")
    out = tmp_path / f"net{suffix}"
    assert main(["convert", str(tmp_path / "net.onnx"), "--to", to, "-o", str(out), "--quiet"]) == 0
    assert out.with_suffix(".bin").is_file()
    feeds = feeds_for(model)
    assert difference(in_onnxruntime(model, feeds), CONVERSIONS[to].run(out, feeds)) <= 1e-6


def test_a_permutation_that_openvino_turns_around_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    save_onnx(grouped(1, permuted=True), tmp_path / "net.onnx")
    out = tmp_path / "net.xml"
    assert main(["convert", str(tmp_path / "net.onnx"), "--to", "openvino", "-o", str(out), "--quiet"]) == 3
    assert "parity failed: in OpenVINO the outputs differ from ONNX Runtime's" in capsys.readouterr().err
    assert not list(tmp_path.glob("net.[xb]*"))


def test_a_gather_is_refused_with_a_way_around_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ncnn")
    save_onnx(grouped(permuted=True), tmp_path / "net.onnx")
    assert main(["convert", str(tmp_path / "net.onnx"), "--to", "ncnn", "-o", str(tmp_path / "net.param")]) == 1
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert "(Gather): ncnn has no Gather, and this one takes 8 of 8 places in another order" in line
    assert line.endswith("edgeprune prune --method gconv --gathers none")


def test_other_outputs_of_ncnn_are_a_failed_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ncnn")
    run = runtime.run_file
    monkeypatch.setattr(runtime, "run_file", lambda path, feeds: {k: v[:, ::-1] for k, v in run(path, feeds).items()})
    with pytest.raises(GateError, match="in ncnn the outputs differ"):
        converted(grouped(), CONVERSIONS["ncnn"], ConvertOptions())


def test_weights_of_another_format_are_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ncnn")
    pytest.importorskip("openvino", reason="openvino is not installed")
    save_onnx(grouped(), tmp_path / "net.onnx")
    given = ["convert", str(tmp_path / "net.onnx"), "--quiet"]
    assert main([*given, "--to", "ncnn", "-o", str(tmp_path / "net.param")]) == 0
    assert main([*given, "--to", "openvino", "-o", str(tmp_path / "net.xml")]) == 1
    assert "net.xml: would replace net.bin, which belongs to net.param" in capsys.readouterr().err
    assert main([*given, "--to", "ncnn", "-o", str(tmp_path / "net.param")]) == 0
