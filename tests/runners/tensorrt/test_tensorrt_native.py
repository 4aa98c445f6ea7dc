"""The runner of TensorRT itself: on a pretended GPU everywhere, and on a real one where there is one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_cuda
import fake_tensorrt
import numpy as np
import pytest
import small_bundle
from onnx import ModelProto, parser
from published_bindings import VERSIONS

from edgeprune.errors import InputError
from edgeprune.io import progress
from edgeprune.onnx_files.model import load_model, save_onnx
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner
from edgeprune.runners.tensorrt import runner as tensorrt_native
from edgeprune.runners.tensorrt.batch_range import BatchRange
from edgeprune.runners.tensorrt.runner import TARGET, TensorrtRunner, open_runner, state

# What imports TensorRT or CUDA, and so has to be imported again for another machine.
BOUND = ("api", "session", "cuda_memory")
X = np.random.default_rng(1).standard_normal((4, 3, 12, 12)).astype(np.float32)


@dataclass
class FakeMachine:
    """A pretended GPU with TensorRT on it."""

    gpu: fake_cuda.FakeGpu
    tensorrt: ModuleType
    patch: pytest.MonkeyPatch

    @property
    def state(self) -> fake_tensorrt.FakeState:
        return self.tensorrt.state

    def become(self, version: str, gpu: fake_cuda.FakeGpu | None = None) -> FakeMachine:
        """Another GPU or version in this machine, from now on."""
        return fake_machine(self.patch, version, gpu or self.gpu)

    def leaks(self) -> list[Any]:
        gpu = self.gpu
        return [gpu.device, gpu.pinned, gpu.streams, gpu.events, self.state.leaked()]


NO_LEAKS: list[Any] = [{}, {}, {}, {}, 0]


def fake_machine(patch: pytest.MonkeyPatch, version: str, gpu: fake_cuda.FakeGpu) -> FakeMachine:
    machine = FakeMachine(gpu, fake_tensorrt.tensorrt_module(gpu, version), patch)
    runtime = fake_cuda.cuda_module(gpu)
    package, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    vars(bindings)["runtime"] = runtime
    modules = {"cuda": package, "cuda.bindings": bindings, "cuda.bindings.runtime": runtime}
    for name, module in {**modules, "tensorrt": machine.tensorrt}.items():
        patch.setitem(sys.modules, name, module)
    for name in BOUND:
        patch.delitem(sys.modules, f"edgeprune.runners.tensorrt.{name}", raising=False)
    return machine


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, in which edgeprune keeps a key and what builds have measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgeprune"


@contextmanager
def pretended(version: str) -> Iterator[FakeMachine]:
    with pytest.MonkeyPatch.context() as patch:
        yield fake_machine(patch, version, fake_cuda.FakeGpu())
        for name in BOUND:  # what was imported on this machine must not be found by a later test
            sys.modules.pop(f"edgeprune.runners.tensorrt.{name}", None)


@pytest.fixture(params=VERSIONS)
def fake(request: pytest.FixtureRequest) -> Iterator[FakeMachine]:
    with pretended(request.param) as machine:
        yield machine


@pytest.fixture(params=[*VERSIONS, "real"])
def machine(request: pytest.FixtureRequest) -> Iterator[FakeMachine | None]:
    """Each pretended machine, and the real one if TensorRT can be used on it."""
    if request.param == "real":
        here = state()
        if not here.available:
            pytest.skip(f"no TensorRT on a GPU here: {here.reason}")
        yield None
    else:
        with pretended(request.param) as machine:
            yield machine


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """A dense network and the same with a Gather and a grouped layer, with a dynamic batch."""
    return written(tmp_path, *small_bundle.models())


def written(folder: Path, dense: ModelProto, pruned: ModelProto) -> tuple[Path, Path]:
    paths = folder / "dense.onnx", folder / "model.onnx"
    for path, model in zip(paths, (dense, pruned), strict=True):
        save_onnx(model, path)
    return paths


def opened(model: Path, **options: Any) -> TensorrtRunner:
    return open_runner(model, RunOptions(), **options)


def feeds(size: int = 2) -> dict[str, Any]:
    return {"input": X[:size]}


def by_onnx_runtime(model: Path, size: int = 2) -> Any:
    with OrtRunner(model) as runner:
        return next(iter(runner.run(feeds(size)).values()))


def notes(patch: pytest.MonkeyPatch) -> list[str]:
    heard: list[str] = []
    patch.setattr(progress, "note", heard.append)
    return heard


# On every machine, a real one too.


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("tf32", 2e-2), ("fp16", 2e-2)])
def test_it_computes_what_onnx_runtime_computes(
    machine: FakeMachine | None, models: tuple[Path, Path], precision: str, tolerance: float
) -> None:
    for model in models:
        expected = by_onnx_runtime(model)
        with opened(model, precision=precision) as runner:
            assert (runner.target, runner.input_names) == (TARGET, ("input",))
            assert runner.provider.startswith("TensorRT 1")
            (output,) = runner.run(feeds()).values()
        assert output.dtype == np.float32
        np.testing.assert_allclose(output, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def test_each_batch_size_gets_an_engine_and_results_stay_when_the_next_run_begins(
    machine: FakeMachine | None, models: tuple[Path, Path]
) -> None:
    with opened(models[1]) as runner:
        taken = {size: next(iter(runner.run(feeds(size)).values())) for size in (2, 3, 2)}
    for size, output in taken.items():
        np.testing.assert_allclose(output, by_onnx_runtime(models[1], size), rtol=1e-3, atol=1e-3)


def test_one_engine_takes_all_sizes_of_its_range_and_no_other(
    machine: FakeMachine | None, models: tuple[Path, Path]
) -> None:
    with opened(models[1], batches=BatchRange(1, 2, 3)) as runner:
        for size in (1, 3):
            (output,) = runner.run(feeds(size)).values()
            np.testing.assert_allclose(output, by_onnx_runtime(models[1], size), rtol=1e-3, atol=1e-3)
        with pytest.raises(InputError, match="a batch of 4; expected batch size 1 to 3, best at 2"):
            runner.run(feeds(4))
    if machine is not None:
        assert [build["shapes"]["input"] for build in machine.state.builds] == [[[n, 3, 12, 12] for n in (1, 2, 3)]]


def test_copies_and_computing_are_timed_apart(machine: FakeMachine | None, models: tuple[Path, Path]) -> None:
    with opened(models[1]) as runner:
        runner.prepared(feeds())()
        copy_in, compute, copy_out = runner.timed_run(feeds())
        medians = runner.copy_times(feeds(), 3)
        with pytest.raises(InputError, match="--iterations 0"):
            runner.copy_times(feeds(), 0)
    assert min(copy_in, compute, copy_out, *medians) > 0
    if machine is not None:
        assert copy_in == copy_out == medians[0] == medians[1] == fake_cuda.MS_A_COPY
        assert compute > fake_tensorrt.MS_A_LAYER


def test_the_time_of_every_convolution_is_put_down_to_its_node(
    machine: FakeMachine | None, models: tuple[Path, Path]
) -> None:
    model = load_model(models[1])
    with opened(models[1]) as runner:
        times = runner.profile_nodes(feeds(), 3, warmup=1)
        originals = [runner.original_node(time.name) for time in times]
        with pytest.raises(InputError, match="--iterations 0"):
            runner.profile_nodes(feeds(), 0)
        provider = runner.provider
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert originals.count(node.name) == 1
    assert all(time.mean_ms >= 0 and time.provider == provider for time in times)
    if machine is not None:
        kinds = {time.name: time.op_type for time in times}
        assert (originals[0], times[0].op_type) == ("", "Reformat")
        assert {"Conv", "Gather", "Gemm"} <= set(kinds.values())
        assert all(time.mean_ms == fake_tensorrt.MS_A_LAYER for time in times)


@pytest.mark.parametrize(
    ("fed", "words"),
    [
        ({}, "input 'input' is missing"),
        ({"input": X.astype(np.float64)}, "is float64; expected float32"),
        ({"input": X[:, :2]}, "has shape"),
        ({"other": X}, "unknown input 'other'"),
    ],
)
def test_wrong_inputs_are_named_before_anything_is_built(
    machine: FakeMachine | None, models: tuple[Path, Path], fed: dict[str, Any], words: str
) -> None:
    with opened(models[0]) as runner, pytest.raises(InputError) as error:
        runner.run(fed)
    assert words in str(error.value)
    if machine is not None:
        assert machine.state.builds == []


def test_an_engine_is_saved_with_what_it_is_for_and_used_again(
    machine: FakeMachine | None, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines, heard = tmp_path / "engines", notes(monkeypatch)
    for _ in range(2):
        with opened(models[1], precision="fp16", engines=engines) as runner:
            runner.run(feeds())
    record = json.loads((engines / "model-fp16-batch-2.plan.json").read_text())["built_for"]
    assert record["precision"] == "fp16"
    assert record["batches"] == {"least": 2, "best": 2, "most": 2}
    assert f"TensorRT {record['tensorrt']}" == runner.provider
    assert sorted(path.name for path in engines.iterdir()) == [
        "model-fp16-batch-2.plan",
        "model-fp16-batch-2.plan.json",
    ]
    assert len([text for text in heard if text.startswith("building an engine of model")]) == 1
    if machine is not None:
        assert (record["gpu"], record["compute_capability"]) == ("Fake GPU", "9.0")


@pytest.mark.parametrize("version", VERSIONS)
def test_int8_is_for_models_that_were_quantised(version: str, models: tuple[Path, Path], tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 20]> g (float[b,3,12,12] input) => (float[b,3,12,12] y)
        <float scale = {0.05}, int8 zero = {0}>
        { q = QuantizeLinear(input, scale, zero) d = DequantizeLinear(q, scale, zero) y = Relu(d) }"""
    quantised = tmp_path / "quantised.onnx"
    save_onnx(parser.parse_model(text), quantised)
    with pretended(version):
        with opened(quantised, precision="int8") as runner:
            assert np.array_equal(runner.run(feeds())["y"], by_onnx_runtime(quantised))
        with pytest.raises(InputError, match="is not quantised; expected QuantizeLinear"):
            opened(models[0], precision="int8")


# On the pretended machine, which can be broken.


def test_nothing_is_left_on_the_gpu(fake: FakeMachine, models: tuple[Path, Path]) -> None:
    runner = opened(models[1])
    for size in (1, 2):
        runner.profile_nodes(feeds(size), 1)
    assert fake.leaks() != NO_LEAKS
    runner.close()
    runner.close()
    assert fake.leaks() == NO_LEAKS
    for using in (lambda: runner.run(feeds()), lambda: runner.original_node("x")):
        with pytest.raises(ValueError, match="closed"):
            using()


@pytest.mark.parametrize(
    "function",
    ["cudaStreamCreateWithFlags", "cudaEventCreate", "cudaMallocHost", "cudaMalloc", "cudaMemcpyAsync"],
)
def test_nothing_is_left_on_the_gpu_where_opening_fails(
    fake: FakeMachine, models: tuple[Path, Path], function: str
) -> None:
    fake.gpu.failing = {function: "cudaErrorIllegalAddress"}
    with opened(models[0]) as runner, pytest.raises(InputError):
        runner.run(feeds())
    assert fake.leaks() == NO_LEAKS


def test_a_clock_that_cannot_be_made_whole_is_not_kept(
    fake: FakeMachine, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = sys.modules["cuda.bindings.runtime"].cudaEventCreate, []

    def third_fails() -> Any:
        made.append(None)
        if len(made) == 3:
            fake.gpu.failing = {"cudaEventCreate": "cudaErrorInvalidValue"}
        return real()

    monkeypatch.setattr(sys.modules["cuda.bindings.runtime"], "cudaEventCreate", third_fails)
    with opened(models[0]) as runner, pytest.raises(InputError, match="making a clock on the GPU"):
        runner.run(feeds())
    assert fake.leaks() == NO_LEAKS


def test_memory_that_cannot_be_placed_is_not_taken_for_placed_in_the_next_run(
    fake: FakeMachine, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(models[0]) as runner:
        runner.run(feeds(1))
        context = type(runner._session._context)  # type: ignore[union-attr]
        with monkeypatch.context() as patch:
            patch.setattr(context, "set_address", lambda *_: (_ for _ in ()).throw(InputError("placing failed")))
            with pytest.raises(InputError, match="placing failed"):
                runner._session._make_room({"input": (1, 3, 12, 12)})  # type: ignore[union-attr]
        (output,) = runner.run(feeds(1)).values()
        np.testing.assert_allclose(output, by_onnx_runtime(models[0], 1), rtol=1e-3, atol=1e-3)


def test_the_provider_says_for_which_batch_sizes_the_engine_was_built(
    fake: FakeMachine, models: tuple[Path, Path]
) -> None:
    version = f"TensorRT {fake.tensorrt.__version__}"
    with opened(models[0]) as runner:
        assert runner.provider == version
        for size in (1, 3):
            runner.run(feeds(size))
            assert runner.provider == f"{version}, engine for batch {size}"
            assert list(runner.providers()) == [runner.provider]
    with opened(models[0], batches=BatchRange(1, 2, 4)) as runner:
        assert runner.provider == f"{version}, engine for batch 1 to 4, best at 2"


def test_two_models_run_in_turn_and_share_nothing(fake: FakeMachine, models: tuple[Path, Path]) -> None:
    with opened(models[0]) as dense, opened(models[1]) as pruned:
        for size in (1, 2):
            runs = [runner.prepared(feeds(size)) for runner in (dense, pruned)]
            for run in (*runs, *reversed(runs)):
                run()
            for runner, model in ((dense, models[0]), (pruned, models[1])):
                (output,) = runner.run(feeds(size)).values()
                np.testing.assert_allclose(output, by_onnx_runtime(model, size), rtol=1e-3, atol=1e-3)
    assert fake.leaks() == NO_LEAKS


def test_a_fixed_batch_is_built_when_the_runner_is_opened(fake: FakeMachine, tmp_path: Path) -> None:
    dense, _ = written(tmp_path, *small_bundle.models(batch=2))
    with opened(dense, batches=BatchRange(1, 4, 8)) as runner:
        assert len(fake.state.builds) == 1
        assert next(iter(runner.run(feeds()).values())).shape == (2, small_bundle.CLASSES)
        with pytest.raises(InputError, match="has shape"):
            runner.run(feeds(3))


def test_tf32_is_a_flag_of_the_builder_and_fp16_another_network(fake: FakeMachine, models: tuple[Path, Path]) -> None:
    for precision in ("fp32", "tf32", "fp16"):
        with opened(models[0], precision=precision, batches=BatchRange.only(1)):
            pass
    built = [(build["tf32"], build["half"]) for build in fake.state.builds]
    assert built == [(False, False), (True, False), (False, True)]


def test_an_engine_for_another_gpu_version_or_model_is_built_again_and_says_so(
    fake: FakeMachine, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines, heard = tmp_path / "engines", notes(monkeypatch)
    version = fake.tensorrt.__version__

    def run() -> str:
        """What is said of the saved engine."""
        heard.clear()
        with opened(models[1], engines=engines) as runner:
            (output,) = runner.run(feeds()).values()
        np.testing.assert_allclose(output, by_onnx_runtime(models[1]), rtol=1e-3, atol=1e-3)
        return next((text for text in heard if "building it again" in text), "")

    assert run() == ""
    fake = fake.become(version, fake_cuda.FakeGpu("Fake L4", (8, 9)))
    assert "is for GPU Fake GPU, not Fake L4; is for compute capability 9.0, not 8.9" in run()
    fake.become("11.9.0.1", fake.gpu)
    assert f"is for TensorRT {version}, not 11.9.0.1" in run()
    assert run() == ""
    pruned = load_model(models[1])
    pruned.graph.initializer[0].raw_data = bytes(len(pruned.graph.initializer[0].raw_data))
    save_onnx(pruned, models[1])
    assert "is for another ONNX model" in run()
    plan = engines / "model-fp32-batch-2.plan"
    plan.write_bytes(plan.read_bytes()[:-1])
    assert "is not as this user wrote it" in run()
    plan.with_name(plan.name + ".json").write_text("{")
    assert "cannot be read" in run()
    assert run() == ""


def test_an_engine_of_another_user_is_never_loaded(
    fake: FakeMachine, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> int:
        with opened(models[0], engines=tmp_path / "engines", batches=BatchRange.only(2)):
            return len(fake.state.builds)

    heard = notes(monkeypatch)
    assert [run(), run()] == [1, 1]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert [run(), run()] == [2, 2]
    assert any("the saved engine is not as this user wrote it: building it again" in text for text in heard)
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert [run(), run()] == [3, 4]  # without a key there is nothing to know it by


def test_the_key_is_for_the_user_alone(fake: FakeMachine, models: tuple[Path, Path], own_cache: Path) -> None:
    with opened(models[0], engines=own_cache.parent, batches=BatchRange.only(2)):
        assert (own_cache / "engines.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("key", [b"", b"short"])
def test_a_key_that_was_not_written_to_its_end_seals_nothing(
    fake: FakeMachine, models: tuple[Path, Path], tmp_path: Path, own_cache: Path, key: bytes
) -> None:
    """Anybody could guess it, and so make an engine that is loaded."""
    own_cache.mkdir(parents=True)
    (own_cache / "engines.key").write_bytes(key)
    for builds in (1, 2):
        with opened(models[0], engines=tmp_path / "engines", batches=BatchRange.only(2)):
            assert len(fake.state.builds) == builds


def test_an_engine_that_tensorrt_refuses_all_the_same_is_built_again(
    fake: FakeMachine, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = notes(monkeypatch)
    for builds in (1, 2):
        with opened(models[0], engines=tmp_path / "engines", batches=BatchRange.only(2)):
            assert len(fake.state.builds) == builds
        fake.state.refused = True
    assert any("Serialization assertion plan->header failed: building it again" in text for text in heard)


def test_later_builds_know_what_earlier_ones_timed(
    fake: FakeMachine, models: tuple[Path, Path], own_cache: Path
) -> None:
    def build(size: int) -> int:
        with opened(models[0], batches=BatchRange.only(size)):
            return int(fake.state.builds[-1]["timed"])

    assert build(1) > 0
    assert build(2) == 0
    (own_cache / "tensorrt-timing.cache").write_bytes(b"damaged")
    assert build(3) > 0
    fake = fake.become(fake.tensorrt.__version__, fake_cuda.FakeGpu("Fake L4"))
    assert build(4) > 0


@pytest.mark.parametrize(
    ("package", "error", "words"),
    [
        ("tensorrt", None, "the package tensorrt is not installed; expected it and the libraries that it loads; pip"),
        (
            "tensorrt",
            ImportError("libnvinfer.so.11: cannot open shared object file"),
            "the package tensorrt is installed, but cannot be loaded (libnvinfer.so.11: cannot open",
        ),
        ("tensorrt", OSError("libnvinfer.so.11: too old"), "cannot be loaded (libnvinfer.so.11: too old)"),
        ("cuda.bindings.runtime", None, "pip install cuda-bindings"),
        ("cuda.bindings.runtime", ImportError("libcuda.so.1: no such file"), "the package cuda is installed, but"),
    ],
)
def test_a_missing_package_or_library_is_named(
    fake: FakeMachine,
    models: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    error: Exception | None,
    words: str,
) -> None:
    original = tensorrt_native.importlib.import_module

    def missing(name: str) -> Any:
        if name == package:
            raise error or ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
        return original(name)

    monkeypatch.setattr(tensorrt_native.importlib, "import_module", missing)
    with pytest.raises(InputError) as raised:
        opened(models[0])
    assert words in str(raised.value)
    here = state()
    assert not here.available
    assert here.reason.startswith(f"the package {package.partition('.')[0]} is ")


def broken(gpu: fake_cuda.FakeGpu, **changes: Any) -> None:
    for name, value in changes.items():
        setattr(gpu, name, value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"driver": False}, "no NVIDIA GPU can be used: CUDA driver version is insufficient"),
        ({"count": 0}, "no NVIDIA GPU can be used: cudaErrorNoDevice"),
        ({"failing": {"cudaGetDeviceProperties": "cudaErrorInvalidValue"}}, "CUDA failed while asking for the device"),
    ],
)
def test_a_machine_without_a_usable_gpu_is_an_error_that_says_so(
    fake: FakeMachine, models: tuple[Path, Path], changes: dict[str, Any], words: str
) -> None:
    assert state().available
    assert state().reason == f"TensorRT {fake.tensorrt.__version__} on Fake GPU"
    broken(fake.gpu, **changes)
    with pytest.raises(InputError) as error:
        opened(models[0])
    assert words in str(error.value)
    assert not state().available
    assert words in state().reason


def test_a_tensorrt_that_is_too_old_is_refused(fake: FakeMachine, models: tuple[Path, Path]) -> None:
    fake.become("8.6.1")
    with pytest.raises(InputError, match=r"TensorRT 8\.6\.1 is installed; expected TensorRT 10 or later"):
        opened(models[0])


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (500, "out of memory while making room to run the model: Error Code 2: OutOfMemory"),
        (2_000, "out of memory while making room for a tensor of 0.0 MB: 0 of 0 MB are free"),
        (1_000 + X[:2].nbytes + 1, "out of memory while making room for a tensor"),  # the output has no room
    ],
)
def test_a_gpu_that_is_out_of_memory_says_what_to_do_and_keeps_nothing(
    fake: FakeMachine, models: tuple[Path, Path], memory: int, words: str
) -> None:
    fake.gpu.memory = memory
    with opened(models[0]) as runner:
        with pytest.raises(InputError) as error:
            runner.run(feeds())
        assert words in str(error.value)
        assert "choose a smaller --batch-size" in str(error.value)
        del error
        assert (fake.gpu.device, fake.gpu.pinned) == ({}, {})
        fake.gpu.memory = 1 << 30
        assert runner.run(feeds())  # with room again, it works


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Error Code 10: Could not find any implementation for node conv", "Could not find any implementation for"),
        (
            "Requested amount of GPU memory could not be allocated: out of memory",
            "the GPU is out of memory while build",
        ),
    ],
)
def test_a_build_that_fails_tells_tensorrts_own_words(
    fake: FakeMachine, models: tuple[Path, Path], text: str, words: str
) -> None:
    with opened(models[0]) as runner:
        fake.state.build_error = "another error, of an earlier build"
        with pytest.raises(InputError, match="another error"):
            runner.run(feeds())
        fake.state.build_error = text
        with pytest.raises(InputError) as error:
            runner.run(feeds())
    assert words in str(error.value)
    assert "no interest" not in str(error.value)


def test_an_operation_that_tensorrt_lacks_is_named(fake: FakeMachine, models: tuple[Path, Path]) -> None:
    fake.state.unsupported = {"Gather"}
    with opened(models[1]) as runner, pytest.raises(InputError) as error:
        runner.run(feeds())
    gather = next(node for node in load_model(models[1]).graph.node if node.op_type == "Gather")
    assert f"cannot take the model at node {gather.name!r} (Gather): Plugin not found" in str(error.value)
    assert "--target tensorrt" in str(error.value)


@pytest.mark.parametrize(
    "function",
    ["cudaMalloc", "cudaMallocHost", "cudaMemcpyAsync", "cudaStreamCreateWithFlags", "cudaStreamSynchronize"],
)
def test_a_failure_of_cuda_is_an_error_of_the_input(
    fake: FakeMachine, models: tuple[Path, Path], function: str
) -> None:
    fake.gpu.failing = {function: "cudaErrorIllegalAddress"}
    with opened(models[0]) as runner, pytest.raises(InputError, match="CUDA failed while .*cudaErrorIllegalAddress"):
        runner.run(feeds())


def test_a_run_that_fails_is_an_error_of_the_input(fake: FakeMachine, models: tuple[Path, Path]) -> None:
    with opened(models[0]) as runner:
        runner.run(feeds())
        fake.state.run_error = "Error Code 1: Cask (Cask convolution execution)"
        with pytest.raises(InputError, match="failed while running the model: Error Code 1: Cask"):
            runner.run(feeds())


def test_an_engine_refuses_shapes_that_it_was_not_built_for(fake: FakeMachine, models: tuple[Path, Path]) -> None:
    from edgeprune.runners.tensorrt.api import Engine, build_plan

    plan, _ = build_plan(models[0].read_bytes(), BatchRange(1, 2, 3), tf32=False)
    context = Engine(plan).context()
    context.set_shape("input", (3, 3, 12, 12))
    with pytest.raises(InputError, match=r"giving input 'input' the shape \(4, 3, 12, 12\): Set dimension is outside"):
        context.set_shape("input", (4, 3, 12, 12))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"precision": "fp8"},
            "unknown precision of target tensorrt-native 'fp8'; expected one of fp16, fp32, int8, tf32",
        ),
        ({"batches": BatchRange(2, 1, 4)}, "batch sizes from 2 to 4, best at 1; expected 1 <= least <= best <= most"),
        ({"options": RunOptions(provider_options=(("trt_fp16_enable", "1"),))}, "provider options trt_fp16_enable"),
        ({"options": RunOptions(threads=0)}, "--threads 0"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_imported(
    models: tuple[Path, Path], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as error:
        TensorrtRunner(models[0], **options)
    assert words in str(error.value)


def test_models_whose_sizes_are_not_known_are_refused(fake: FakeMachine, tmp_path: Path) -> None:
    text = '<ir_version: 9, opset_import: ["" : 20]> g (float[b,c] x, float[b,2] z) => (float[b,c] y) { y = Relu(x) }'
    path = tmp_path / "m.onnx"
    save_onnx(parser.parse_model(text), path)
    with pytest.raises(InputError, match=r"input 'x' has a dynamic axis 1 \(c\)"):
        opened(path)
    text = '<ir_version: 9, opset_import: ["" : 20]> g (float[b,2] x, float[c,2] z) => (float[b,2] y) { y = Relu(x) }'
    save_onnx(parser.parse_model(text), path)
    with opened(path) as runner, pytest.raises(InputError, match=r"the inputs have batch sizes \[1, 2\]"):
        runner.run({"x": np.zeros((1, 2), np.float32), "z": np.zeros((2, 2), np.float32)})
