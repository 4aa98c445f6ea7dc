"""Whole networks for LiteRT, randomly initialised, against ONNX Runtime; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from runtimes.lite_models import assert_same, fed, in_litert, model, random
from torch import Tensor, nn
from torchvision import models

from edgeprune.errors import InputError
from edgeprune.exporters.conversions import ConvertOptions, with_fixed_sizes
from edgeprune.exporters.options import ExportOptions
from edgeprune.exporters.tflite.delegation import delegation_in
from edgeprune.exporters.tflite.interpreter import open_interpreter, run_file
from edgeprune.exporters.tflite.record import RECORD, file_record, read_metadata
from edgeprune.exporters.tflite.writer import to_tflite
from edgeprune.exporters.to_onnx import to_onnx

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": lambda: models.mobilenet_v2(width_mult=0.35),
    "mobilenet_v3_small": lambda: models.mobilenet_v3_small(width_mult=0.5),
    "shufflenet_v2": models.shufflenet_v2_x0_5,
    "squeezenet": models.squeezenet1_1,
    "regnet_x": models.regnet_x_400mf,
    "densenet": lambda: models.DenseNet(8, (3, 7), 16),
}


class Pyramid(nn.Module):
    """What detectors and U-Nets have: strides, skips, upsampling by copying and by interpolation, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, 2, 1, groups=g) for a, b, g in ((3, 8, 1), (8, 16, 4), (16, 32, 8))
        )
        self.side = nn.ModuleList(nn.Conv2d(c, 8, 1) for c in (8, 16, 32))
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.head = nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        levels = []
        for down in self.down:
            x = F.silu(down(x))
            levels.append(x)
        fine, middle, coarse = (side(level) for side, level in zip(self.side, levels, strict=True))
        middle = middle + F.interpolate(coarse, scale_factor=2, mode="nearest")
        fine = F.leaky_relu(fine, 0.1) + F.interpolate(middle, scale_factor=2, mode="bilinear", align_corners=False)
        boxes = self.head(self.up(fine))
        scores = torch.cat([self.head(level).flatten(2) for level in (fine, middle, coarse)], 2).permute(0, 2, 1)
        return torch.sigmoid(boxes), scores.softmax(-1), F.max_pool2d(coarse, 5, 1, 2)


def normalised(network: nn.Module, example: Tensor) -> nn.Module:
    """With the statistics of its norms from the example, so that nothing grows or vanishes from layer to layer."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    network.train()
    with torch.no_grad():
        network(example)
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_as_people_use_them(name: str) -> None:
    torch.manual_seed(0)
    example = torch.randn(2, 3, 64, 64)
    exported = to_onnx(normalised(NETWORKS[name](), example), example)
    assert_same(exported, tolerance=1e-4)
    written = to_tflite(with_fixed_sizes(exported))
    interpreter = open_interpreter(written, 1, where=name)
    found = delegation_in(interpreter)
    assert (found.parts, found.left) == (1, ())


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_a_pyramid_with_several_outputs(layout: Any) -> None:
    torch.manual_seed(0)
    example = torch.randn(2, 3, 32, 32)
    exported = to_onnx(Pyramid().eval(), example, ExportOptions(output_names=("boxes", "scores", "pooled")))
    assert_same(exported, ConvertOptions(layout), tolerance=1e-4)


@pytest.mark.parametrize(("layout", "shape"), [("nhwc", [1, 6, 7, 3]), ("nchw", [1, 3, 6, 7])])
def test_images_are_taken_and_given_in_the_layout_that_was_asked_for(layout: Any, shape: list[int]) -> None:
    built = with_fixed_sizes(model([helper.make_node("Relu", ["x"], ["y"])], {"x": (1, 3, 6, 7)}))
    interpreter = open_interpreter(to_tflite(built, ConvertOptions(layout)), 1, where="model")
    assert list(interpreter.get_input_details()[0]["shape"]) == shape
    assert list(interpreter.get_output_details()[0]["shape"]) == shape
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["x"], "outputs": ["y"]}}
    given = random(*shape)
    found = interpreter.get_signature_runner()(x=given)
    np.testing.assert_array_equal(found["y"], np.maximum(given, 0))


def test_outputs_that_are_inputs_or_constants_or_the_same_twice() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Identity", ["y"], ["again"]),
        helper.make_node("Identity", ["c"], ["fixed"]),
    ]
    assert_same(model(nodes, {"x": (1, 3, 4, 5)}, {"c": random(2, 2)}, outputs=("same", "y", "again", "fixed")))


def test_sizes_that_are_computed_from_the_input_s_are_numbers_in_the_file() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Slice", ["sizes", "two", "four"], ["image"]),
        helper.make_node("Mul", ["image", "double"], ["larger"]),
        helper.make_node("Slice", ["sizes", "zero", "two"], ["outer"]),
        helper.make_node("Concat", ["outer", "larger"], ["all"], axis=0),
        helper.make_node("Resize", ["x", "", "", "all"], ["y"], mode="linear"),
    ]
    constants = {name: np.asarray([value]) for name, value in {"two": 2, "four": 4, "zero": 0, "double": 2}.items()}
    assert_same(model(nodes, {"x": ("batch", 3, 4, 5)}, constants))


def test_the_file_says_where_it_comes_from() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Tanh", ["b"], ["y"], "tanh"),
    ]
    built = with_fixed_sizes(model(nodes, {"x": ("batch", 3, 6, 6)}, {"w": random(4, 3, 3, 3)}))
    written = to_tflite(built, ConvertOptions(metadata={"plan.json": b"{}"}))
    record = file_record(written)
    assert record.nodes == ("conv", "tanh")
    assert [(port.name, port.shape, port.order) for port in record.inputs] == [("x", (1, 3, 6, 6), (0, 2, 3, 1))]
    assert read_metadata(written).keys() == {RECORD, "plan.json"}
    assert read_metadata(written)["plan.json"] == b"{}"


@pytest.mark.parametrize("content", [b"", b"no flatbuffer at all", b"\x00" * 64])
def test_what_is_no_file_of_edgeprune_s_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"no \.tflite file that edgeprune wrote"):
        run_file(path, {})


def test_a_batch_that_is_fixed_stays() -> None:
    built = model([helper.make_node("Relu", ["x"], ["y"])], {"x": (3, 2, 4, 4)})
    assert in_litert(with_fixed_sizes(built), fed(built))["y"].shape == (3, 2, 4, 4)


REFUSED = {
    "erf": ("Erf", {}, {}, r"erf \(Erf\).*no such operation.*opset 20"),
    "cubic": (
        "Resize",
        {"s": np.asarray([1, 3, 8, 8])},
        {"mode": "cubic"},
        r"mode is cubic.*expected nearest or linear",
    ),
    "edge": ("Pad", {"p": np.asarray([0, 0, 1, 1, 0, 0, 1, 1])}, {"mode": "edge"}, "mode is edge"),
    "elu": ("Elu", {}, {"alpha": 2.0}, "alpha is 2"),
    "dilated": ("MaxPool", {}, {"kernel_shape": [2, 2], "dilations": [2, 2]}, "window is dilated"),
    "up": ("ConvTranspose", {"w": random(3, 3, 3, 3)}, {"dilations": [2, 2]}, "kernel is dilated"),
    "gather": ("Gather", {"i": np.asarray([[0, 1], [1, 0]])}, {"axis": 1}, "indices have 2 axes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_refused_with_node_operation_and_reason(name: str) -> None:
    op, constants, attributes, words = REFUSED[name]
    inputs = ["x", *(["", ""] if op == "Resize" else []), *constants]
    node = helper.make_node(op, inputs, ["y"], name, **attributes)
    with pytest.raises(InputError, match=words) as refusal:
        to_tflite(with_fixed_sizes(model([node], {"x": (1, 3, 6, 6)}, constants)))
    assert str(refusal.value).startswith(f"{name} ({op}): cannot be written for LiteRT: ")


def test_weights_that_the_network_computes_are_refused() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], "dynamic")
    with pytest.raises(InputError, match=r"dynamic \(Conv\): .*its weight is computed by the network"):
        to_tflite(with_fixed_sizes(model([node], {"x": (1, 3, 6, 6), "w": (4, 3, 3, 3)})))


def test_convolutions_of_other_dimensions_are_refused() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], "sound")
    with pytest.raises(InputError, match="its weight has 3 axes; expected a convolution of images"):
        to_tflite(with_fixed_sizes(model([node], {"x": (1, 3, 6)}, {"w": random(4, 3, 3)})))


def test_inputs_of_other_types_are_refused() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    built = model([node], {"x": (1, 3)})
    for value in (built.graph.input[0], built.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(InputError, match="input 'x': cannot be written for LiteRT: it is of type float16"):
        to_tflite(with_fixed_sizes(built))
