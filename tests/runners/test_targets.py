"""Every target: it runs a network as ONNX Runtime's CPU provider does, or says what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small_bundle as small
from onnx import parser
from places import SUPPORT

from edgeprune.devices import this_machine
from edgeprune.devices.this_machine import NVIDIA_DRIVER
from edgeprune.errors import InputError
from edgeprune.exporters.openvino.package import import_openvino
from edgeprune.runners import registry
from edgeprune.runners import target as target_module
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime import providers as ort_providers
from edgeprune.runners.onnxruntime import runner as ort
from edgeprune.runners.registry import TARGETS, open_runner
from edgeprune.runners.target import OpenOptions, Source
from edgeprune.runners.torch import targets as torch_targets

AS_CLOSE = 1e-4
"""Of the output's range."""


@pytest.fixture(scope="module")
def onnx_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Dense and grouped."""
    return small.write_models(tmp_path_factory.mktemp("small"))


def images(count: int, seed: int = 0) -> dict[str, Any]:
    shape = (count, 3, small.SIZE, small.SIZE)
    return {"input": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def reference(feeds: dict[str, Any]) -> Any:
    with ort.OrtRunner(small.models()[1]) as runner:
        return runner.run(feeds)["output"]


@pytest.fixture(scope="module", params=TARGETS)
def present(request: pytest.FixtureRequest, onnx_files: tuple[Path, Path]) -> str:
    """A target of this machine; where there is none, the error must say so before the test is skipped."""
    target = request.param
    if target == "ncnn":
        pytest.skip("ncnn has no Gather, which the small network has: see tests/runners/ncnn")
    state = TARGETS[target].state()
    if not state.available:
        with pytest.raises(InputError) as error:
            open_runner(target, Source(onnx_files[1]))
        assert state.reason in str(error.value)
        assert f"target {target}" in str(error.value)
        pytest.skip(f"{target} {state.reason}")
    return target


@pytest.fixture(scope="module")
def runner(present: str, onnx_files: tuple[Path, Path]) -> Iterator[Any]:
    """The grouped network on the target; compiling it takes seconds, so that the tests share it."""
    held = small.module(1) if TARGETS[present].runs == "module" else None
    opened = open_runner(present, Source(onnx_files[1], held, ("input",)))
    yield opened
    opened.close()
    opened.close()
    with pytest.raises(ValueError, match="closed"):
        opened.run(images(2))


def test_outputs_are_those_of_onnx_runtime_on_the_processor(present: str, runner: Any) -> None:
    for batch in (2,) if "compile" in present else (2, 1, 2):  # in turn, with other shapes between
        feeds = images(batch)
        expected = reference(feeds)
        (output,) = runner.run(feeds).values()
        assert output.dtype == np.float32
        assert np.abs(output - expected).max() <= AS_CLOSE * np.abs(expected).max()


def test_the_timed_call_computes_the_same_and_tells_who_ran_it(present: str, runner: Any) -> None:
    feeds = images(2)
    run = runner.prepared(feeds)
    for _ in range(2):
        run()
    expected = reference(feeds)
    np.testing.assert_allclose(next(iter(runner.run(feeds).values())), expected, atol=AS_CLOSE * np.abs(expected).max())
    assert runner.target == present
    assert runner.provider.startswith(TARGETS[present].state().provider)  # behind it, TensorRT tells of its engine
    counted = runner.providers()
    assert counted.get(runner.provider, 0) >= 1
    assert all(count >= 1 for count in counted.values())


def test_layers_have_times_under_their_names_where_the_target_tells_them(present: str, runner: Any) -> None:
    if TARGETS[present].runs == "module":
        pytest.skip("modules have names of their own")
    times = runner.profile_nodes(images(2), 3)
    assert all(time.mean_ms >= 0 for time in times)
    if TARGETS[present].tells_layers:
        told = [runner.original_node(time.name) for time in times]
        for layer in (small.STEM, small.MIDDLE, small.LAST, small.HEAD):
            assert told.count(layer) == 1, layer
        assert f"{small.MIDDLE}.input_gather" in told
        assert "" in told  # reordering of data, which is nobody's
    with pytest.raises(InputError, match="--iterations 0"):
        runner.profile_nodes(images(2), 0)


def test_wrong_inputs_are_refused(runner: Any) -> None:
    for feeds in ({}, {"x": images(1)["input"]}, {"input": np.zeros((1, 5, small.SIZE, small.SIZE), np.float32)}):
        with pytest.raises(InputError):
            runner.run(feeds)


def test_a_source_without_modules_does_not_run_in_torch() -> None:
    pytest.importorskip("torch")
    with pytest.raises(InputError, match="ONNX files do not run in torch"):
        open_runner("torch-cpu", Source(Path("model.onnx")))


def test_an_unknown_target_and_an_impossible_precision_are_refused() -> None:
    with pytest.raises(InputError, match="unknown target 'openvino_native'.*did you mean openvino-native"):
        registry.require("openvino_native")
    able = next(name for name, target in TARGETS.items() if "int8" not in target.precisions and target.runs == "module")
    if TARGETS[able].state().available:
        with pytest.raises(InputError, match="does not compute in int8 here; expected --precision fp32"):
            registry.require(able, "int8")


@pytest.mark.parametrize(
    ("target", "taken", "words"),
    [
        ("torch-cpu", "torch", "torch: it is not installed"),
        ("openvino-native", "openvino", "pip install 'edgeprune[openvino]'"),
        ("torch-compile-cuda", "triton", "triton"),
    ],
)
def test_a_package_that_is_missing_is_named(
    target: str, taken: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if taken == "triton":
        pytest.importorskip("torch")
    for module in (target_module, torch_targets):
        monkeypatch.setattr(module, "is_importable", lambda name: name != taken)
    monkeypatch.setattr(torch_targets, "machine_has_nvidia_gpu", lambda: True)
    with pytest.raises(InputError) as error:
        open_runner(target, Source(Path("model.onnx")))
    assert words in str(error.value)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler: g\+\+ is not found"):
        open_runner("torch-compile-cpu", Source(Path("model.onnx")))


def test_a_provider_without_its_device_or_libraries_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: [t.provider for t in ort_providers.TARGETS.values()]
    )
    monkeypatch.setattr(ort_providers, "machine_has_nvidia_gpu", lambda: False)
    for target in ("cuda", "tensorrt"):
        assert ort_providers.target_state(target).reason == "needs an NVIDIA GPU and its driver"
    monkeypatch.setattr(ort_providers, "machine_has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(ort_providers, "_can_load", lambda library: False)
    assert "libnvinfer.so.10 cannot be loaded" in ort_providers.target_state("tensorrt").reason
    assert ort_providers.target_state("cuda").available


def test_an_nvidia_driver_is_found_on_every_kind_of_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = tuple(tmp_path / str(number) for number in range(len(this_machine.NVIDIA_DRIVER)))
    monkeypatch.setattr(this_machine, "NVIDIA_DRIVER", places)
    assert not this_machine.machine_has_nvidia_gpu()
    for place in places:
        place.touch()
        assert this_machine.machine_has_nvidia_gpu()
        place.unlink()
    assert any("wsl" in str(path) for path in NVIDIA_DRIVER)


def test_every_target_states_whether_it_can_be_used() -> None:
    states = {state.name: state for state in registry.states()}
    assert list(states) == list(TARGETS)
    assert states["cpu"].available
    assert all(state.reason for state in states.values())


def test_listing_targets_imports_no_other_runtime() -> None:
    code = (
        "import sys; from edgeprune.pipeline.list import targets; rows = targets()\n"
        "assert len(rows) >= 10 and all(row['why'] for row in rows)\n"
        "print([name for name in ('torch', 'openvino', 'tensorrt') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip() == "[]"


def test_every_node_says_which_provider_took_it() -> None:
    model = small.models()[1]
    with ort.OrtRunner(model) as runner:
        assert runner.node_providers() == {node.name: "CPUExecutionProvider" for node in model.graph.node}
        assert runner.providers() == {"CPUExecutionProvider": len(model.graph.node)}


def test_nodes_of_several_providers_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def part(provider: str, *names: str) -> Any:
        nodes = [SimpleNamespace(name=name) for name in names]
        return SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)

    with ort.OrtRunner(small.models()[1]) as runner:
        parts = [part("CUDAExecutionProvider", "a", "b"), part("CPUExecutionProvider", "c")]
        monkeypatch.setattr(runner, "_session", SimpleNamespace(get_provider_graph_assignment_info=lambda: parts))
        assert runner.providers() == {"CUDAExecutionProvider": 2, "CPUExecutionProvider": 1}
        monkeypatch.setattr(runner, "_session", SimpleNamespace())  # an older ONNX Runtime
        assert runner.providers() == {}


class TestOpenVino:
    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("openvino", reason="openvino is not installed: pip install 'edgeprune[openvino]'")

    def runner(self, which: int = 1, **options: Any) -> Any:
        from edgeprune.runners.openvino.runner import OpenVinoRunner

        return OpenVinoRunner(small.models()[which], RunOptions(**options))

    def test_it_computes_in_float32_with_the_threads_that_were_asked_for(self) -> None:
        with self.runner(threads=1) as runner:
            runner.run(images(1))
            (compiled,) = runner._compiled.values()
            told = {
                name: str(compiled.model.get_property(name))
                for name in ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "ENABLE_CPU_PINNING", "NUM_STREAMS")
            }
        assert "float32" in told.pop("INFERENCE_PRECISION_HINT")
        assert told == {"INFERENCE_NUM_THREADS": "1", "ENABLE_CPU_PINNING": "False", "NUM_STREAMS": "1"}

    def test_settings_of_openvino_can_be_given_and_wrong_ones_are_refused(self) -> None:
        with self.runner(provider_options=(("ENABLE_CPU_PINNING", "YES"),)) as runner:
            runner.run(images(1))
        with (
            self.runner(provider_options=(("NO_SUCH_OPTION", "1"),)) as runner,
            pytest.raises(InputError, match=r"OpenVINO cannot compile it: .*NO_SUCH_OPTION"),
        ):
            runner.run(images(1))

    def test_pinning_holds_for_its_threads_and_ends_with_the_run(self) -> None:
        before = os.sched_getaffinity(0)
        with self.runner(pin=(min(before),)) as runner:
            runner.run(images(1))
        assert os.sched_getaffinity(0) == before
        with pytest.raises(InputError, match="cannot pin to cores"):
            self.runner(pin=(99999,))

    def test_an_operation_that_it_does_not_know_is_an_error_of_the_model(self) -> None:
        from edgeprune.runners.openvino.runner import OpenVinoRunner

        strange = parser.parse_model(
            '<ir_version: 9, opset_import: ["" : 20, "strange.domain" : 1]> g (float[b,2] x) => (float[b,2] y) '
            "{ y = strange.domain.Twist(x) }"
        )
        with pytest.raises(InputError, match="OpenVINO cannot read it: .*Twist"):
            OpenVinoRunner(strange)


WATCHED = f"""
import socket, sys
def refuse(*arguments, **_):
    open(sys.argv[1], "a").write(repr(arguments))
    raise OSError("no network")
socket.getaddrinfo = socket.socket.connect = refuse  # in processes and threads that are forked from here, too
import edgeprune.cli
import numpy as np
sys.path.insert(0, {str(SUPPORT)!r})
import small_bundle as small
from edgeprune.runners.registry import open_runner
from edgeprune.runners.target import Source
runner = open_runner(sys.argv[2], Source(small.models()[1]))
runner.prepared({{"input": np.zeros((1, 3, small.SIZE, small.SIZE), np.float32)}})()
"""


@pytest.mark.parametrize("target", ["cpu", "openvino-native"])
def test_runtimes_send_nothing_and_keep_nothing_in_the_home_folder(target: str, tmp_path: Path) -> None:
    """Both would, when they are imported: ONNX Runtime to Microsoft (from C++), OpenVINO to Google."""
    state = TARGETS[target].state()
    if not state.available:
        pytest.skip(f"{target} {state.reason}")
    home, sent = tmp_path / "home", tmp_path / "sent"
    home.mkdir()
    decided = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "CI", "TF_BUILD", "JENKINS_URL")  # where they send nothing
    known = {name: value for name, value in os.environ.items() if name not in decided}
    command = [sys.executable, "-c", WATCHED, str(sent), target]
    done = subprocess.run(command, capture_output=True, text=True, env={**known, "HOME": str(home)}, check=False)
    assert done.returncode == 0, done.stderr
    assert not sent.exists()
    assert list(home.iterdir()) == []


def test_a_user_who_wants_onnx_runtimes_telemetry_keeps_it() -> None:
    code = "import os, edgeprune; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "0"


def test_openvinos_telemetry_is_hidden_from_openvino_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: pip install 'edgeprune[openvino]'")
    for known in (None, ModuleType("openvino_telemetry")):
        if known is None:
            monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
        else:
            monkeypatch.setitem(sys.modules, "openvino_telemetry", known)
        assert import_openvino() is sys.modules["openvino"]
        assert sys.modules.get("openvino_telemetry") is known


class TestTorch:
    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("torch")

    def runner(self, kind: str = "TorchRunner", **options: Any) -> Any:
        from edgeprune.runners.torch import runner as torch_modules

        return getattr(torch_modules, kind)(small.module(1), ["input"], RunOptions(**options))

    def test_its_threads_run_on_the_cores_that_are_pinned(self) -> None:
        """In a process of its own, since threads stay: all would be on the core that the caller is pinned to."""
        cores = sorted(os.sched_getaffinity(0))[:2]
        if len(cores) < 2:
            pytest.skip("one core")
        code = f"""
import os, sys
import numpy as np, torch
from edgeprune.runners.base import RunOptions
from edgeprune.exporters.openvino.package import import_openvino
from edgeprune.runners.cores import pinned
from edgeprune.runners.torch.runner import TorchRunner
def threads():
    return {{name: sorted(os.sched_getaffinity(int(name))) for name in os.listdir("/proc/self/task")}}
runner = TorchRunner(torch.nn.Conv2d(3, 64, 3), ["x"], RunOptions(threads=2, pin={tuple(cores)}))
before = set(threads())
with pinned({cores[:1]}):
    run = runner.prepared({{"x": np.zeros((4, 3, 64, 64), np.float32)}})
    run()
    assert threads()[str(os.getpid())] == {cores[:1]}
workers = [cores for name, cores in threads().items() if name not in before]
assert workers and all(cores == {cores[1:]} for cores in workers), workers
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def test_cores_that_are_not_there_are_refused(self) -> None:
        with pytest.raises(InputError, match="cannot pin to cores"):
            self.runner(pin=(99999,))

    def test_a_gpu_runner_tells_what_copies_take_and_another_has_none(self) -> None:
        runner = self.runner("GpuTorchRunner")  # on the processor here, where copies are copies, too
        assert min(runner.copy_times(images(2), 3)) > 0
        with pytest.raises(InputError, match="--iterations 0"):
            runner.copy_times(images(2), 0)
        runner.close()
        plain = self.runner()
        assert not hasattr(plain, "copy_times")
        plain.close()

    @pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True), ("fp16", False)])
    def test_tf32_is_on_while_a_runner_is_open_that_was_asked_for_it(
        self, precision: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torch

        from edgeprune.runners.torch import runner as torch_modules

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch_modules.torch, "device", lambda _: "cpu")
        before = torch_modules._allowed_tf32()
        source = Source(Path("model.onnx"), small.module(1), ("input",))
        monkeypatch.setattr(torch_targets, "machine_has_nvidia_gpu", lambda: True)
        runner = open_runner("torch-cuda", source, OpenOptions(precision=precision))  # type: ignore[arg-type]
        assert isinstance(runner, torch_modules.GpuTorchRunner)
        assert torch_modules._allowed_tf32() == (allowed, allowed)
        runner.close()
        assert torch_modules._allowed_tf32() == before

    def test_torchs_newer_switches_for_tf32_are_an_error_of_the_models_code(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torch

        from edgeprune.runners.torch import runner as torch_modules

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        switch = torch.backends.cuda.matmul
        before = switch.fp32_precision
        try:
            switch.fp32_precision = "tf32"
            with pytest.raises(InputError, match="TF32 was switched by fp32_precision"):
                torch_modules.TorchRunner(small.module(1), ["input"], target="torch-cuda")
            self.runner().close()  # on the processor it does not matter
        finally:
            switch.fp32_precision = before
        assert torch_modules._allowed_tf32()
