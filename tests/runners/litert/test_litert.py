"""The target litert: which operators XNNPACK took, files and ONNX models, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from runtimes.lite_models import fed, model, random

from edgeprune.errors import InputError, SlowPathError
from edgeprune.exporters.conversions import ConvertOptions, with_fixed_sizes
from edgeprune.exporters.tflite.delegation import Delegation, delegation, delegation_in
from edgeprune.exporters.tflite.interpreter import open_interpreter
from edgeprune.exporters.tflite.writer import to_tflite
from edgeprune.runners.base import RunOptions
from edgeprune.runners.litert import runner as litert
from edgeprune.runners.litert.runner import LiteRtRunner
from edgeprune.runners.onnxruntime.runner import OrtRunner
from edgeprune.runners.registry import open_runner
from edgeprune.runners.target import Source


def with_a_gather(batch: int | str = "batch") -> Any:
    """Two convolutions, and between them what XNNPACK does not take."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first"),
        helper.make_node("Gather", ["a", "i"], ["g"], "between", axis=1),
        helper.make_node("Conv", ["g", "v"], ["b"], "second", group=2),
        helper.make_node("Relu", ["b"], ["y"], "relu"),
    ]
    weights = {"w": random(8, 3, 3, 3), "v": random(8, 4, 3, 3), "i": np.asarray([3, 1, 7, 0, 2, 6, 5, 4])}
    return model(nodes, {"x": (batch, 3, 9, 9)}, weights)


def listed(name: str, inputs: list[int], outputs: list[int]) -> dict[str, Any]:
    return {"op_name": name, "inputs": np.asarray(inputs), "outputs": np.asarray(outputs)}


@pytest.mark.parametrize(
    ("parts", "left"),
    [
        ([listed("DELEGATE", [0, 9], [3])], ()),
        ([listed("DELEGATE", [0, 9], [1]), listed("DELEGATE", [2], [3])], (1,)),
        ([listed("DELEGATE", [2], [3])], (0, 1)),
        ([listed("DELEGATE", [0, 9], [2])], (2,)),
        ([], (0, 1, 2)),
    ],
)
def test_what_the_delegate_took_follows_from_what_goes_in_and_out_of_its_parts(
    parts: list[dict[str, Any]], left: tuple[int, ...]
) -> None:
    chain = [listed("CONV_2D", [0, 9], [1]), listed("GATHER", [1, 8], [2]), listed("RELU", [2], [3])]
    assert delegation([*chain, *parts], [3]) == Delegation(("CONV_2D", "GATHER", "RELU"), len(parts), left)


def test_a_gather_is_left_and_cuts_the_network_in_two() -> None:
    interpreter = open_interpreter(to_tflite(with_fixed_sizes(with_a_gather())), 1, where="model")
    found = delegation_in(interpreter)
    assert (found.parts, [found.operators[place] for place in found.left]) == (2, ["GATHER"])
    assert found.words() == "XNNPACK leaves 1 GATHER of 5 operators to plain loops, and runs 2 parts"


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_a_file_and_the_model_that_it_was_written_from_give_the_same(tmp_path: Path, layout: Any) -> None:
    built = with_a_gather()
    path = tmp_path / "model.tflite"
    path.write_bytes(to_tflite(with_fixed_sizes(built), ConvertOptions(layout)))
    feeds = fed(with_fixed_sizes(built))
    with LiteRtRunner(path) as file, LiteRtRunner(built) as written, OrtRunner(built) as reference:
        assert file.input_names == written.input_names == ("x",)
        assert file.input_specs[0].shape == (1, 3, 9, 9)
        assert file.output_names == written.output_names == ("y",)
        wanted = reference.run(feeds)["y"]
        for runner in (file, written):
            np.testing.assert_allclose(runner.run(feeds)["y"], wanted, atol=1e-4)
            taken = 4 if layout == "nhwc" or runner is written else 6  # two transpositions more
            assert runner.providers() == {"LiteRT XNNPACK": taken, "LiteRT": 1}


def test_timed_runs_keep_their_inputs_and_take_threads() -> None:
    built = with_a_gather()
    feeds = fed(with_fixed_sizes(built))
    with LiteRtRunner(built, RunOptions(threads=2)) as runner:
        before = runner.run(feeds)["y"]
        run = runner.prepared(feeds)
        for _ in range(3):
            run()
        np.testing.assert_array_equal(
            litert.fetch(runner._for(feeds).interpreter, runner._for(feeds).record)["y"], before
        )


def test_a_convolution_that_the_delegate_leaves_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Delegation(("CONV_2D", "TRANSPOSE", "GATHER", "TRANSPOSE", "CONV_2D"), 1, (2, 4))
    monkeypatch.setattr(litert, "delegation_in", lambda interpreter: found)
    built = with_a_gather()
    with (
        LiteRtRunner(built) as runner,
        pytest.raises(SlowPathError, match=r"does not take 1 of its convolutions \(second\)"),
    ):
        runner.run(fed(with_fixed_sizes(built)))


def test_what_litert_cannot_hold_is_refused_with_the_node() -> None:
    built = model([helper.make_node("Erf", ["x"], ["y"], "erf")], {"x": (1, 3, 4, 4)})
    with LiteRtRunner(built) as runner, pytest.raises(InputError, match=r"erf \(Erf\): cannot be written for LiteRT"):
        runner.run(fed(built))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.tflite: cannot be read \(No such file"):
        open_runner("litert", Source(tmp_path / "model.tflite"))


def test_litert_s_chatter_is_left_out_and_all_else_comes_through(capfd: pytest.CaptureFixture[str]) -> None:
    from edgeprune.exporters.tflite import interpreter

    with interpreter.without_chatter():
        os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nERROR: no memory\n")
    assert capfd.readouterr().err == "ERROR: no memory\n"
