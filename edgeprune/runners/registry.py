"""All targets in one table: whether each can be used here, in which precisions, and how to open a runner on it.

No runtime but ONNX Runtime is imported before a runner of it is opened.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeprune.devices.this_machine import is_importable, machine_has_half_arithmetic, machine_has_nvidia_gpu
from edgeprune.errors import InputError, unknown_name
from edgeprune.precision.formats import PRECISIONS, Precision
from edgeprune.runners.base import RunOptions, TargetState
from edgeprune.runners.gpu import check_tf32
from edgeprune.runners.onnxruntime import providers as ort_providers
from edgeprune.runners.onnxruntime import runner as ort
from edgeprune.runners.onnxruntime.on_device import DeviceOrtRunner

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

    from edgeprune.runners.base import ProfiledRunner


@dataclass(frozen=True)
class Source:
    """One network in the forms that targets take it."""

    model: Path | ModelProto
    """ONNX file, or model in memory, in the precision where `Target.is_given` says so, else in FP32."""
    module: nn.Module | None = None
    """The same network for the targets that run modules."""
    input_names: tuple[str, ...] = ()
    """Of the module's forward function, in order."""


@dataclass(frozen=True)
class OpenOptions:
    """All that a runner is opened with."""

    run: RunOptions = field(default_factory=RunOptions)
    precision: Precision = "fp32"
    engines: Path | None = None
    """Folder where a runtime may keep what it built for this device."""


@dataclass(frozen=True)
class Target:
    """One runtime on one kind of device."""

    name: str
    state: Callable[[], TargetState]
    open: Callable[[Source, OpenOptions], ProfiledRunner]
    precisions: tuple[Precision, ...] = ("fp32",)
    runs: Literal["onnx", "module"] = "onnx"
    """What it takes: an ONNX file, or torch's modules."""
    tells_layers: bool = True
    """Whether it tells the times of single layers under names of the ONNX file."""
    halves_itself: bool = False
    """Whether it is given the FP32 network for FP16, too."""
    symmetric: bool = False
    """Whether its INT8 kernels want activations with 0 in the middle."""

    def is_given(self, precision: Precision) -> bool:
        """Whether it takes a network that was converted to the precision beforehand."""
        return precision == "int8" or (precision == "fp16" and not self.halves_itself)


def target_named(name: str) -> Target:
    """The target of this name; InputError if there is none."""
    if name not in TARGETS:
        raise unknown_name("target", name, TARGETS, remedy="`edgeprune list targets` shows all")
    return TARGETS[name]


def states() -> tuple[TargetState, ...]:
    """Every target, with whether and why (not) it can be used on this machine."""
    return tuple(target.state() for target in TARGETS.values())


def require(name: str, precision: Precision = "fp32") -> Target:
    """The target; InputError if it is unknown, cannot be used on this machine, or not in this precision."""
    target = target_named(name)
    state = target.state()
    if not state.available:
        raise InputError(
            f"{state.provider} cannot be used here: {state.reason}",
            where=f"target {name}",
            expected=f"one of those present: {', '.join(s.name for s in states() if s.available)}",
            remedy="install what is missing, or choose another --target",
        )
    if precision not in target.precisions:
        able = [known.name for known in TARGETS.values() if precision in known.precisions]
        raise InputError(
            f"does not compute in {precision} here",
            where=f"target {name}",
            expected=f"--precision {' or '.join(target.precisions)}",
            remedy=f"{precision} is for {', '.join(able)}",
        )
    if precision == "tf32":
        check_tf32(f"target {name}")
    return target


def open_runner(name: str, source: Source, options: OpenOptions = OpenOptions()) -> ProfiledRunner:
    """A runner of the network on this target.

    InputError as `require`, if the target does not take this source, or if its runtime refuses the network.
    """
    target = require(name, options.precision)
    require_source(name, source)
    return target.open(source, options)


def require_source(name: str, source: Source) -> None:
    """InputError if the network is not there in the form that the target takes."""
    if target_named(name).runs == "module" and source.module is None:
        raise InputError(
            "ONNX files do not run in torch",
            where=f"target {name}",
            expected="a bundle with weights",
            remedy="profile the bundle, or choose --target cpu",
        )


def _onnx_runtime(name: str, precisions: tuple[Precision, ...], *, tells_layers: bool, symmetric: bool) -> Target:
    on_gpu = ort_providers.TARGETS[name].needs_gpu

    def open_here(source: Source, options: OpenOptions) -> ProfiledRunner:
        kind = DeviceOrtRunner if on_gpu else ort.TimedOrtRunner
        return kind(source.model, options.run, target=name, precision=options.precision)

    def state() -> TargetState:
        return ort_providers.target_state(name)

    return Target(name, state, open_here, precisions, tells_layers=tells_layers, symmetric=symmetric)


def _torch(name: str, *, compiled: bool, cuda: bool) -> Target:
    def state() -> TargetState:
        provider = f"torch {'cuda' if cuda else 'cpu'}{', compiled' if compiled else ''}"
        missing = _torch_lacks(cuda=cuda) or (_compiler_lacks(cuda=cuda) if compiled else "")
        return TargetState(name, provider, not missing, missing or f"torch {metadata.version('torch')}")

    def open_here(source: Source, options: OpenOptions) -> ProfiledRunner:
        from edgeprune.runners.torch.runner import GpuTorchRunner, TorchRunner

        assert source.module is not None
        kind = GpuTorchRunner if cuda else TorchRunner
        return kind(source.module, source.input_names, options.run, target=name, precision=options.precision)

    precisions: tuple[Precision, ...] = ("fp32", "tf32", "fp16") if cuda else ("fp32",)
    return Target(name, state, open_here, precisions, runs="module", tells_layers=not compiled, halves_itself=True)


def _torch_lacks(*, cuda: bool) -> str:
    if not is_importable("torch"):
        return "needs torch: it is not installed (pip install 'edgeprune[prune]')"
    if cuda and metadata.version("torch").endswith("+cpu"):
        return "needs torch with CUDA: the one installed is built for the CPU alone"
    return "needs an NVIDIA GPU and its driver" if cuda and not machine_has_nvidia_gpu() else ""


def _compiler_lacks(*, cuda: bool) -> str:
    """What torch.compile needs beside torch: it writes C++ (for GPUs Triton with C) and has it compiled."""
    if cuda and not is_importable("triton"):
        return "needs triton (pip install triton)"
    compilers = (os.environ.get("CC", "gcc"), "clang") if cuda else (os.environ.get("CXX", "g++"),)
    if not any(shutil.which(compiler) for compiler in compilers):
        language = "C" if cuda else "C++"
        return f"needs a {language} compiler: {' or '.join(compilers)} is not found (apt install g++)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "needs Python's headers: Python.h is not found (apt install python3-dev)"
    return ""


def _openvino_native() -> Target:
    def state() -> TargetState:
        provider = "OpenVINO CPU"
        if not is_importable("openvino"):
            return TargetState("openvino-native", provider, False, "needs openvino (pip install 'edgeprune[openvino]')")
        return TargetState("openvino-native", provider, True, f"openvino {metadata.version('openvino')}")

    def open_here(source: Source, options: OpenOptions) -> ProfiledRunner:
        from edgeprune.runners.openvino.runner import OpenVinoRunner

        return OpenVinoRunner(source.model, options.run, precision=options.precision)

    return Target("openvino-native", state, open_here, _on_processor())


def _tensorrt_native() -> Target:
    def state() -> TargetState:
        from edgeprune.runners.tensorrt import runner as tensorrt_native

        return tensorrt_native.state()

    def open_here(source: Source, options: OpenOptions) -> ProfiledRunner:
        from edgeprune.runners.tensorrt import runner as tensorrt_native

        return tensorrt_native.open_runner(
            source.model, options.run, precision=options.precision, engines=options.engines
        )

    return Target("tensorrt-native", state, open_here, PRECISIONS, halves_itself=True, symmetric=True)


def _on_processor() -> tuple[Precision, ...]:
    """FP16 models run everywhere, but without instructions for it they are computed in FP32, and FP32 it should say."""
    return ("fp32", "fp16", "int8") if machine_has_half_arithmetic() else ("fp32", "int8")


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        _onnx_runtime("cpu", _on_processor(), tells_layers=True, symmetric=False),
        # It would compute quantised convolutions in FP32, between conversions.
        _onnx_runtime("cuda", ("fp32", "tf32", "fp16"), tells_layers=False, symmetric=False),
        # It has no switch for TF32: in FP32 the environment forbids it (`ort_providers.start`).
        _onnx_runtime("tensorrt", ("fp32", "fp16", "int8"), tells_layers=False, symmetric=True),
        _onnx_runtime("openvino", _on_processor(), tells_layers=False, symmetric=False),
        _tensorrt_native(),
        _openvino_native(),
        _torch("torch-cpu", compiled=False, cuda=False),
        _torch("torch-cuda", compiled=False, cuda=True),
        _torch("torch-compile-cpu", compiled=True, cuda=False),
        _torch("torch-compile-cuda", compiled=True, cuda=True),
    )
}
