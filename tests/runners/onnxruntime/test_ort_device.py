"""ONNX Runtime with inputs and outputs on its device: really run on the processor, and on a pretended GPU."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
import small_bundle as small
from onnx import parser

from edgeprune.bundles.names import PROFILE
from edgeprune.cli import main
from edgeprune.errors import InputError
from edgeprune.runners import registry
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime import providers as ort_providers
from edgeprune.runners.onnxruntime.on_device import BoundRun, DeviceOrtRunner
from edgeprune.runners.onnxruntime.providers import CUDA
from edgeprune.runners.onnxruntime.runner import OrtRunner
from edgeprune.runners.registry import open_runner
from edgeprune.runners.target import OpenOptions, Source

CPU, TENSORRT = "CPUExecutionProvider", "TensorrtExecutionProvider"
CPU_SESSION = onnxruntime.InferenceSession


def images(count: int = 2, seed: int = 0) -> dict[str, Any]:
    shape = (count, 3, small.SIZE, small.SIZE)
    return {"input": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


class Gpu:
    """What the pretended GPU was asked for. The processor does its work."""

    def __init__(self) -> None:
        self.sessions: list[list[tuple[str, dict[str, str]]]] = []
        """The providers of each session, with their options."""
        self.devices: list[tuple[str, int]] = []
        """Where each value was placed."""
        self.calls: list[str] = []
        self.takes_nodes = True
        self.present = True
        """Whether the provider can start."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()

    class Session:
        def __init__(self, data: bytes, options: Any, providers: Any, enable_fallback: int) -> None:
            assert not enable_fallback, "a provider that fails would be replaced, and its error hidden"
            gpu.sessions.append(providers)
            self._names = [name for name, _ in providers]
            self._real = CPU_SESSION(data, options, providers=[CPU])

        def get_providers(self) -> list[str]:
            return self._names if gpu.present else [CPU]

        def get_provider_graph_assignment_info(self) -> list[Any]:
            node = SimpleNamespace(name="conv")
            taken = self._names[0] if gpu.takes_nodes else CPU
            return [SimpleNamespace(ep_name=taken, get_nodes=lambda: [node])]

        def io_binding(self) -> Any:
            binding = self._real.io_binding()
            for name in ("synchronize_inputs", "synchronize_outputs", "copy_outputs_to_cpu"):
                monkeypatch.setattr(binding, name, self._noted(name, getattr(binding, name)))
            return binding

        def run_with_iobinding(self, binding: Any) -> None:
            gpu.calls.append("run_with_iobinding")
            self._real.run_with_iobinding(binding)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def _noted(self, name: str, call: Any) -> Any:
            def noted() -> Any:
                gpu.calls.append(name)
                return call()

            return noted

    def placed(make: Any) -> Any:
        def on(*arguments: Any) -> Any:
            *values, device, number = arguments
            gpu.devices.append((device, number))
            return make(*values)

        return staticmethod(on)

    present = [TENSORRT, CUDA, CPU]
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: present)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcudnn.so.9: no such file"))
    for name in ("ortvalue_from_numpy", "ortvalue_from_shape_and_type"):
        monkeypatch.setattr(onnxruntime.OrtValue, name, placed(getattr(onnxruntime.OrtValue, name)))
    monkeypatch.setattr(ort_providers, "machine_has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(ort_providers, "_can_load", lambda library: True)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "before")  # so that what is set is undone
    return gpu


def test_a_bound_run_computes_what_a_plain_run_computes() -> None:
    for model in small.models():
        with DeviceOrtRunner(model) as runner:
            for feeds in (images(2), images(1), {"input": images(2)["input"].transpose(0, 1, 3, 2)}):
                expected = runner.run(feeds)
                bound = BoundRun(runner._session, feeds, expected, ("cpu", 0))
                bound.run()
                for output, wanted in zip(bound.copy_out(), expected.values(), strict=True):
                    assert np.array_equal(output, wanted)


def test_the_timed_call_waits_for_its_outputs_and_copies_nothing(gpu: Gpu) -> None:
    with open_runner("cuda", Source(small.models()[1])) as runner:  # type: ignore[arg-type]
        run = runner.prepared(images())
        gpu.calls.clear()
        run()
    assert gpu.calls == ["run_with_iobinding", "synchronize_outputs"]
    assert gpu.devices == [("cuda", 0)] * 2  # the input, and the output


def test_what_is_copied_in_is_what_the_next_run_computes_with() -> None:
    first, second = images(seed=1), images(seed=2)
    with DeviceOrtRunner(small.models()[1]) as runner:
        expected = [runner.run(feeds)["output"] for feeds in (first, second)]
        kept = first["input"].copy()
        bound = BoundRun(runner._session, first, {"output": expected[0]}, ("cpu", 0))
        bound._arrays = second
        bound.run()
        assert np.array_equal(bound.copy_out()[0], expected[0])  # nothing was copied yet
        bound.copy_in()
        bound.run()
        assert np.array_equal(bound.copy_out()[0], expected[1])
    assert np.array_equal(first["input"], kept)  # the caller's array is not the device's memory


def test_copies_are_timed_alone(gpu: Gpu) -> None:
    with DeviceOrtRunner(small.models()[1], target="cuda") as runner:
        gpu.calls.clear()
        copy_in, copy_out = runner.copy_times(images(), 4)
        with pytest.raises(InputError, match="--iterations 0"):
            runner.copy_times(images(), 0)
    assert min(copy_in, copy_out) > 0
    assert gpu.calls[:8] == [  # one run, so that there are outputs; then the copies, of which one does not count
        "synchronize_inputs",
        "run_with_iobinding",
        "synchronize_outputs",
        *["copy_outputs_to_cpu"] * 5,
    ]


def test_the_device_of_the_provider_is_that_of_the_tensors(gpu: Gpu) -> None:
    options = RunOptions(provider_options=(("device_id", "1"),))
    with DeviceOrtRunner(small.models()[1], options, target="tensorrt") as runner:
        runner.prepared(images())
    assert set(gpu.devices) == {("cuda", 1)}
    (providers,) = gpu.sessions
    assert [(name, given.get("device_id")) for name, given in providers] == [(TENSORRT, "1"), (CUDA, "1"), (CPU, None)]


def test_wrong_inputs_are_refused_before_they_are_bound() -> None:
    with DeviceOrtRunner(small.models()[1]) as runner:
        for feeds in ({}, {"input": np.zeros((1, 5, small.SIZE, small.SIZE), np.float32)}):
            with pytest.raises(InputError):
                runner.prepared(feeds)


@pytest.mark.parametrize(("precision", "switch"), [("fp32", "0"), ("tf32", "1"), ("fp16", "0")])
def test_tf32_is_a_switch_of_the_cuda_provider(gpu: Gpu, precision: Any, switch: str) -> None:
    open_runner("cuda", Source(small.models()[1]), OpenOptions(precision=precision)).close()
    assert gpu.sessions == [[(CUDA, {"use_tf32": switch}), (CPU, {})]]


def test_tf32_is_off_for_tensorrt_in_fp32_and_for_the_nodes_that_it_leaves_to_cuda(gpu: Gpu) -> None:
    for precision in ("int8", "fp32"):
        assert os.environ["NVIDIA_TF32_OVERRIDE"] == "before"
        open_runner("tensorrt", Source(small.models()[1]), OpenOptions(precision=precision)).close()  # type: ignore[arg-type]
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    int8, fp32 = gpu.sessions
    assert int8[0] == (TENSORRT, {"trt_int8_enable": "1"})
    assert fp32[:2] == [(TENSORRT, {}), (CUDA, {"use_tf32": "0"})]


def test_tf32_is_refused_where_the_environment_forbids_it_or_the_provider_has_no_switch(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.require("cuda", "tf32")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    with pytest.raises(InputError, match="NVIDIA_TF32_OVERRIDE=0 keeps NVIDIA's libraries from using TF32") as error:
        registry.require("cuda", "tf32")
    assert error.value.where == "target cuda"
    registry.require("cuda", "fp32")
    with pytest.raises(InputError, match="tf32 is for cuda, tensorrt-native, torch-cuda, torch-compile-cuda"):
        registry.require("tensorrt", "tf32")


def test_a_provider_that_takes_no_node_is_an_error(gpu: Gpu) -> None:
    gpu.takes_nodes = False
    with pytest.raises(InputError, match=f"{CUDA} cannot be used: it takes none of the model's nodes, {CPU} does"):
        OrtRunner(small.models()[1], target="cuda")


def test_a_library_that_cannot_be_loaded_is_named_and_not_printed(gpu: Gpu, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.present = False
    with pytest.raises(InputError, match=rf"fell back to {CPU} \(Failed to load libcudnn.so.9: no such file\)"):
        OrtRunner(small.models()[1], target="cuda")
    assert capsys.readouterr().out == ""


def test_a_provider_that_fails_while_it_loads_tells_its_own_error(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(session: Any, *rest: Any) -> None:
        raise RuntimeError("TensorRT EP failed to create engine")

    monkeypatch.setattr(onnxruntime, "InferenceSession", CPU_SESSION)
    monkeypatch.setattr(CPU_SESSION, "_create_inference_session", fail)
    with pytest.raises(InputError, match="cannot load it: TensorRT EP failed to create engine"):
        OrtRunner(small.models()[1], target="tensorrt")
    assert capsys.readouterr().out == ""


def test_a_provider_that_fails_in_a_run_is_not_replaced() -> None:
    """ONNX Runtime would open the session anew on another provider, and only print that it did."""
    with OrtRunner(small.models()[1]) as runner:
        assert not runner._session._enable_fallback


def test_openvino_takes_the_threads_and_the_precision_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    own, *others = ort_providers.providers("openvino", RunOptions(threads=3))
    assert (own[0], others) == ("OpenVINOExecutionProvider", [(CPU, {})])
    assert own[1]["device_type"] == "CPU"
    expected = {"INFERENCE_NUM_THREADS": "3", "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "f32"}
    assert json.loads(own[1]["load_config"]) == {"CPU": expected}
    half = ort_providers.providers("openvino", RunOptions(), "fp16")[0][1]
    assert json.loads(half["load_config"])["CPU"]["INFERENCE_PRECISION_HINT"] == "f16"


def test_options_that_are_given_win(monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunOptions(provider_options=(("use_tf32", "1"), ("prefer_nhwc", "1")))
    assert ort_providers.providers("cuda", run)[0] == (CUDA, {"use_tf32": "1", "prefer_nhwc": "1"})


def test_several_inputs_and_outputs_keep_their_names() -> None:
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[n,2] a, float[n,2] b) => (float[n,2] s, float[n,2] d) '
        "{ s = Add(a, b) d = Sub(a, b) }"
    )
    feeds = {"b": np.full((3, 2), 2, np.float32), "a": np.ones((3, 2), np.float32)}
    with DeviceOrtRunner(model) as runner:
        bound = runner._bound(feeds)
        total, difference = bound.copy_out()
    assert np.array_equal(total, np.full((3, 2), 3))
    assert np.array_equal(difference, np.full((3, 2), -1))


def test_a_profile_in_tf32_runs_the_fp32_files_and_tells_of_copies(gpu: Gpu, tmp_path: Path) -> None:
    bundle = small.write_bundle(tmp_path / "bundle", profiled=False)
    files = {path.name for path in bundle.iterdir()}
    flags = ["--target", "cuda", "--precision", "tf32", "--no-fresh-process", "--iterations", "3", "--warmup", "0"]
    assert main(["profile", str(bundle), *flags, "--quiet"]) == 0
    assert {path.name for path in bundle.iterdir()} == {*files, PROFILE}
    assert all(providers[0] == (CUDA, {"use_tf32": "1"}) for providers in gpu.sessions if providers[0][0] == CUDA)
    read = msgspec.json.decode((bundle / PROFILE).read_bytes())
    (result,) = read["results"]
    assert (result["precision"], result["provider"]) == ("tf32", CUDA)
    assert min(result["copy_in_ms"], result["copy_out_ms"]) > 0
    told = [(record["precision"], record["file"], record["tolerance"]) for record in read["precisions"]]
    assert told == [("tf32", "", 0.01)] * 2
