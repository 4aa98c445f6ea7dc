"""The targets that ONNX Runtime serves, one a provider."""

from __future__ import annotations

from edgeprune.precision.formats import Precision
from edgeprune.runners.base import ProfiledRunner, TargetState
from edgeprune.runners.onnxruntime import providers
from edgeprune.runners.onnxruntime.on_device import DeviceOrtRunner
from edgeprune.runners.onnxruntime.runner import TimedOrtRunner
from edgeprune.runners.target import OpenOptions, Source, Target, precisions_on_processor


def _target(name: str, precisions: tuple[Precision, ...], *, tells_layers: bool, symmetric: bool) -> Target:
    on_gpu = providers.TARGETS[name].needs_gpu

    def open_here(source: Source, options: OpenOptions) -> ProfiledRunner:
        kind = DeviceOrtRunner if on_gpu else TimedOrtRunner
        return kind(source.model, options.run, target=name, precision=options.precision)

    def state() -> TargetState:
        return providers.target_state(name)

    return Target(name, state, open_here, precisions, tells_layers=tells_layers, symmetric=symmetric)


TARGETS = (
    _target("cpu", precisions_on_processor(), tells_layers=True, symmetric=False),
    # It would compute quantised convolutions in FP32, between conversions.
    _target("cuda", ("fp32", "tf32", "fp16"), tells_layers=False, symmetric=False),
    # It has no switch for TF32: in FP32 the environment forbids it (`providers.start`).
    _target("tensorrt", ("fp32", "fp16", "int8"), tells_layers=False, symmetric=True),
    _target("openvino", precisions_on_processor(), tells_layers=False, symmetric=False),
)
