"""Networks in FP16 and INT8: what the conversion keeps, how far outputs move, and what that does to accuracy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import small_bundle as small
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.names import MODEL, PROFILE
from edgeprune.cli import main
from edgeprune.errors import GateError, InputError
from edgeprune.io.files import sha256_of
from edgeprune.onnx_files.graph import attributes
from edgeprune.onnx_files.model import load_model, save_onnx
from edgeprune.precision import formats
from edgeprune.precision.formats import PrecisionRecord, require_precise, tolerance
from edgeprune.precision.half import to_half
from edgeprune.precision.quantization import quantized_layers, to_int8
from edgeprune.profiling.precise_models import compare, is_converted, precise_models
from edgeprune.profiling.samples import load_samples
from edgeprune.profiling.setup import ProfileOptions
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner
from edgeprune.runners.registry import TARGETS
from edgeprune.tuning import timer
from edgeprune.tuning.tuner import ALL_DENSE

CHANNELS = 16
QUICK = ("--warmup", "1", "--iterations", "3", "--interval", "0", "--no-fresh-process", "--quiet")


def convolution(groups: int, *, head: bool = True) -> ModelProto:
    """Conv, ReLU, grouped Conv with a bias, added to its input; pooled and classified, or classified by a 1x1 Conv."""
    rng = np.random.default_rng(groups)
    shapes = {"first": (CHANNELS, 3, 3, 3), "second": (CHANNELS, CHANNELS // groups, 3, 3), "bias": (CHANNELS,)}
    shapes["last"] = (5, CHANNELS, 1, 1) if head else (5, CHANNELS)
    held = [numpy_helper.from_array((rng.standard_normal(s) / 4).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "second", "bias"], ["c"], "second", pads=[1, 1, 1, 1], group=groups),
        helper.make_node("Add", ["b", "c"], ["d"], "add"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
    ]
    if head:
        nodes += [
            helper.make_node("Conv", ["e", "last"], ["f"], "last"),
            helper.make_node("Flatten", ["f"], ["y"], "flatten"),
        ]
    else:
        nodes += [
            helper.make_node("Flatten", ["e"], ["f"], "flatten"),
            helper.make_node("Gemm", ["f", "last"], ["y"], "last", transB=1),
        ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])]
    graph = helper.make_graph(nodes, "network", inputs, outputs, held)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def images(count: int, seed: int = 0) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)}


def outputs(model: ModelProto, feeds: dict[str, Any]) -> Any:
    with OrtRunner(model, RunOptions(graph_optimization="basic")) as runner:
        (output,) = runner.run(feeds).values()
        return output


def int8(model: ModelProto) -> ModelProto:
    return to_int8(model, [images(16, seed) for seed in (1, 2)])


def symmetric(model: ModelProto) -> ModelProto:
    return to_int8(model, [images(16, seed) for seed in (1, 2)], symmetric=True)


CONVERSIONS: dict[str, Callable[[ModelProto], ModelProto]] = {"fp16": to_half, "int8": int8, "symmetric": symmetric}


@pytest.mark.parametrize("head", [True, False], ids=["1x1 head", "linear head"])
@pytest.mark.parametrize("groups", [1, 2, 4, CHANNELS])
@pytest.mark.parametrize("kind", CONVERSIONS)
def test_groups_names_and_outputs_survive(kind: str, groups: int, head: bool) -> None:
    model = convolution(groups, head=head)
    before = model.SerializeToString()
    converted = CONVERSIONS[kind](model)
    assert model.SerializeToString() == before
    nodes = {node.name: node for node in converted.graph.node}
    assert attributes(nodes["second"]).get("group", 1) == groups
    assert {"first", "second", "last"} <= set(nodes)
    # The last convolution stays as it is, where processors would have to give floats for bytes.
    assert quantized_layers(converted) == (0 if kind == "fp16" else 2 if kind == "int8" and head else 3)
    feeds = images(8)
    expected, got = outputs(model, feeds), outputs(converted, feeds)
    assert got.dtype == np.float32
    assert compare([expected], [got]).max_rel <= tolerance("fp16" if kind == "fp16" else "int8") / 2


def test_a_transposed_convolution_in_groups_stays_as_it_is() -> None:
    model, rng = convolution(4, head=False), np.random.default_rng(0)
    second = next(node for node in model.graph.node if node.name == "second")
    second.op_type = "ConvTranspose"
    weight = (rng.standard_normal((CHANNELS, CHANNELS // 4, 3, 3)) / 4).astype(np.float32)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(weight, "second"))
    converted = int8(model)
    assert quantized_layers(converted) == 2
    feeds = images(8)
    assert compare([outputs(model, feeds)], [outputs(converted, feeds)]).max_rel < tolerance("int8")


def test_weights_in_fp16_take_half_the_room_and_the_ends_stay_float32() -> None:
    converted = to_half(convolution(2))
    assert {tensor.data_type for tensor in converted.graph.initializer} == {TensorProto.FLOAT16}
    for value in (*converted.graph.input, *converted.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT


@pytest.mark.parametrize("head", [True, False], ids=["1x1 head", "linear head"])
def test_logits_beyond_the_calibrated_range_are_not_cut(head: bool) -> None:
    model = convolution(1, head=head)
    small_ones = {"x": images(16)["x"] / 4}
    converted = to_int8(model, [small_ones])
    assert all(node.op_type != "DequantizeLinear" or "y" not in node.output for node in converted.graph.node)
    # No input is larger than those that were seen, but all are as large.
    widest = np.abs(outputs(model, small_ones)).max()
    edge = {"x": np.sign(images(16)["x"]) * np.abs(small_ones["x"]).max()}
    assert np.abs(outputs(converted, edge)).max() > 1.2 * widest


def test_symmetric_activations_have_no_offset_and_only_inputs_of_layers_are_rounded() -> None:
    model = symmetric(convolution(4))
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    rounded = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(rounded) == 3  # the inputs of the three layers
    assert all(held[node.input[2]].dtype == np.int8 and not held[node.input[2]].any() for node in rounded)


def test_calibrating_with_nothing_or_an_old_model_is_refused() -> None:
    with pytest.raises(InputError, match="no inputs to calibrate with"):
        to_int8(convolution(1), [])
    model = convolution(1)
    model.opset_import[0].version = 11
    with pytest.raises(InputError, match="uses opset 11; expected 13 or later"):
        to_int8(model, [images(2)])


def test_a_device_without_the_workstation_packages_can_quantise(tmp_path: Path) -> None:
    save_onnx(convolution(2), tmp_path / "model.onnx")
    missing = ("torch", "torchvision", "sklearn", "scipy", "matplotlib", "onnxsim", "onnxscript", "PIL")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing})); import numpy as np\n"
        "from edgeprune.onnx_files.model import load_model; from edgeprune.precision.quantization import quantized_layers, to_int8\n"
        "path = list(sys.path); model = load_model('model.onnx')\n"
        "print(quantized_layers(to_int8(model, [{'x': np.ones((1, 3, 8, 8), np.float32)}])), sys.path == path)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "True"]


def test_what_is_not_finite_never_passes_as_close() -> None:
    good = np.ones((2, 3), np.float32)
    assert compare([good], [good]).max_rel == 0
    assert compare([good], [np.full((2, 3), np.nan, np.float32)]).max_rel == np.inf
    found = compare([np.eye(3, dtype=np.float32)], [np.eye(3, dtype=np.float32)[[0, 1, 0]]], np.array([0, 1, 0]))
    assert (found.agreement, found.top1, found.top1_fp32) == pytest.approx((200 / 3, 100, 200 / 3))
    assert compare([np.ones((2, 3, 4), np.float32)], [np.ones((2, 3, 4), np.float32)]).agreement is None


def test_a_network_outside_its_tolerance_fails_the_gate() -> None:
    record = PrecisionRecord("cpu", "pruned", "int8", 0.3, 0.15, False, 50.0, 8, "digits")
    require_precise([])
    with pytest.raises(
        GateError, match=r"pruned in int8 on cpu differs by 3.00e-01 of the output's range \(tolerance 0.15\)"
    ):
        require_precise([msgspec.structs.replace(record, passed=True), record])


class TestSamples:
    def test_random_inputs_do_for_times_and_warn(self) -> None:
        samples = load_samples(convolution(1), "", 0)
        assert samples.labels is None
        assert len({id(feeds) for feeds in (*samples.calibrate, *samples.compare)}) == len(samples.calibrate) + 1
        assert "must not be used" in samples.warnings("int8")[0]
        assert samples.warnings("fp16") == ()

    def test_own_inputs_come_from_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "inputs.npy"
        np.save(path, images(40)["x"])
        samples = load_samples(convolution(1), str(path), 0)
        assert [len(feeds["x"]) for feeds in samples.calibrate] == [32]
        assert samples.told == "inputs.npy"
        assert samples.warnings("int8") == ()
        np.save(path, np.zeros((4, 3, 9, 8), np.float32))
        with pytest.raises(InputError, match=r"holds float32 \(4, 3, 9, 8\); expected float32 \(N, 3, 8, 8\)"):
            load_samples(convolution(1), str(path), 0)
        np.save(path, np.full((4, 3, 8, 8), np.nan, np.float32))
        with pytest.raises(InputError, match="inputs.npy: holds values that are not finite"):
            load_samples(convolution(1), str(path), 0)

    def test_labelled_images_calibrate_and_compare_apart(self) -> None:
        pytest.importorskip("sklearn")
        model = small.models()[1]
        samples = load_samples(model, "digits", 0)
        assert samples.labels is not None
        assert len(samples.labels) == sum(len(feeds["input"]) for feeds in samples.compare) == 352
        assert sum(len(feeds["input"]) for feeds in samples.calibrate) == 256
        assert not np.array_equal(samples.calibrate[0]["input"], samples.compare[0]["input"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with a grouped and a depthwise convolution that tells digits apart, as ONNX."""
    torch = pytest.importorskip("torch")
    from edgeprune.datasets.images import load_data, normalised
    from edgeprune.exporters.to_onnx import to_onnx

    torch.manual_seed(0)
    nn = torch.nn
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 64, 1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    data = load_data("digits", split="train", input_shape=(1, 8, 8))
    x, labels = normalised(data.images, data), data.labels
    step = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(12):
        for chosen in torch.randperm(len(x)).split(128):
            step.zero_grad()
            nn.functional.cross_entropy(network(x[chosen]), labels[chosen]).backward()
            step.step()
    path = tmp_path_factory.mktemp("trained") / "digits.onnx"
    save_onnx(to_onnx(network.eval(), x[:2]), path)
    return path


@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if target.runs == "onnx"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_accuracy_stays_beside_that_of_fp32(target: str, precision: Any, trained: Path, tmp_path: Path) -> None:
    if not TARGETS[target].state().available:
        pytest.skip(f"{target} {TARGETS[target].state().reason}")
    if precision not in TARGETS[target].precisions:
        pytest.skip(f"{target} does not compute in {precision} here")
    samples = load_samples(load_model(trained), "digits", 0)
    options = ProfileOptions(precision=precision)
    made = precise_models(lambda _: {"pruned": trained}, {}, [target], options, samples, tmp_path)
    (record,) = made.records
    assert record.top1_fp32 is not None
    assert record.top1 is not None
    assert record.top1_fp32 > 95
    assert record.top1 >= record.top1_fp32 - 1
    assert record.passed
    assert record.agreement is not None
    assert record.agreement >= 98
    assert (record.n, record.data) == (352, "digits")
    if record.formats:
        assert list(record.formats.values()) == [precision] * 5
        assert made.warnings == ()
    if target in made.files and made.files[target]["pruned"].suffix == ".onnx":
        assert quantized_layers(load_model(made.files[target]["pruned"])) == (5 if precision == "int8" else 0)


def test_fp16_costs_no_accuracy(trained: Path) -> None:
    """On any processor: each operation rounds its result to FP16, whatever it computes in."""
    model = load_model(trained)
    samples = load_samples(model, "digits", 0)
    found = []
    for one in (model, to_half(model)):
        with OrtRunner(one, RunOptions(graph_optimization="disabled")) as runner:
            found.append(np.concatenate([runner.run(feeds)["output"] for feeds in samples.compare]))
    compared = compare([found[0]], [found[1]], samples.labels)
    assert 0 < compared.max_rel <= tolerance("fp16")
    assert compared.top1 is not None
    assert compared.top1_fp32 is not None
    assert compared.top1 >= compared.top1_fp32 - 0.5


@pytest.mark.parametrize("head", [True, False], ids=["1x1 head", "linear head"])
def test_layers_run_in_integers_and_reordering_for_them_is_nobodys_own_time(head: bool) -> None:
    with OrtRunner(int8(convolution(2, head=head))) as runner:
        times = runner.profile_nodes(images(2), 3)
        told = [(time.op_type, runner.original_node(time.name)) for time in times]
    assert {name for kind, name in told if kind == "Transpose"} == {""}
    kinds = {name: kind for kind, name in told}
    assert (kinds["first"], kinds["second"]) == ("QLinearConv", "QLinearConv")
    assert kinds["last"] == ("Conv" if head else "QGemm")


class TestProfile:
    def test_a_bundle_keeps_the_converted_files_beside_its_own(self, tmp_path: Path) -> None:
        bundle = small.write_bundle(tmp_path / "bundle")
        before = sha256_of(bundle / MODEL)
        assert main(["profile", str(bundle), "--precision", "int8", *QUICK]) == 0
        opened = open_bundle(bundle)
        opened.require_sound()
        assert sha256_of(bundle / MODEL) == before
        assert {name for name in opened.manifest.files if is_converted(name)} == {"model.int8.onnx", "dense.int8.onnx"}
        assert quantized_layers(load_model(bundle / "model.int8.onnx")) == 4
        read = msgspec.json.decode((bundle / PROFILE).read_bytes())
        (result,) = read["results"]
        assert result["precision"] == "int8"
        assert result["providers"]["CPUExecutionProvider"] > 0
        assert "calibrated on random inputs" in result["warnings"][0]
        # Theory is of the plan, whatever the files of this precision look like.
        assert result["theoretical_speedup"] > 1
        assert [layer["name"] for layer in result["layers"]] == [small.STEM, small.MIDDLE, small.LAST, small.HEAD]
        assert all(layer["pruned_ms"] > 0 for layer in result["layers"])
        weights, values = 10 * small.CHANNELS, small.CHANNELS + 10
        assert result["layers"][-1]["bytes_moved"] == weights + values  # a byte each
        assert {(record["network"], record["file"]) for record in read["precisions"]} == {
            ("dense", "dense.int8.onnx"),
            ("pruned", "model.int8.onnx"),
        }

    def test_tuning_removes_what_was_made_of_the_former_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def dense_is_fastest(_: Any, keys: Mapping[str, str], *rest: Any) -> dict[str, float]:
            return {name: 1.0 if name == ALL_DENSE else 2.0 for name in keys}

        monkeypatch.setattr(timer.Timer, "times", dense_is_fastest)
        monkeypatch.setattr(timer, "RUNS", 1)
        bundle = small.write_bundle(tmp_path / "bundle", profiled=False)
        assert main(["profile", str(bundle), "--precision", "int8", "--no-per-layer", *QUICK]) == 0
        assert main(["tune", str(bundle), "--no-cache", "--quiet"]) == 0
        assert not any(is_converted(name) for name in open_bundle(bundle).manifest.files)

    def test_outside_the_tolerance_nothing_is_timed_and_the_gate_fails(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(formats._TOLERANCES, "int8", 1e-9)
        bundle = small.write_bundle(tmp_path / "bundle", profiled=False)
        assert main(["profile", str(bundle), "--precision", "int8", "--no-per-layer", *QUICK]) == 3
        assert "parity failed: dense in int8 on cpu differs by" in capsys.readouterr().err
        assert not (bundle / PROFILE).exists()

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (("--target", "torch-cpu", "--precision", "int8"), "torch-cpu: does not compute in int8 here"),
            (("--data", "digits"), "--data is for other precisions"),
            (("--precision", "int8", "--data", "nothing.npy"), "nothing.npy: cannot be read"),
            (("--precision", "int8", "--data", "digit"), "unknown data source 'digit'"),
        ],
    )
    def test_what_cannot_be_done_is_refused_first(
        self, flags: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if "torch-cpu" in flags:
            pytest.importorskip("torch")
        bundle = small.write_bundle(tmp_path / "bundle", profiled=False)
        assert main(["profile", str(bundle), *flags, *QUICK]) == 1
        assert words in capsys.readouterr().err
        assert not (bundle / PROFILE).exists()
