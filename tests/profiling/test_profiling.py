"""Profiling: what is promised beside what is measured, layer by layer, with a cause in words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import small_bundle as small
from onnx import helper

from edgeprune.devices.roofline import Roofline
from edgeprune.devices.sensors import MachineState
from edgeprune.errors import InputError
from edgeprune.onnx_files.graph import TensorSpec
from edgeprune.onnx_files.macs import count_macs
from edgeprune.profiling.batch import memory_checked, noise_warnings
from edgeprune.profiling.environment import current_environment
from edgeprune.profiling.explaining.facts import MachineFacts
from edgeprune.profiling.layer_times import LayerInfo, LayerTime, ModelLayers, attribute_times, match_layers
from edgeprune.profiling.layers import LayerTimes, above_peak, layer_rows
from edgeprune.profiling.measurement import Measurement
from edgeprune.profiling.profiler import Pair, ProfileOptions, load_profile_result, profile_files, profile_runners
from edgeprune.profiling.result import Drift
from edgeprune.profiling.setup import Batch, random_feeds
from edgeprune.profiling.subject import Subject
from edgeprune.runners.base import NodeTime

QUICK = ProfileOptions(warmup=1, iterations=6, interval=0)
MACHINE = MachineFacts(16)


class Node(NamedTuple):
    name: str
    op_type: str
    mean_ms: float


class FakeRunner:
    """Tells made-up times of its nodes."""

    target, provider, output_names = "cpu", "Fake", ("output",)

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes, self.input_names, self.shapes, self.closed = nodes, ("input",), set[tuple[int, ...]](), False

    def run(self, feeds: Any) -> dict[str, Any]:
        self.shapes.add(feeds["input"].shape)
        return {}

    def prepared(self, feeds: Any) -> Callable[[], object]:
        return lambda: self.run(feeds)

    def profile_nodes(self, feeds: Any, iterations: int) -> list[Node]:
        return self.nodes

    def providers(self) -> dict[str, int]:
        return {"Fake": len(self.nodes)}

    def original_node(self, name: str) -> str:
        return "" if name.startswith("Reorder") else name.removesuffix("_nchwc")

    def close(self) -> None:
        self.closed = True


def fake_runners(pruned_nodes: list[Node] | None = None) -> dict[str, FakeRunner]:
    dense = [
        Node("stem_nchwc", "Conv", 1.0),
        Node("layer1.0.conv1_nchwc", "Conv", 4.0),
        Node("layer1.0.conv2", "Conv", 4.0),
    ]
    pruned = pruned_nodes or [
        Node("stem_nchwc", "Conv", 1.0),
        Node("ReorderOutput", "ReorderOutput", 0.25),
        Node("layer1.0.conv1.input_gather", "Gather", 1.0),
        Node("ReorderInput", "ReorderInput", 0.5),
        Node("layer1.0.conv1_nchwc", "Conv", 2.0),
        Node("layer1.0.conv2", "Conv", 4.0),
        Node("pool", "GlobalAveragePool", 0.125),
        Node("ReorderOutput_1", "ReorderOutput", 0.125),
    ]
    return {"dense": FakeRunner(dense), "pruned": FakeRunner(pruned)}


def test_a_layer_is_charged_with_its_gather_and_its_reordering() -> None:
    dense, pruned = small.models()
    runners = fake_runners()
    notes = {layer.name: layer.note for layer in small.plan().layers}
    (result,) = profile_runners(lambda which: runners[which], Pair(dense, pruned, notes), "cpu", QUICK)
    rows = {row.name: row for row in result.layers}
    middle = rows[small.MIDDLE]
    assert (middle.dense_ms, middle.pruned_ms, middle.gather_ms, middle.reorder_ms) == (4.0, 3.75, 1.0, 0.75)
    assert (middle.lowering, middle.groups, middle.in_per_group, middle.out_per_group) == ("grouped", 2, 16, 16)
    assert middle.dense_macs == 2 * middle.macs == 2 * middle.executed_macs == 32 * 32 * 9 * 144
    assert middle.theoretical_speedup == 2
    assert middle.realistic_speedup == pytest.approx(4 / 3.75)
    assert middle.efficiency == pytest.approx(4 / 3.75 / 2)
    assert middle.cause == "gather takes 27% of the layer, the reordering of data around it 20%"
    assert rows[small.LAST].pruned_ms == 4.125
    assert rows[small.LAST].cause == "not pruned: skipped by request"
    assert (rows[small.HEAD].pruned_ms, rows[small.HEAD].efficiency) == (None, None)
    assert result.pruned_other_ms == 0.125
    assert runners["dense"].closed
    assert runners["pruned"].closed


def test_a_layers_row_tells_what_it_moves_and_what_the_device_could_do() -> None:
    dense, pruned = small.models()
    runners = fake_runners()
    (result,) = profile_runners(lambda which: runners[which], Pair(dense, pruned), "cpu", QUICK)
    row = next(row for row in result.layers if row.name == small.MIDDLE)
    values, weights = 2 * 32 * 144, 32 * 16 * 9
    assert row.bytes_moved == 4 * (values + weights)
    assert row.intensity == pytest.approx(2 * row.executed_macs / row.bytes_moved, abs=1e-5)
    assert row.bound_ms is not None
    assert row.bound_share == pytest.approx(row.bound_ms / 3.75, abs=1e-5)
    assert row.cause_kind == "gather"


def test_a_layer_faster_than_the_device_is_said_to_be_casts_doubt_on_its_profile() -> None:
    batch = Batch.of(Pair(*small.models()), "cpu", 1, replace(MACHINE, roofline=Roofline("a device", 1e6, 1e12)))
    rows = layer_rows(batch, LayerTimes({"pruned": {small.MIDDLE: LayerTime(1.0), "stem": LayerTime(1e6)}}))
    (warning,) = above_peak(rows, batch.machine.roofline)
    assert warning.startswith(f"{small.MIDDLE} runs at 66355% of the peak of device profile a device")
    assert above_peak(rows, Roofline("another", 1e12, 1e12)) == above_peak(rows, None) == []


def test_a_layer_that_another_provider_ran_is_told() -> None:
    model = ModelLayers.of(small.models()[1], 1)
    nodes = [NodeTime("stem", "Conv", "A", 1.0), NodeTime(small.MIDDLE, "Conv", "B", 1.0)]
    times, _ = attribute_times(nodes, {}, model.owners, "A")
    assert [times[name].provider for name in ("stem", small.MIDDLE)] == ["A", "B"]
    batch = Batch.of(Pair(None, small.models()[1]), "cuda", 1, MachineFacts(8))
    rows = {row.name: row for row in layer_rows(batch, LayerTimes({"pruned": times}, provider="A"))}
    assert rows["stem"].cause_kind == ""
    assert (rows[small.MIDDLE].provider, rows[small.MIDDLE].cause) == ("B", "fallback: B ran it, not A")


def test_raw_samples_are_kept_and_an_unsettled_measurement_says_so_with_its_interval(tmp_path: Path) -> None:
    dense, pruned = small.write_models(tmp_path)
    (result,) = profile_files(Subject(pruned, dense), ("cpu",), replace(QUICK, interval=1e-9, per_layer=False)).results
    assert result.dense is not None
    assert len(result.dense.samples_ms) == len(result.pruned.samples_ms) == 6
    assert np.median(result.pruned.samples_ms) == pytest.approx(result.pruned.p50_ms, abs=1e-4)
    assert not result.pruned.settled
    assert any("not settled within 6 runs" in warning and "speed-up is" in warning for warning in result.warnings)
    (fixed,) = profile_files(Subject(pruned, dense), ("cpu",), replace(QUICK, per_layer=False)).results
    assert fixed.pruned.settled, "no interval was asked"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("Failed to allocate memory for requested buffer of size 12345"),
        RuntimeError("std::bad_alloc"),
        InputError("torch cannot run the model on this input: CUDA error: out of memory"),
    ],
)
def test_a_device_without_enough_memory_is_an_error_of_the_input(error: Exception) -> None:
    words = "target cuda, batch 64: not enough memory: .*smaller --batch-size"
    with pytest.raises(InputError, match=words), memory_checked("cuda", 64):
        raise error


def test_where_no_batch_was_chosen_none_is_to_blame() -> None:
    words = "target cuda: not enough memory: .*free memory of the device"
    with pytest.raises(InputError, match=words), memory_checked("cuda"):
        raise MemoryError("out of memory")


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(ZeroDivisionError), memory_checked("cpu", 1):
        raise ZeroDivisionError("in a room")


class Copying(FakeRunner):
    """On a device of its own."""

    def copy_times(self, feeds: Any, iterations: int) -> tuple[float, float]:
        return 0.25, 0.125


def test_copies_to_and_from_a_device_are_told_apart_from_the_latency() -> None:
    pruned = small.models()[1]
    (result,) = profile_runners(lambda which: Copying([]), Pair(None, pruned), "cuda", replace(QUICK, per_layer=False))
    assert (result.copy_in_ms, result.copy_out_ms) == (0.25, 0.125)


def test_heat_and_a_falling_clock_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter((MachineState(3000.0, 60.0, 2), MachineState(2400.0, 90.0, 5)))
    monkeypatch.setattr("edgeprune.profiling.batch.machine_state", lambda cores: next(states))
    runners = fake_runners()
    (result,) = profile_runners(lambda which: runners[which], Pair(*small.models()), "cpu", QUICK)
    assert result.drift == Drift((3000.0, 2400.0), (60.0, 90.0), 3)
    for words in ("clock fell from 3000 to 2400 MHz", "slowed down 3 times because of heat"):
        assert any(words in warning for warning in result.warnings), words


def test_energy_is_that_of_what_the_target_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Meter:
        source, whole_board = "a meter", False

        def start(self) -> None: ...

        def stop(self) -> float:
            return 0.5

    monkeypatch.setattr("edgeprune.profiling.batch.energy_meter", Meter)
    monkeypatch.setattr("edgeprune.profiling.batch.energy_per_run_mj", lambda run, meter: meter.stop() * 1e3)
    for target, energy in (("cpu", 500.0), ("cuda", None)):
        runners = fake_runners()
        options = replace(QUICK, per_layer=False)
        (result,) = profile_runners(lambda which: runners[which], Pair(*small.models()), target, options)  # noqa: B023
        assert (result.energy_mj, result.dense_energy_mj) == (energy, energy)


def test_profiles_of_former_versions_are_read(tmp_path: Path) -> None:
    dense, pruned = small.write_models(tmp_path)
    data = msgspec.json.decode(msgspec.json.encode(profile_files(Subject(pruned, dense), ("cpu",), QUICK)))
    result = data["results"][0]
    for name in ("precision", "providers", "peak_memory_mb", "energy_mj", "dense_energy_mj", "copy_in_ms"):
        del result[name]
    for name in ("copy_out_ms", "advice", "drift"):
        del result[name]
    for layer in result["layers"]:
        for name in ("cause_kind", "bytes_moved", "intensity", "bound_ms", "bound_share", "provider"):
            del layer[name]
    for latency in (result["dense"], result["pruned"]):
        del latency["samples_ms"], latency["settled"]
    del data["settings"]["interval"], data["settings"]["fresh_process"]
    (tmp_path / "profile.json").write_bytes(msgspec.json.encode(data))
    read = load_profile_result(tmp_path / "profile.json").results[0]
    assert read.pruned.settled
    assert (read.precision, read.providers, read.advice, read.layers[0].bound_ms) == ("fp32", {}, (), None)


def test_theory_comes_from_the_files_and_practice_from_the_runs(tmp_path: Path) -> None:
    dense, pruned = small.write_models(tmp_path)
    measured = profile_files(Subject(pruned, dense), ("cpu",), replace(QUICK, batch_sizes=(1, 3)))
    assert [result.batch_size for result in measured.results] == [1, 3]
    for result in measured.results:
        assert (result.target, result.provider, result.threads) == ("cpu", "CPUExecutionProvider", 1)
        assert result.dense is not None
        assert result.dense.n == result.pruned.n == 6
        saved = 32 * 16 * 9 * 144 * result.batch_size
        assert result.dense_macs == result.pruned_macs + saved
        assert result.theoretical_speedup == pytest.approx(result.dense_macs / result.pruned_macs, abs=1e-6)
        rounds = zip(result.dense.samples_ms, result.pruned.samples_ms, strict=True)
        assert result.realistic_speedup == pytest.approx(median(a / b for a, b in rounds), rel=0.01)
        assert result.efficiency == pytest.approx(result.realistic_speedup / result.theoretical_speedup, abs=1e-5)
        assert result.paired_interval[0] <= result.paired_speedup <= result.paired_interval[1]
        assert [row.name for row in result.layers] == [small.STEM, small.MIDDLE, small.LAST, small.HEAD]
        assert all(row.dense_ms > 0 and row.pruned_ms > 0 for row in result.layers[:3])
        assert result.layers[1].gather_ms > 0
    assert measured.environment.threads == 1
    assert measured.environment.cores >= 1
    assert "onnxruntime" in measured.environment.runtime_versions


def test_the_profile_has_the_keys_that_scripts_read(tmp_path: Path) -> None:
    dense, pruned = small.write_models(tmp_path)
    path = tmp_path / "profile.json"
    path.write_bytes(msgspec.json.encode(profile_files(Subject(pruned, dense), ("cpu",), QUICK)))
    read = msgspec.json.decode(path.read_bytes())
    assert {"schema_version", "environment", "results"} <= set(read)
    assert {"cpu", "cores", "threads", "runtime_versions", "load_average", "flags", "platform", "date"} <= set(
        read["environment"]
    )
    (result,) = read["results"]
    assert {
        "target",
        "provider",
        "threads",
        "batch_size",
        "dense",
        "pruned",
        "theoretical_speedup",
        "realistic_speedup",
        "efficiency",
        "layers",
        "warnings",
    } <= set(result)
    assert {"p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms", "n", "noise"} <= set(result["pruned"])
    assert {
        "name",
        "lowering",
        "macs",
        "executed_macs",
        "dense_ms",
        "pruned_ms",
        "efficiency",
        "cause",
    } <= set(result["layers"][0])
    assert load_profile_result(path).results[0].batch_size == 1


def test_without_a_baseline_only_the_pruned_model_is_measured(tmp_path: Path) -> None:
    _, pruned = small.write_models(tmp_path)
    (result,) = profile_files(Subject(pruned), ("cpu",), QUICK).results
    assert result.dense is None
    assert (result.theoretical_speedup, result.realistic_speedup, result.efficiency) == (None, None, None)
    assert result.layers[1].pruned_ms > 0
    assert result.layers[1].dense_ms is None


def test_idle_threads_do_not_spin_since_both_models_stay_loaded(tmp_path: Path) -> None:
    assert not ProfileOptions(threads=2).run_options().spinning
    dense, pruned = small.write_models(tmp_path)
    assert not profile_files(Subject(pruned, dense), ("cpu",), replace(QUICK, threads=2)).settings.spinning


def test_layers_can_be_left_out(tmp_path: Path) -> None:
    dense, pruned = small.write_models(tmp_path)
    assert profile_files(Subject(pruned, dense), ("cpu",), replace(QUICK, per_layer=False)).results[0].layers == ()


def test_the_same_seed_gives_the_same_inputs() -> None:
    specs = [TensorSpec("x", ("batch", 3, 4, 4), "float32"), TensorSpec("z", ("batch", 2), "uint8")]
    first, again, other = (random_feeds(specs, 5, seed) for seed in (1, 1, 2))
    assert [value.shape for value in first] == [(5, 3, 4, 4), (5, 2)]
    assert [str(value.dtype) for value in first] == ["float32", "uint8"]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize(
    ("spec", "batch", "words"),
    [
        (TensorSpec("x", ("n", 3, "h", 4), "float32"), 1, r"dynamic axis 2 \(h\).*fixed input size"),
        (TensorSpec("x", (2, 3), "float32"), 1, "fixed batch of 2; expected batch size 1; pass --batch-size 2"),
        (TensorSpec("x", ("n", 3), "int64"), 1, "input 'x' is int64"),
    ],
)
def test_inputs_that_cannot_be_made_up_are_refused(spec: TensorSpec, batch: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        random_feeds([spec], batch, 0)


def test_truths_are_made_up_and_a_fixed_first_axis_that_is_no_batch_is_kept() -> None:
    specs = [TensorSpec("k", (7,), "bool", is_batched=False), TensorSpec("x", ("n", 4, 4, 3), "int32")]
    truths, pixels = random_feeds(specs, 3, 0)
    assert (truths.shape, str(truths.dtype)) == ((7,), "bool")
    assert (pixels.shape, str(pixels.dtype)) == ((3, 4, 4, 3), "int32")
    assert (pixels.min() >= 0, pixels.max() <= 255, pixels.max() > 1) == (True, True, True)


def test_a_fixed_batch_must_be_asked_for(tmp_path: Path) -> None:
    dense, pruned = small.write_models(tmp_path, batch=2)
    assert profile_files(Subject(pruned, dense), ("cpu",), replace(QUICK, batch_sizes=(2,))).results[0].batch_size == 2
    with pytest.raises(InputError, match="fixed batch of 2"):
        profile_files(Subject(pruned, dense), ("cpu",), QUICK)


def test_a_baseline_with_other_inputs_is_refused(tmp_path: Path) -> None:
    dense, pruned = small.write_models(tmp_path)
    model = small.models()[0]
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 14
    dense.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"takes float32 \(N, 3, 12, 14\); expected .* float32 \(N, 3, 12, 12\)"):
        profile_files(Subject(pruned, dense), ("cpu",), QUICK)
    with_classes = small.models()[0]
    with_classes.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    dense.write_bytes(with_classes.SerializeToString())
    with pytest.raises(InputError, match=r"gives float32 \(N, 7\); expected what the pruned model gives"):
        profile_files(Subject(pruned, dense), ("cpu",), QUICK)
    model.graph.input.append(helper.make_tensor_value_info("extra", 1, [1]))
    dense.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="2 inputs"):
        profile_files(Subject(pruned, dense), ("cpu",), QUICK)


@pytest.mark.parametrize(
    ("targets", "options", "words"),
    [
        (("gpu",), QUICK, "unknown target 'gpu'"),
        (("torch-cpu",), QUICK, "ONNX files do not run in torch"),
        (("cpu",), replace(QUICK, batch_sizes=(0,)), "--batch-size 0"),
        (("cpu",), replace(QUICK, iterations=0), "--iterations 0"),
        (("cpu",), replace(QUICK, warmup=-1), "--warmup -1"),
        (("cpu",), replace(QUICK, threads=0), "--threads 0"),
        (("cpu",), replace(QUICK, interval=1.5), "--interval 1.5; expected a share from 0 to 1"),
        (("cpu",), replace(QUICK, time_limit_s=0), "--time-limit 0; expected seconds"),
        (("cpu",), replace(QUICK, machine_profile="x86"), "unknown device profile 'x86'"),
    ],
)
def test_wrong_options_are_refused(
    tmp_path: Path, targets: tuple[str, ...], options: ProfileOptions, words: str
) -> None:
    dense, pruned = small.write_models(tmp_path)
    with pytest.raises(InputError, match=words):
        profile_files(Subject(pruned, dense), targets, options)


def test_layers_are_matched_by_name_else_by_order_else_not() -> None:
    dense, pruned = (ModelLayers.of(model, 1).layers for model in small.models())
    assert match_layers(dense, pruned) == dict(zip((layer.name for layer in pruned), dense, strict=True))
    foreign = [replace(layer, name=f"/node_{number}") for number, layer in enumerate(dense)]
    assert match_layers(foreign, pruned)[small.MIDDLE].name == "/node_1"
    assert match_layers(foreign[:-1], pruned) == {}


def test_reordering_without_a_layer_behind_it_belongs_to_the_layer_before() -> None:
    model = ModelLayers.of(small.models()[1], 1)
    nodes = [Node("stem", "Conv", 1.0), Node("ReorderOutput", "ReorderOutput", 0.5), Node("relu0", "Relu", 0.25)]
    times, other = attribute_times(nodes, {"ReorderOutput": ""}, model.owners)
    assert times == {"stem": LayerTime(1.5, 0.0, 0.5, nodes=1, moves=1)}
    assert other == 0.25


def test_planned_macs_count_for_theory_and_executed_macs_for_the_cause() -> None:
    dense, pruned = small.models()
    executed = 32 * 16 * 9 * 144
    pair = Pair(dense, pruned, planned_macs={small.MIDDLE: executed // 2})
    batch = Batch.of(pair, "cpu", 3, MachineFacts(16))
    assert batch.dense_macs == batch.pruned_macs + 3 * (executed * 2 - executed // 2)
    row = layer_rows(
        batch, LayerTimes({"dense": {small.MIDDLE: LayerTime(4.0)}, "pruned": {small.MIDDLE: LayerTime(2.0)}})
    )[1]
    assert (row.macs, row.executed_macs, row.theoretical_speedup) == (3 * executed // 2, 3 * executed, 4.0)
    assert row.cause == "written as grouped, 2.0x the planned MACs: chosen as its fastest form"


def test_a_busy_or_unsteady_machine_is_said_in_words() -> None:
    unsteady = {"pruned": Measurement("pruned", (0.001, 0.002, 0.003))}
    warnings = noise_warnings(unsteady, 99.0, ProfileOptions(threads=4096, iterations=10))
    for words in (
        "busy before measuring: load average 99.0",
        "4096 threads share",
        "50% of the median",
        "not settled within 120 s: after 3 runs of each the 95% interval of the latency is 1 to 3 ms, 100% of it",
    ):
        assert any(words in warning for warning in warnings), words
    assert noise_warnings({"pruned": Measurement("pruned", (0.001,) * 10)}, 0.0, ProfileOptions(iterations=10)) == []


def test_a_layer_that_lost_nothing_but_filters_is_pruned_and_explained() -> None:
    models = [
        ModelLayers((LayerInfo("a", "Conv", 1, 16, filters, 9000 * filters, 10**3),), count_macs(small.models()[0]), {})
        for filters in (16, 12)
    ]
    batch = Batch(Pair(None, small.models()[1], {"a": "a note"}), models[0], models[1], "cpu", 1, MACHINE)
    time = {"a": LayerTime(1.0)}
    (row,) = layer_rows(batch, LayerTimes({"dense": time, "pruned": time}))
    assert row.cause.startswith("12 filters on 16 channels: the fast kernels work on whole blocks")
    (row,) = layer_rows(batch)
    assert row.cause == "", "its note is on layers that are not pruned"


def test_the_environment_names_the_machine() -> None:
    environment = current_environment(3)
    assert environment.cpu
    assert environment.threads == 3
    assert environment.date.endswith("+00:00")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"schema_version": 1}', b"\xff"])
def test_a_damaged_profile_is_an_error_of_the_input(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"is no profile.*edgeprune profile"):
        load_profile_result(path)


def test_profiling_does_not_import_torch() -> None:
    code = "import sys, edgeprune.profiling.profiler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@dataclass(frozen=True)
class WithModules(Subject):
    """Loose files with the modules that they were made from."""

    own: Mapping[Any, Any] = field(default_factory=dict)

    def require_modules(self, target: str) -> None: ...

    def modules(self) -> dict[Any, Any]:
        return dict(self.own)


class TestTorch:
    """The torch target."""

    @pytest.fixture
    def modules(self) -> dict[str, Any]:
        return {"dense": small.module(0), "pruned": small.module(1)}

    def test_torch_modules_are_profiled_like_files(self, tmp_path: Path, modules: dict[str, Any]) -> None:
        dense, pruned = small.write_models(tmp_path)
        threads = modules["dense"].training, __import__("torch").get_num_threads()
        (result,) = profile_files(
            WithModules(pruned, dense, own=modules), ("torch-cpu",), replace(QUICK, threads=1)
        ).results
        assert (result.target, result.provider) == ("torch-cpu", "torch cpu")
        assert result.dense is not None
        assert result.realistic_speedup > 0
        assert (modules["dense"].training, __import__("torch").get_num_threads()) == threads

    def test_torch_runs_the_network_as_planned(self, tmp_path: Path, modules: dict[str, Any]) -> None:
        dense, pruned = small.write_models(tmp_path)
        record = small.lowering()
        small.write_lowering(tmp_path, record)
        plain = tmp_path / "plain.onnx"
        results = profile_files(
            WithModules(pruned, dense, plain, record, own=modules), ("cpu", "torch-cpu"), QUICK
        ).results
        forms = [next(layer for layer in result.layers if layer.name == small.MIDDLE) for result in results]
        assert [form.lowering for form in forms] == ["dense", "grouped"]
        assert [form.executed_macs // form.macs for form in forms] == [2, 1]
        assert results[0].theoretical_speedup == results[1].theoretical_speedup

    def test_the_runner_gives_outputs_and_times_of_modules(self) -> None:
        torch = pytest.importorskip("torch")
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.Conv2d(32, 32, 3))
        from edgeprune.runners.torch.runner import TorchRunner

        runner = TorchRunner(network, ("x",))
        x = np.ones((2, 3, 8, 8), np.float32)
        (output,) = runner.run({"x": x}).values()
        np.testing.assert_array_equal(output, network(torch.from_numpy(x)).detach().numpy())
        nodes = runner.profile_nodes({"x": x}, 3)
        assert [(node.name, node.op_type) for node in nodes] == [("0", "Conv2d"), ("1", "Conv2d")]
        assert all(node.mean_ms > 0 for node in nodes)
        with pytest.raises(InputError, match="torch cannot run the model on this input"):
            runner.run({"x": np.ones((2, 5, 8, 8), np.float32)})
        with pytest.raises(InputError, match="inputs y given; expected inputs x"):
            runner.run({"y": x})
        runner.close()
        with pytest.raises(ValueError, match="closed"):
            runner.run({"x": x})
