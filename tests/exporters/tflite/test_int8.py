""".tflite files in INT8: what becomes of the layers, of what the file says of itself, and of the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ai_edge_litert import schema_py_generated as schema
from onnx import ModelProto, helper
from runtimes.lite_models import fed, model, random
from torch import Tensor, nn

from edgeprune.errors import InputError
from edgeprune.exporters.conversions import ConvertOptions, with_fixed_sizes
from edgeprune.exporters.options import ExportOptions
from edgeprune.exporters.tflite.delegation import delegation_in
from edgeprune.exporters.tflite.interpreter import feed, fetch, invoke, open_interpreter
from edgeprune.exporters.tflite.layer_formats import layer_formats
from edgeprune.exporters.tflite.quantized import quantized, ranges
from edgeprune.exporters.tflite.record import file_record, read_metadata
from edgeprune.exporters.tflite.writer import to_tflite
from edgeprune.exporters.to_onnx import to_onnx
from edgeprune.io.arrays import Array, Feeds
from edgeprune.runners.onnxruntime.runner import OrtRunner


def network(groups: int = 4, channels: int = 16) -> ModelProto:
    """A dense, a grouped and a depthwise convolution, and a linear layer, at batch 1."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w2", "b2"], ["c"], "grouped", group=groups, pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["b", "c"], ["d"], "add"),
        helper.make_node("Conv", ["d", "w3"], ["e"], "depthwise", group=channels, strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"], "pool"),
        helper.make_node("Flatten", ["f"], ["g"], "flatten"),
        helper.make_node("Gemm", ["g", "w4"], ["y"], "linear", transB=1),
    ]
    weights = {
        "w1": random(channels, 3, 3, 3) / 5, "w2": random(channels, channels // groups, 3, 3, seed=1) / 4,
        "b2": random(channels, seed=2), "w3": random(channels, 1, 3, 3, seed=3) / 3, "w4": random(10, channels, seed=4),
    }  # fmt: skip
    return with_fixed_sizes(model(nodes, {"x": (1, 3, 12, 10)}, weights))


def batches(built: ModelProto, count: int = 8) -> tuple[Feeds, ...]:
    return tuple(fed(built, seed) for seed in range(count))


def run(data: bytes, feeds: Feeds) -> dict[str, Array]:
    interpreter, record = open_interpreter(data, 1, where="model"), file_record(data)
    feed(interpreter, record, feeds)
    invoke(interpreter)
    found: dict[str, Array] = fetch(interpreter, record)
    return found


def tensors_of(data: bytes, operation: str) -> list[tuple[str, int]]:
    """Of the only operator of this kind: the type of each tensor that it reads, and how many scales it has."""
    graph = (read := schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))).subgraphs[0]
    code = getattr(schema.BuiltinOperator, operation)
    (operator,) = (op for op in graph.operators if read.operatorCodes[op.opcodeIndex].builtinCode == code)
    kinds = {number: name for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
    tensors = [graph.tensors[place] for place in operator.inputs]
    return [(kinds[t.type], 0 if t.quantization is None else len(t.quantization.scale)) for t in tensors]


def test_layers_are_in_integers_with_a_scale_for_each_filter_and_all_are_the_delegate_s() -> None:
    built = network()
    data = quantized(to_tflite(built), batches(built))
    assert layer_formats(data) == dict.fromkeys(("first", "grouped", "depthwise", "linear"), "int8")
    assert tensors_of(data, "DEPTHWISE_CONV_2D")[:2] == [("INT8", 1), ("INT8", 16)]
    interpreter = open_interpreter(data, 1, where="model")
    found = delegation_in(interpreter)
    assert (found.parts, found.left, found.operators.count("CONV_2D")) == (1, (), 2)
    assert {place["dtype"] for place in (*interpreter.get_input_details(), *interpreter.get_output_details())} == {
        np.float32
    }


def test_the_file_says_of_itself_what_it_said_before() -> None:
    built = network()
    before = to_tflite(built, ConvertOptions(metadata={"plan.json": b'{"layers": []}'}))
    data = quantized(before, batches(built))
    assert read_metadata(data)["plan.json"] == b'{"layers": []}'
    old, new = file_record(before), file_record(data)
    assert (new.inputs, new.outputs) == (old.inputs, old.outputs)
    assert [node for node in new.nodes if node] == list(old.nodes)
    assert (new.nodes[0], new.nodes[-1]) == ("", "")  # to INT8, and back
    signatures = (open_interpreter(each, 1, where="model").get_signature_list() for each in (before, data))
    assert next(signatures) == next(signatures)


def test_the_same_network_and_images_give_the_same_bytes() -> None:
    built = network()
    assert quantized(to_tflite(built), batches(built)) == quantized(to_tflite(built), batches(built))


def test_outputs_stay_near_those_in_fp32() -> None:
    built = network()
    data = quantized(to_tflite(built), batches(built))
    with OrtRunner(built) as reference:
        for feeds in batches(built, 4):
            wanted = reference.run(feeds)["y"]
            assert np.abs(run(data, feeds)["y"] - wanted).max() <= 0.05 * np.abs(wanted).max()


def test_chosen_layers_stay_in_fp32() -> None:
    built = network()
    whole, data = (quantized(to_tflite(built), batches(built), kept) for kept in ((), ("grouped",)))
    assert {name for name, kind in layer_formats(data).items() if kind == "fp32"} == {"grouped"}
    feeds = fed(built)
    with OrtRunner(built) as reference:
        wanted = reference.run(feeds)["y"]
    assert not np.array_equal(run(whole, feeds)["y"], run(data, feeds)["y"])
    np.testing.assert_allclose(run(data, feeds)["y"], wanted, atol=0.05 * np.abs(wanted).max())


def test_ranges_are_those_that_onnx_runtime_sees() -> None:
    """LiteRT's delegate has to give out what lies inside of it."""
    built = network()
    told = {"b", "d", "e"}
    shown = ModelProto()
    shown.CopyFrom(built)
    shown.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in told)
    data = to_tflite(built)
    seen = ranges(data, file_record(data), batches(built))
    with OrtRunner(shown) as reference:
        values = [reference.run(feeds) for feeds in batches(built)]
    for name in told:
        assert seen[name]["min"].item() == pytest.approx(min(each[name].min() for each in values), rel=1e-4, abs=1e-5)
        assert seen[name]["max"].item() == pytest.approx(max(each[name].max() for each in values), rel=1e-4, abs=1e-5)


class Decoder(nn.Module):
    """What detectors and U-Nets add to convolutions: skips, upsampling, joining, and activations of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1, groups=4)
        self.up, self.head = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 6, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = F.silu(self.down(x))
        deep = F.leaky_relu(self.deep(fine), 0.1)
        joined = self.head(torch.cat((fine, self.up(deep)), 1))
        return torch.sigmoid(F.interpolate(joined, scale_factor=2, mode="nearest")), F.max_pool2d(deep, 2).flatten(1)


def test_a_decoder_with_two_outputs_is_written_too() -> None:
    torch.manual_seed(0)
    built = with_fixed_sizes(to_onnx(Decoder().eval(), torch.zeros(1, 3, 16, 16), ExportOptions(dynamic_batch=False)))
    data = quantized(to_tflite(built), batches(built))
    assert len(layer_formats(data)) == 4
    feeds = fed(built)
    with OrtRunner(built) as reference:
        for name, wanted in reference.run(feeds).items():
            assert np.abs(run(data, feeds)[name] - wanted).max() <= 0.1 * np.abs(wanted).max()


def test_nothing_to_calibrate_with_is_refused() -> None:
    with pytest.raises(InputError, match="no inputs to calibrate with"):
        quantized(to_tflite(network()), ())


def test_what_the_quantiser_refuses_is_told_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("no such policy\nmore")

    monkeypatch.setattr("edgeprune.exporters.tflite.quantized.quantizer.Quantizer", refuse)
    with pytest.raises(InputError, match="LiteRT's quantiser does not take it: no such policy; pass --precision fp32"):
        quantized(to_tflite(network()), batches(network(), 1))


def test_outputs_beyond_what_calibration_saw_are_not_cut_at_once() -> None:
    built = network()
    data = quantized(to_tflite(built), batches(built))
    further = {name: value * np.float32(1.3) for name, value in fed(built, 3).items()}
    with OrtRunner(built) as reference:
        seen = np.concatenate([reference.run(feeds)["y"] for feeds in batches(built)])
        wanted = reference.run(further)["y"]
    output = open_interpreter(data, 1, where="model").get_tensor_details()
    scales = [
        place["quantization"][0] for place in output if place["name"].startswith("y") and place["quantization"][0]
    ]
    assert scales[0] * 255 == pytest.approx(1.5 * (seen.max() - seen.min()), rel=0.02)
    assert np.abs(run(data, further)["y"] - wanted).max() <= 0.1 * np.abs(wanted).max()
