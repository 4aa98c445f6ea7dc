"""Layers that INT8 makes slower stay in FP32, if the whole network is faster so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeprune.onnx_files.model import load_model, save_onnx
from edgeprune.precision.formats import PrecisionRecord
from edgeprune.precision.quantization import quantized_layers
from edgeprune.profiling import mixed_formats
from edgeprune.profiling.mixed_formats import with_faster_layers
from edgeprune.profiling.precise_models import converted_for, is_converted, precise_models
from edgeprune.profiling.samples import load_samples
from edgeprune.profiling.setup import ProfileOptions
from edgeprune.runners.registry import target_named

OPTIONS = ProfileOptions(precision="int8", fp32_where_faster=True)
CHANNELS = 16


def network() -> ModelProto:
    """Three convolutions in a row, the one in the middle in groups."""
    rng = np.random.default_rng(0)
    nodes, held, value = [], [], "x"
    for name, inputs, groups in (("first", 3, 1), ("middle", CHANNELS, 4), ("last", CHANNELS, 1)):
        weight = rng.standard_normal((CHANNELS, inputs // groups, 3, 3)).astype(np.float32) / 4
        held.append(numpy_helper.from_array(weight, f"{name}.weight"))
        nodes.append(helper.make_node("Conv", [value, f"{name}.weight"], [f"{name}.out"], name, group=groups))
        nodes.append(helper.make_node("Relu", [f"{name}.out"], [f"{name}.relu"], f"{name}.relu"))
        value = f"{name}.relu"
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["y"], "flatten"))
    sources = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 24, 24])]
    results = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CHANNELS])]
    graph = helper.make_graph(nodes, "network", sources, results, held)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


@pytest.fixture
def full(tmp_path: Path) -> Path:
    save_onnx(network(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def timed(monkeypatch: pytest.MonkeyPatch, *, slow: tuple[str, ...], faster: bool) -> None:
    """As if these layers took twice as long in INT8."""

    def layer_ms(target: Any, path: Path, full: Path, precision: str, options: Any) -> dict[str, float]:
        return {name: 2.0 if precision == "int8" and name in slow else 1.0 for name in ("first", "middle", "last")}

    monkeypatch.setattr(mixed_formats, "_layer_ms", layer_ms)
    monkeypatch.setattr(mixed_formats, "_is_faster", lambda *given: faster)


def converted(full: Path) -> tuple[Path, tuple[str, ...]]:
    samples, target = load_samples(load_model(full), "", 0), target_named("cpu")
    folder = full.parent / "made"
    folder.mkdir()
    eight = converted_for(target, full, "pruned", OPTIONS, samples, folder)
    return with_faster_layers(target, full, eight, OPTIONS, samples)


def test_the_slower_layer_stays_in_fp32_in_a_file_of_its_own(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, slow=("middle",), faster=True)
    path, kept = converted(full)
    assert kept == ("middle",)
    assert path.name == "model.int8-cpu.onnx"
    assert is_converted(path.name)
    assert quantized_layers(load_model(path)) == 2
    assert quantized_layers(load_model(path.with_name("model.int8.onnx"))) == 3


@pytest.mark.parametrize(("slow", "faster"), [((), True), (("middle",), False)])
def test_all_is_in_int8_where_nothing_else_is_faster(
    slow: tuple[str, ...], faster: bool, full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, slow=slow, faster=faster)
    path, kept = converted(full)
    assert (path.name, kept) == ("model.int8.onnx", ())


def test_the_record_tells_which_layers_were_left_and_compares_that_file(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, slow=("first", "middle"), faster=True)
    samples, folder = load_samples(network(), "", 0), tmp_path / "made"
    folder.mkdir()
    found = precise_models(lambda target: {"pruned": full}, {}, ["cpu"], OPTIONS, samples, folder)
    [record] = found.records
    assert record.file == found.files["cpu"]["pruned"].name == "model.int8-cpu.onnx"
    assert record.kept_fp32 == ("first", "middle")
    assert record.formats == {"first": "fp32", "middle": "fp32", "last": "int8"}
    assert record.other_layers == ()
    assert found.warnings[-1] == "cpu, pruned: 2 layers stayed in fp32, where int8 is slower: first, middle"


def test_a_layer_that_should_be_in_int8_and_is_not_is_still_told() -> None:
    record = PrecisionRecord(
        "cpu", "pruned", "int8", 0.01, 0.1, True, None, 4, "", formats={"a": "fp32", "b": "fp32"}, kept_fp32=("a",)
    )
    assert record.other_layers == ("b",)
    assert len(record.remarks()) == 2


def test_layers_are_timed_in_the_runtime_under_the_names_of_the_network(full: Path) -> None:
    samples, target = load_samples(load_model(full), "", 0), target_named("cpu")
    eight = converted_for(target, full, "pruned", OPTIONS, samples, full.parent)
    for path, precision in ((full, "fp32"), (eight, "int8")):
        times = mixed_formats._layer_ms(target, path, full, precision, OPTIONS)  # type: ignore[arg-type]
        assert set(times) == {"first", "middle", "last"}
        assert min(times.values()) > 0
    assert isinstance(mixed_formats._is_faster(target, eight, eight, OPTIONS), bool)
