"""Networks of torchvision, in ncnn and in ONNX Runtime, with random weights and small images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from networks import settled
from runtimes.small_onnx import ncnn_difference

from edgeprune.exporters.options import ExportOptions
from edgeprune.exporters.to_onnx import to_onnx

pytest.importorskip("ncnn", reason="ncnn is not installed: pip install 'edgeprune[ncnn]'")

NAMES = (
    "resnet18",
    "resnext50_32x4d",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "regnet_y_400mf",
    "squeezenet1_1",
    "convnext_tiny",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_computes_the_same(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = settled(getattr(torchvision.models, name)(weights=None))
    model = to_onnx(network, torch.randn(1, 3, 64, 64), ExportOptions(dynamic_batch=False))
    assert ncnn_difference(model, tmp_path) <= 1e-4
