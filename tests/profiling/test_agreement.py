"""Outputs are compared with ONNX Runtime's before anything is timed, in `profile` and in `tune`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_bundle as small
from onnx import ModelProto, helper
from runtimes.small_onnx import normal, small_model

from edgeprune.bundles.names import PROFILE
from edgeprune.cli import main
from edgeprune.devices.device_profile import load_profile
from edgeprune.errors import GateError
from edgeprune.onnx_files.model import check_model, save_onnx
from edgeprune.pipeline.profile import profile
from edgeprune.precision.formats import tolerance
from edgeprune.precision.half import to_half
from edgeprune.profiling import agreement, batch
from edgeprune.profiling.agreement import References, allowed, relative_difference, require_agreement
from edgeprune.profiling.result import load_profile_result
from edgeprune.profiling.setup import ProfileOptions
from edgeprune.runners import registry
from edgeprune.runners.onnxruntime.runner import TimedOrtRunner
from edgeprune.runners.target import OpenOptions, Source
from edgeprune.tuning import timer
from edgeprune.tuning.options import TuneOptions
from edgeprune.tuning.tuner import tune

QUICK = ProfileOptions(warmup=1, iterations=4, interval=0, per_layer=False, fresh_process=False)
FLAGS = ("--warmup", "1", "--iterations", "4", "--interval", "0", "--no-per-layer", "--quiet")
node = helper.make_node


class Permuting(TimedOrtRunner):
    """A runtime that gives classes in another order."""

    def run(self, feeds: Any) -> dict[str, Any]:
        return {name: output[:, ::-1] for name, output in super().run(feeds).items()}


@pytest.fixture
def permuting(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the named target permute its outputs."""

    def permute(name: str) -> None:
        def opened(source: Source, options: OpenOptions) -> Permuting:
            return Permuting(source.model, options.run)

        known = registry.TARGETS[name]
        target = replace(known, open=opened, state=registry.TARGETS["cpu"].state)
        monkeypatch.setattr(registry, "TARGETS", {**registry.TARGETS, name: target})

    return permute


@pytest.fixture
def nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (batch, timer):
        monkeypatch.setattr(module, "interleave", lambda *args, **more: pytest.fail("timed"))


def turned_around() -> ModelProto:
    """What OpenVINO 2026.4 computes with the inverse of the permutation."""
    order = np.array([3, 0, 6, 1, 7, 2, 5, 4])
    nodes = [node("Gather", ["x", "i"], ["g"], axis=1), node("Conv", ["g", "w"], ["y"], pads=[1] * 4)]
    return small_model(nodes, (1, 8, 6, 7), {"i": order, "w": normal(8, 8, 3, 3)})


@pytest.mark.usefixtures("nothing_is_timed")
def test_a_target_that_permutes_its_outputs_is_not_timed(tmp_path: Path, permuting: Callable[[str], None]) -> None:
    permuting("cpu")
    dense, pruned = small.write_models(tmp_path)
    with pytest.raises(GateError, match=r"target cpu: the dense network gives other outputs .* so nothing was timed"):
        profile(pruned, dense, ("cpu",), QUICK)


@pytest.mark.usefixtures("nothing_is_timed")
def test_forms_are_not_chosen_by_a_target_that_permutes_its_outputs(permuting: Callable[[str], None]) -> None:
    permuting("cpu")
    dense, pruned = map(check_model, small.models())
    with pytest.raises(GateError, match=r"target cpu: the network \(each layer \w+\) gives other outputs"):
        tune(pruned, dense, load_profile("x86-avx512"), TuneOptions())


def test_the_other_targets_are_measured_and_the_verb_ends_with_3(
    tmp_path: Path, permuting: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    permuting("openvino-native")
    folder = small.write_bundle(tmp_path / "bundle", profiled=False)
    targets = ("--target", "cpu,openvino-native", "--no-fresh-process")
    assert main(["profile", str(folder), *targets, *FLAGS]) == 3
    told = capsys.readouterr()
    assert told.err.splitlines() == ["edgeprune: all was measured but openvino-native, threads 1, batch 1"]
    assert "not measured (openvino-native, threads 1, batch 1): target cpu: the dense network gives" in told.out
    kept = load_profile_result(folder / PROFILE)
    assert [result.target for result in kept.results] == ["cpu"]
    assert [failure.kind for failure in kept.failures] == ["gate"]
    assert main(["profile", str(folder), "--target", "openvino-native", "--no-fresh-process", *FLAGS]) == 3


@pytest.mark.parametrize("fresh", ["--fresh-process", "--no-fresh-process"])
def test_a_permutation_that_openvino_turns_around_has_no_speed(
    fresh: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    path, json = tmp_path / "turned.onnx", tmp_path / "speed.json"
    save_onnx(turned_around(), path)
    assert main(["profile", str(path), "--target", "openvino-native", fresh, "--json", str(json), *FLAGS]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("edgeprune: target openvino-native: the pruned network gives other outputs than in ONNX")
    assert not json.exists()
    assert main(["profile", str(path), "--target", "cpu", fresh, "--json", str(json), *FLAGS]) == 0


@pytest.mark.usefixtures("nothing_is_timed")
def test_forms_are_not_chosen_beside_a_permutation_that_openvino_turns_around(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(timer, "RUNS", 1)
    pruned = check_model(small.models()[1])
    options = TuneOptions(target="openvino-native")
    with pytest.raises(GateError, match=r"target openvino-native: the network \(dense network\) gives other outputs"):
        tune(pruned, check_model(turned_around()), load_profile("x86-avx512"), options)


def test_references_that_were_computed_before_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, pruned = small.write_models(tmp_path)
    references = References({"dense": dense, "pruned": pruned}, seed=3, folder=tmp_path)
    references.write((1, 2))
    fresh = replace(references, folder=None).outputs("pruned", 2)
    monkeypatch.setattr(agreement, "OrtRunner", None)  # nothing may be run
    (held,) = references.outputs("pruned", 2)
    np.testing.assert_array_equal(held, fresh[0])
    assert held.shape == (2, small.CLASSES)


def test_files_of_fewer_bits_may_differ_as_those_do() -> None:
    model = check_model(small.models()[1])
    assert allowed(model) == tolerance("fp32")
    assert allowed(to_half(model)) == tolerance("fp16")


@pytest.mark.parametrize(
    ("expected", "got", "off"),
    [
        ([1.0, -2.0], [1.0, -2.0], 0.0),
        ([1.0, -2.0], [1.5, -2.0], 0.25),
        ([np.inf, 2.0], [np.inf, 1.0], 0.5),
        ([np.nan, 2.0], [np.nan, 2.0], 0.0),
        ([1.0, 2.0], [np.nan, 2.0], np.inf),
        ([np.inf, 2.0], [-np.inf, 2.0], np.inf),
    ],
)
def test_differences_are_shares_of_the_range(expected: list[float], got: list[float], off: float) -> None:
    assert relative_difference(np.array(expected), np.array(got)) == off


def test_outputs_of_another_shape_do_not_agree() -> None:
    with pytest.raises(GateError, match=r"this gives outputs of shapes \[\(2, 3\)\], in ONNX Runtime \[\(3, 2\)\]"):
        require_agreement([np.zeros((3, 2))], [np.zeros((2, 3))], 1.0, "this")
