"""The targets on which torch runs the network, eagerly or compiled. torch is not imported before a runner is opened."""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib import metadata
from pathlib import Path

from edgeprune.devices.this_machine import is_importable, machine_has_nvidia_gpu
from edgeprune.precision.formats import Precision
from edgeprune.runners.base import ProfiledRunner, TargetState
from edgeprune.runners.target import OpenOptions, Source, Target


def _target(name: str, *, compiled: bool, cuda: bool) -> Target:
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


TARGETS = (
    _target("torch-cpu", compiled=False, cuda=False),
    _target("torch-cuda", compiled=False, cuda=True),
    _target("torch-compile-cpu", compiled=True, cuda=False),
    _target("torch-compile-cuda", compiled=True, cuda=True),
)
