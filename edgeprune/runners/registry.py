"""All targets in one table: whether each can be used here, in which precisions, and how to open a runner on it.

No runtime but ONNX Runtime is imported before a runner of it is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgeprune.errors import InputError, unknown_name, unloadable
from edgeprune.precision.formats import Precision
from edgeprune.runners.base import TargetState
from edgeprune.runners.gpu import check_tf32
from edgeprune.runners.litert import targets as litert
from edgeprune.runners.ncnn import targets as ncnn
from edgeprune.runners.onnxruntime import targets as onnxruntime
from edgeprune.runners.openvino import targets as openvino
from edgeprune.runners.target import OpenOptions, Source, Target
from edgeprune.runners.tensorrt import targets as tensorrt
from edgeprune.runners.torch import targets as torch

if TYPE_CHECKING:
    from edgeprune.runners.base import ProfiledRunner

TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        *onnxruntime.TARGETS,
        *tensorrt.TARGETS,
        *openvino.TARGETS,
        *litert.TARGETS,
        *ncnn.TARGETS,
        *torch.TARGETS,
    )
}


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

    InputError as `require`, if the target does not take this source, or if its runtime cannot be loaded or refuses the
    network.
    """
    target = require(name, options.precision)
    require_source(name, source)
    try:
        return target.open(source, options)
    except ImportError as error:
        raise unloadable(error, where=f"target {name}") or error from error


def require_source(name: str, source: Source) -> None:
    """InputError if the network is not there in the form that the target takes."""
    if target_named(name).runs == "module" and source.module is None:
        raise InputError(
            "ONNX files do not run in torch",
            where=f"target {name}",
            expected="a bundle with weights",
            remedy="profile the bundle, or choose --target cpu",
        )
