"""`edgeprune tune --target all`: one table of all runtimes, and the files of the fastest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import small_bundle as small

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.names import MODEL, PROFILE, RUNTIMES
from edgeprune.cli import main
from edgeprune.cli.verbs.tune import RuntimeFlags
from edgeprune.deployment.candidates import RuntimeOptions
from edgeprune.errors import GateError, InputError
from edgeprune.pipeline import runtimes as steps
from edgeprune.pipeline.tune import _stale
from edgeprune.profiling.measurement import Measurement
from edgeprune.profiling.runtimes import joint
from edgeprune.profiling.runtimes.record import RuntimesRecord, load_runtimes
from edgeprune.runners import target
from edgeprune.runners.registry import TARGETS
from edgeprune.tuning import timer, tuner

HERE = ("cpu", "openvino-native", "litert", "ncnn")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms are chosen on few times, however noisy."""
    monkeypatch.setattr(timer, "RUNS", 1)
    monkeypatch.setattr(timer, "REPEATS", 1)
    monkeypatch.setattr(tuner, "SECONDS_A_NETWORK", 0.001)


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """All in this process, with these milliseconds for `target precision network`; else 5."""

    def set_times(times: Mapping[str, float] = {}) -> None:
        def interleave(runs: Mapping[str, object], **_: object) -> dict[str, Measurement]:
            return {name: Measurement(name, (times.get(name, 5.0) / 1e3,) * 9) for name in runs}

        monkeypatch.setattr(joint, "interleave", interleave)
        monkeypatch.setattr(joint, "warm_up", lambda runs, **_: True)
        monkeypatch.setattr(steps, "run_together", joint.measure)

    return set_times


def bundle(tmp_path: Path) -> Path:
    return small.write_bundle(tmp_path / "bundle", profiled=False)


def run(folder: Path, *flags: str) -> int:
    return main(["tune", str(folder), "--no-cache", "--quiet", *flags])


def record_of(folder: Path) -> RuntimesRecord:
    opened = open_bundle(folder)
    assert opened.faults() == []
    return load_runtimes(opened.path(RUNTIMES))


@pytest.mark.usefixtures("brief_measuring")
def test_every_runtime_that_is_here_is_measured_beside_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("openvino", "ai_edge_litert", "ncnn"):
        pytest.importorskip(module)
    folder = bundle(tmp_path)
    assert run(folder, "--target", "all", "--precision", "fp32,int8", "--keep", "best", "--time-limit", "1") == 0
    record = record_of(folder)
    asked = [(name, "fp32") for name in HERE] + [("cpu", "int8"), ("openvino-native", "int8")]
    assert set(asked) <= {(row.target, row.precision) for row in record.rows}
    counts = {len(latency.samples_ms) for row in record.rows for latency in (row.dense, row.pruned) if latency}
    assert len(counts) == 1  # all in the same rounds
    assert all(row.error == "" and row.realistic_speedup and row.speedup_over_fastest_dense for row in record.rows)
    assert record.best is not None
    assert record.best.precision == "fp32"  # INT8 that was calibrated on random inputs is for nobody
    assert record.kept
    assert set(record.kept) <= set(open_bundle(folder).manifest.files)
    assert record.rows[0].accuracy_dense == 98.1
    shown = capsys.readouterr().out
    assert "The fastest is the" in shown
    assert "Kept in the bundle" in shown


@pytest.mark.parametrize(
    ("winner", "network", "kept", "deploy"),
    [
        ("litert fp32 pruned", "pruned", {"model.tflite", "dense.tflite"}, "deploy model.tflite with LiteRT"),
        (
            "ncnn fp32 pruned",
            "pruned",
            {"ncnn/model.param", "ncnn/model.bin", "ncnn/dense.param", "ncnn/dense.bin"},
            "deploy ncnn/model.param, with model.bin beside it, with ncnn",
        ),
        (
            "openvino-native fp32 dense",
            "dense",
            {"openvino/model.xml", "openvino/model.bin", "openvino/dense.xml", "openvino/dense.bin"},
            "deploy openvino/dense.xml",
        ),
        ("cpu fp32 pruned", "pruned", {"model.onnx", "dense.onnx"}, "deploy model.onnx with ONNX Runtime"),
        ("cpu fp32 dense", "dense", {"model.onnx", "dense.onnx"}, "deploy dense.onnx with ONNX Runtime"),
    ],
)
def test_the_files_of_the_fastest_are_kept_in_its_runtimes_format(
    tmp_path: Path, taking: Callable[..., None], winner: str, network: str, kept: set[str], deploy: str
) -> None:
    taking({winner: 1.0})
    folder, target = bundle(tmp_path), winner.split()[0]
    assert run(folder, "--target", f"cpu,{target}", "--keep", "best") == 0
    record = record_of(folder)
    assert record.best is not None
    assert (record.best.target, record.best.network) == (target, network)
    assert set(record.kept) == kept
    assert record.deploy.startswith(deploy)
    assert kept <= set(open_bundle(folder).manifest.files)


def test_the_files_of_an_earlier_winner_go(tmp_path: Path, taking: Callable[..., None]) -> None:
    folder = bundle(tmp_path)
    taking({"litert fp32 pruned": 1.0})
    assert run(folder, "--target", "cpu,litert", "--keep", "best") == 0
    assert {"model.tflite", "dense.tflite"} <= set(open_bundle(folder).manifest.files)
    taking({"ncnn fp32 pruned": 1.0})
    assert run(folder, "--target", "cpu,ncnn", "--keep", "best") == 0
    left = set(open_bundle(folder).manifest.files)
    assert "ncnn/model.param" in left
    assert not left & {"model.tflite", "dense.tflite"}
    assert not (folder / "model.tflite").exists()


def test_without_keep_there_is_nothing_but_the_record(tmp_path: Path, taking: Callable[..., None]) -> None:
    taking()
    folder = bundle(tmp_path)
    before = set(open_bundle(folder).manifest.files)
    assert run(folder, "--target", "cpu,litert") == 0
    assert set(open_bundle(folder).manifest.files) - before <= {RUNTIMES, "lowering.json", "plain.onnx"}
    assert record_of(folder).kept == ()


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        ("cpu", {"model.int8.onnx", "dense.int8.onnx"}),
        (
            "openvino-native",
            {f"openvino/{stem}.int8.{suffix}" for stem in ("model", "dense") for suffix in ("xml", "bin")},
        ),
    ],
)
def test_int8_that_was_calibrated_on_data_may_win_and_is_kept_as_it_ran(
    tmp_path: Path, taking: Callable[..., None], target: str, kept: set[str]
) -> None:
    taking({f"{target} int8 pruned": 1.0})
    folder, inputs = bundle(tmp_path), tmp_path / "x.npy"
    np.save(inputs, np.random.default_rng(0).standard_normal((8, 3, small.SIZE, small.SIZE)).astype(np.float32))
    flags = ("--target", "cpu,openvino-native", "--precision", "fp32,int8", "--data", str(inputs), "--keep", "best")
    assert run(folder, *flags) == 0
    record = record_of(folder)
    assert record.best is not None
    assert record.best.precision == "int8"
    assert set(record.kept) == kept
    assert all(row.accuracy_dense is None for row in record.rows)  # arrays without labels


def test_where_no_pruned_network_is_faster_the_table_says_so(
    tmp_path: Path, taking: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    taking({"litert fp32 dense": 1.0})
    assert run(bundle(tmp_path), "--target", "cpu,litert") == 0
    assert "in no runtime faster than the fastest dense one (litert, fp32, 1.00 ms)" in capsys.readouterr().out


@pytest.mark.parametrize(("error", "status"), [(InputError("no Gather"), 1), (GateError("other outputs"), 3)])
def test_a_runtime_that_fails_is_a_row_with_its_reason(
    tmp_path: Path,
    taking: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    status: int,
) -> None:
    taking()
    real = joint.open_runner

    def opened(name: str, *given: object) -> object:
        if name == "litert":
            raise error
        return real(name, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(joint, "open_runner", opened)
    folder = bundle(tmp_path)
    assert run(folder, "--target", "cpu,litert") == status
    measured, failed = record_of(folder).rows
    assert measured.pruned is not None
    assert (failed.pruned, failed.error) == (None, str(error))
    output = capsys.readouterr()
    assert f"not measured (litert, fp32): {error}" in output.out
    assert "all was measured but litert" in output.err


def test_where_everything_fails_nothing_is_written(
    tmp_path: Path, taking: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str, *given: object) -> object:
        raise GateError("other outputs")

    taking()
    monkeypatch.setattr(joint, "open_runner", refused)
    folder = bundle(tmp_path)
    assert run(folder, "--target", "cpu,litert") == 3
    assert not open_bundle(folder).has(RUNTIMES)


def test_forms_that_cannot_be_chosen_for_a_runtime_leave_it_as_planned(
    tmp_path: Path, taking: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*given: object) -> object:
        raise GateError("the form dense gives other outputs")

    taking()
    monkeypatch.setattr("edgeprune.deployment.candidates.tune", refused)
    folder = bundle(tmp_path)
    assert run(folder, "--target", "cpu,openvino-native") == 0
    assert record_of(folder).rows[1].forms == "as planned"


def test_what_is_not_installed_is_named_with_what_to_install(
    tmp_path: Path, taking: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_importable = target.is_importable
    monkeypatch.setattr(target, "is_importable", lambda name: name != "ncnn" and is_importable(name))
    options = RuntimeOptions.of("all", RuntimeOptions(()))
    assert {one.target: one.reason for one in options.missing}["ncnn"] == "needs ncnn (pip install 'edgeprune[ncnn]')"
    assert "ncnn" not in options.targets
    assert not set(options.targets) & {"cuda", "torch-cpu"}
    with pytest.raises(InputError, match="target ncnn"):
        RuntimeOptions.of("cpu,ncnn", RuntimeOptions(())).check()
    with pytest.raises(InputError, match="all, or names of targets"):
        RuntimeOptions.of("cpu,all", RuntimeOptions(()))


@pytest.mark.parametrize(
    ("flags", "several"),
    [
        (RuntimeFlags(), False),
        (RuntimeFlags(target="openvino-native"), False),
        (RuntimeFlags(target="all"), True),
        (RuntimeFlags(target="cpu,litert"), True),
        (RuntimeFlags(target="litert"), False),
        (RuntimeFlags(precision="int8"), True),
        (RuntimeFlags(keep="best"), True),
    ],
)
def test_one_runtime_that_can_be_tuned_for_is_tuned_for_as_ever(flags: RuntimeFlags, several: bool) -> None:
    assert flags.are_several == several


@pytest.mark.parametrize("precision", ["fp16", "fp32,fp8"])
def test_other_precisions_are_refused(tmp_path: Path, precision: str) -> None:
    assert run(bundle(tmp_path), "--target", "all", "--precision", precision) == 1


def test_a_time_limit_is_for_several_runtimes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bundle(tmp_path), "--time-limit", "3") == 1
    assert "--time-limit is for several runtimes" in capsys.readouterr().err


def test_a_precision_that_no_target_computes_in_is_refused() -> None:
    with pytest.raises(InputError, match="none of torch-cpu computes in int8 here"):
        RuntimeOptions(("torch-cpu",), precisions=("int8",)).check()


def test_int8_that_nobody_may_use_leaves_nothing_to_keep(tmp_path: Path, taking: Callable[..., None]) -> None:
    taking()
    folder = bundle(tmp_path)
    assert run(folder, "--target", "cpu", "--precision", "int8", "--keep", "best") == 0
    record = record_of(folder)
    assert [row.precision for row in record.rows] == ["int8"]
    assert (record.best, record.kept) == (None, ())


def test_an_onnx_file_becomes_a_bundle_with_the_runtimes_in_it(tmp_path: Path, taking: Callable[..., None]) -> None:
    taking()
    _, pruned = small.write_models(tmp_path / "files")
    assert run(pruned, "--target", "cpu,litert", "-o", str(tmp_path / "out")) == 0
    record = record_of(tmp_path / "out")
    assert [row.target for row in record.rows] == ["cpu", "litert"]
    assert record.fastest_dense == {}


def test_another_model_makes_the_record_stale(tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes(b"new")
    assert _stale({MODEL: "of another", RUNTIMES: "any", PROFILE: "any"}, tmp_path) == [RUNTIMES, PROFILE]


def test_targets_of_the_table_are_ones_that_exist() -> None:
    assert set(HERE) <= set(TARGETS)
