"""The layers of an engine in the words of the model, from what TensorRT 10 and 11 tell of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgeprune.errors import InputError
from edgeprune.runners.tensorrt.layers import EngineLayers

OPS = {"a": "Conv", "b": "Relu", "c": "Conv", "g": "Gather", "t": "Transpose", "n/[1]": "Add"}


@pytest.mark.parametrize(
    ("layer", "original", "op_type"),
    [
        ({"Name": "k", "LayerType": "fusion", "Metadata": "[ONNX Layer: b]\x1f[ONNX Layer: a]"}, "a", "Conv"),
        ({"Name": "k", "LayerType": "fusion", "Metadata": "[ONNX Layer: b]\x1e[ONNX Layer: g]"}, "g", "Gather"),
        ({"Name": "k", "LayerType": "kgen", "Metadata": "[ONNX Layer: n/[1]]\x1f[ONNX Layer: b]"}, "n/[1]", "Add"),
        ({"Name": "k", "LayerType": "myelin", "Metadata": "[ONNX Layer: a]\x1f[ONNX Layer: c]"}, "k", ""),
        ({"Name": "a + b", "LayerType": "CaskConvolution"}, "a", "Conv"),
        ({"Name": "b || c", "LayerType": "x", "Metadata": "[ONNX Layer: gone]"}, "c", "Conv"),
        ({"Name": "t", "LayerType": "Reformat", "Metadata": "[ONNX Layer: t]"}, "t", "Transpose"),
        ({"Name": "cast_1", "LayerType": "Reformat", "Metadata": "[ONNX Layer: cast_1]"}, "", "Reformat"),
        ({"Name": "Reformatting CopyNode for Input Tensor 0 to a + b", "LayerType": "Reformat"}, "", "Reformat"),
        ({"Name": "{ForeignNode[a...c]}", "LayerType": "Myelin"}, "{ForeignNode[a...c]}", ""),
        ("a + b", "a", "Conv"),
        ({"Name": "k", "LayerType": "x", "Metadata": "[ONNX Layer: a]", "Alpha": float("nan")}, "a", "Conv"),
        ("Reformatting CopyNode for Output Tensor 0 to a", "", "Reformat"),
    ],
)
def test_an_engines_layer_is_told_in_the_models_words(layer: Any, original: str, op_type: str) -> None:
    for tensors in ({"Bindings": ["x"]}, {"I/O Tensors": [{"Name": "x"}]}):
        layers = EngineLayers.of(OPS, json.dumps({"Layers": [layer], **tensors}))
        name = layer if isinstance(layer, str) else layer["Name"]
        assert (layers.original(name), layers.op_type(name)) == (original, op_type)


def test_parts_of_one_split_layer_are_one_layer_and_unknown_layers_keep_their_names() -> None:
    split = {name: "Conv" for name in ("conv@0", "conv@1")}
    metadata = "".join(f"[ONNX Layer: {name}]" for name in split)
    layers = EngineLayers.of(split, json.dumps({"Layers": [{"Name": "k", "LayerType": "x", "Metadata": metadata}]}))
    assert layers.original("k") in split
    assert (layers.original("elsewhere"), layers.op_type("elsewhere")) == ("elsewhere", "")
    assert layers.original("conv@0 + relu") == "conv@0"  # not listed: by its name


@pytest.mark.parametrize("text", ["", "[]", '{"Layers": 3}', '{"Layers": [{"Name": 1}]}'])
def test_what_no_version_writes_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match="tells of its layers in an unknown way"):
        EngineLayers.of(OPS, text)
