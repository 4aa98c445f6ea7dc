"""What a target is: one runtime on one kind of device, and what it is given to open a runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeprune.devices.this_machine import is_importable, machine_has_half_arithmetic
from edgeprune.precision.formats import Precision
from edgeprune.runners.base import RunOptions, TargetState

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
    as_planned: bool = False
    """Whether it runs a bundle's network as planned, where the forms in `model.onnx` are chosen for other runtimes."""
    halves_itself: bool = False
    """Whether it is given the FP32 network for FP16, too."""
    symmetric: bool = False
    """Whether its INT8 kernels want activations with 0 in the middle."""
    int8_format: str = "onnx"
    """What it is given in INT8: an ONNX file, or one of the formats that `exporters` writes."""

    def is_given(self, precision: Precision) -> bool:
        """Whether it takes a network that was converted to the precision beforehand."""
        return precision == "int8" or (precision == "fp16" and not self.halves_itself)


def precisions_on_processor() -> tuple[Precision, ...]:
    """Those of this machine's processor. FP16 models run everywhere, but without instructions for it they are computed
    in FP32, and FP32 it should say."""
    return ("fp32", "fp16", "int8") if machine_has_half_arithmetic() else ("fp32", "int8")


def state_of_package(name: str, provider: str, module: str, package: str, extra: str) -> TargetState:
    """Whether a target can be used whose runtime comes as a Python package, and with which version."""
    if not is_importable(module):
        return TargetState(name, provider, False, f"needs {package} (pip install 'edgeprune[{extra}]')")
    return TargetState(name, provider, True, f"{package} {metadata.version(package)}")
