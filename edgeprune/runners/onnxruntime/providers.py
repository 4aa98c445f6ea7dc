"""ONNX Runtime's execution providers as targets: what each one needs, and the options that it is started with."""

from __future__ import annotations

import ctypes
import io
import json
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass

import onnxruntime

from edgeprune.devices.this_machine import machine_has_nvidia_gpu
from edgeprune.errors import InputError, unknown_name
from edgeprune.precision.formats import Precision
from edgeprune.runners.base import RunOptions, TargetState
from edgeprune.runners.gpu import forbid_tf32

CUDA = "CUDAExecutionProvider"


@dataclass(frozen=True)
class OrtTarget:
    """One provider, and what stands behind it."""

    provider: str
    package: str
    """What brings the provider."""
    after: tuple[str, ...] = ()
    """Providers for the nodes that the first one does not take."""
    library: str = ""
    """A library that the provider loads when it starts, and that its package does not bring."""
    device: str = "cpu"
    """Where it computes, as ONNX Runtime names devices."""

    @property
    def needs_gpu(self) -> bool:
        return self.device == "cuda"


TARGETS: Mapping[str, OrtTarget] = {
    "cpu": OrtTarget("CPUExecutionProvider", "onnxruntime"),
    "cuda": OrtTarget(CUDA, "onnxruntime-gpu with CUDA and cuDNN 9", ("CPUExecutionProvider",), device="cuda"),
    "tensorrt": OrtTarget(
        "TensorrtExecutionProvider",
        "onnxruntime-gpu with the libraries of TensorRT 10",
        (CUDA, "CPUExecutionProvider"),
        "libnvinfer.so.10",
        "cuda",
    ),
    "openvino": OrtTarget("OpenVINOExecutionProvider", "onnxruntime-openvino", ("CPUExecutionProvider",)),
}


def target_state(name: str) -> TargetState:
    """Whether and why (not) ONNX Runtime's target can be used on this machine. Starts nothing."""
    target = TARGETS[name]
    if target.provider not in onnxruntime.get_available_providers():
        missing = f"needs {target.package}"
    elif target.needs_gpu and not machine_has_nvidia_gpu():
        missing = "needs an NVIDIA GPU and its driver"
    elif target.library and not _can_load(target.library):
        missing = f"needs {target.package}: {target.library} cannot be loaded"
    else:
        return TargetState(name, target.provider, True, f"onnxruntime {onnxruntime.__version__}")
    return TargetState(name, target.provider, False, missing)


def check_available(target: str) -> None:
    """InputError for a target that is none, or that this package of ONNX Runtime does not have."""
    if target not in TARGETS:
        raise unknown_name("ONNX Runtime target", target, TARGETS, remedy="`edgeprune list targets` shows all")
    if TARGETS[target].provider not in onnxruntime.get_available_providers():
        raise provider_error(target, "this onnxruntime does not have it")


def provider_error(target: str, what: str) -> InputError:
    """The error for a provider that does not do what it is asked for."""
    wanted = TARGETS[target]
    return InputError(
        f"{wanted.provider} cannot be used: {what}",
        where=f"target {target}",
        expected=f"one of those present: {', '.join(onnxruntime.get_available_providers())}",
        remedy=f"install {wanted.package}, or choose another --target",
    )


def providers(target: str, run: RunOptions, precision: Precision = "fp32") -> list[tuple[str, dict[str, str]]]:
    """What a session is to be started with: the target's provider and those after it that are present, with options.

    `RunOptions.provider_options` are the first one's, and win.
    """
    wanted, given = TARGETS[target], dict(run.provider_options)
    same_device = {name: value for name, value in given.items() if name == "device_id"}
    present = onnxruntime.get_available_providers()
    others = [
        (name, {**_cuda_options(precision), **same_device} if name == CUDA else {})
        for name in wanted.after
        if name in present
    ]
    return [(wanted.provider, {**_own_options(target, run, precision), **given}), *others]


def start(target: str, precision: Precision) -> str:
    """Do what has to be done in the process before a session of the target; a line on what could not be loaded."""
    if not TARGETS[target].needs_gpu:
        return ""
    if target == "tensorrt" and precision == "fp32":
        forbid_tf32()  # the provider has no option for it
    if not hasattr(onnxruntime, "preload_dlls"):
        return ""
    said = io.StringIO()
    with redirect_stdout(said):  # where results may go
        onnxruntime.preload_dlls()  # CUDA's libraries may lie in Python packages, where the system does not look
    return said.getvalue().strip().partition("\n")[0]


def _own_options(target: str, run: RunOptions, precision: Precision) -> dict[str, str]:
    if target == "cuda":
        return _cuda_options(precision)
    if target == "tensorrt" and precision in ("fp16", "int8"):
        # TensorRT 10 takes the file's number formats as leave to use them, where it is told to.
        return {f"trt_{precision}_enable": "1"}
    if target == "openvino":
        # Left alone it takes 8 threads, and computes in bfloat16 on processors that have it.
        settings = {
            "INFERENCE_NUM_THREADS": str(run.threads),
            "NUM_STREAMS": "1",
            "INFERENCE_PRECISION_HINT": "f16" if precision == "fp16" else "f32",
        }
        return {"device_type": "CPU", "load_config": json.dumps({"CPU": settings})}
    return {}


def _cuda_options(precision: Precision) -> dict[str, str]:
    """FP32 is measured as FP32: by default cuBLAS and cuDNN round the products' factors to 10 bits (TF32)."""
    return {"use_tf32": "1" if precision == "tf32" else "0"}


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
