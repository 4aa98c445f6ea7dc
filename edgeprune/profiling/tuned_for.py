"""For which runtime, machine and use the forms of a bundle's layers were measured."""

from __future__ import annotations

from importlib import metadata

from edgeprune.lowering.record import LoweringRecord
from edgeprune.profiling.environment import current_environment

RUNTIMES = {
    "cpu": ("ONNX Runtime", "onnxruntime"),
    "openvino-native": ("OpenVINO", "openvino"),
    "litert": ("LiteRT", "ai-edge-litert"),
    "ncnn": ("ncnn", "ncnn"),
}
"""Targets that forms can be tuned for: the runtime's name, and the package that it comes in."""


def runtime_here(target: str) -> str:
    """Name and version of the runtime that serves a target on this machine; without a version if it is not there."""
    name, package = RUNTIMES.get(target, (target, target))
    try:
        return f"{name} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return name


def is_tuned_for(record: LoweringRecord | None, target: str, threads: int, batch_size: int) -> bool:
    """Whether forms were measured on this machine, in the runtime that is here, for just that use."""
    if record is None or record.chosen_by != "measured":
        return False
    here = current_environment(threads).cpu, runtime_here(target), target, threads, batch_size
    return here == (record.device, record.runtime, record.target, record.threads, record.batch_size)
