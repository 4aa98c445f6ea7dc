"""A small bundle without torch: three convolutions, one of them grouped behind a Gather, profiled for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeprune.bundles.manifest import Accuracy, Count, GatherCount, Manifest, ParityRecord
from edgeprune.bundles.names import DENSE_MODEL, LOWERING, MODEL, PLAIN_MODEL, PLAN, PROFILE
from edgeprune.bundles.writing import write_manifest
from edgeprune.io.files import pretty_json
from edgeprune.lowering.forms import DENSE, GROUPED, SPLIT, Form
from edgeprune.lowering.layers import grouped_layers
from edgeprune.lowering.model import lower_model
from edgeprune.lowering.record import LoweringRecord, NetworkTime, layer_choices
from edgeprune.onnx_files.constants import constants
from edgeprune.onnx_files.macs import count_macs
from edgeprune.onnx_files.model import check_model, load_model
from edgeprune.plans.plan import LayerPlan, Plan
from edgeprune.profiling.profiler import ProfileOptions, profile_files
from edgeprune.profiling.subject import Subject

CHANNELS, SIZE, CLASSES, GROUPS, KEPT = 32, 12, 10, 2, 16
STEM, MIDDLE, LAST, HEAD = "stem", "layer1.0.conv1", "layer1.0.conv2", "fc"


def plan(middle: str = MIDDLE) -> Plan:
    """Even filters read the even channels, odd filters the odd ones."""
    halves = (tuple(range(0, CHANNELS, 2)), tuple(range(1, CHANNELS, 2)))
    layers = (
        LayerPlan(STEM, note="the first convolution stays dense unless asked (--include-first)"),
        LayerPlan(middle, filters=halves, inputs=halves),
        LayerPlan(LAST, note="skipped by request"),
        LayerPlan(HEAD, note="linear layers stay dense"),
    )
    return Plan("tmi-gkp", {"alpha": 0.5, "gamma": 0.2}, 0, layers)


def models(middle: str = MIDDLE, batch: int | str = "batch") -> tuple[ModelProto, ModelProto]:
    """The dense network, and the one in which the middle layer is grouped as in the plan."""
    rng = np.random.default_rng(0)
    weights = {
        f"{STEM}.weight": rng.standard_normal((CHANNELS, 3, 3, 3)),
        f"{middle}.weight": rng.standard_normal((CHANNELS, CHANNELS, 3, 3)) / 16,
        f"{LAST}.weight": rng.standard_normal((CHANNELS, CHANNELS, 3, 3)) / 16,
        f"{HEAD}.weight": rng.standard_normal((CLASSES, CHANNELS)),
    }
    dense = {name: value.astype(np.float32) for name, value in weights.items()}
    entry = plan(middle).grouped()[middle]
    full = dense[f"{middle}.weight"]
    kernels = [full[list(f)][:, list(c)] for f, c in zip(entry.filters, entry.inputs, strict=True)]
    pruned = {**dense, f"{middle}.weight": np.concatenate(kernels)}
    gather = entry.reads(CHANNELS).array()
    return _model(dense, middle, batch, 1, None), _model(pruned, middle, batch, GROUPS, gather)


def _model(
    weights: dict[str, NDArray[np.float32]],
    middle: str,
    batch: int | str,
    groups: int,
    gather: NDArray[np.int64] | None,
) -> ModelProto:
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["input", f"{STEM}.weight"], ["a"], STEM, **pads),
        helper.make_node("Relu", ["a"], ["b"], "relu0"),
    ]
    source = "b"
    if gather is not None:
        constants.append(numpy_helper.from_array(gather, "index"))
        nodes.append(helper.make_node("Gather", ["b", "index"], ["g"], f"{middle}.input_gather", axis=1))
        source = "g"
    nodes += [
        helper.make_node("Conv", [source, f"{middle}.weight"], ["c"], middle, group=groups, **pads),
        helper.make_node("Relu", ["c"], ["d"], "relu1"),
        helper.make_node("Conv", ["d", f"{LAST}.weight"], ["e"], LAST, **pads),
        helper.make_node("GlobalAveragePool", ["e"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", f"{HEAD}.weight"], ["output"], HEAD, transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, CLASSES])],
        constants,
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])


def module(which: int) -> Any:
    """The small bundle's dense (0) or pruned (1) network in torch."""
    torch = pytest.importorskip("torch")
    weights = {name: numpy_helper.to_array(tensor).copy() for name, tensor in constants(models()[which]).items()}
    groups = GROUPS if which else 1

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            channels = CHANNELS
            self.stem = torch.nn.Conv2d(3, channels, 3, padding=1, bias=False)
            self.middle = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False, groups=groups)
            self.last = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            self.head = torch.nn.Linear(channels, CLASSES, bias=False)
            layers = {STEM: self.stem, MIDDLE: self.middle, LAST: self.last, HEAD: self.head}
            for name, layer in layers.items():
                layer.weight.data = torch.from_numpy(weights[f"{name}.weight"])
            self.index = torch.from_numpy(weights.get("index", np.arange(channels)))

        def forward(self, x: Any) -> Any:
            x = self.stem(x).relu()
            x = self.middle(torch.index_select(x, 1, self.index.to(x.device))).relu()
            return self.head(self.last(x).mean((2, 3)))

    return Small().eval()


def write_models(folder: Path, middle: str = MIDDLE, batch: int | str = "batch") -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in zip((DENSE_MODEL, MODEL), models(middle, batch), strict=True):
        (folder / name).write_bytes(model.SerializeToString())
    return folder / DENSE_MODEL, folder / MODEL


COSTS = {GROUPED: 0.2, SPLIT: 0.3, DENSE: 0.1}
"""Milliseconds of the middle layer's forms, where nobody measures."""


def lowering(form: Form = DENSE, middle: str = MIDDLE, *, measured: bool = True) -> LoweringRecord:
    """The middle layer in one form, as measured on a processor, or predicted from a cost table."""
    layers = layer_choices(grouped_layers(check_model(models(middle)[1])), {middle: form}, {middle: COSTS})
    predicted = LoweringRecord("predicted", "x86-avx512", 1, 1, "", layers)
    times = (NetworkTime("dense network", 1.0, 1.0), NetworkTime("as planned", 1.25, 0.8))
    found = NetworkTime("fastest forms", 0.5, 2.0)
    if not measured:
        return predicted
    networks, notes = (*times, found), ("the machine was busy",)
    return LoweringRecord("measured", "a processor", 2, 1, "ONNX Runtime 1.31.1", layers, networks, found.what, notes)


def write_lowering(folder: Path, record: LoweringRecord) -> None:
    """Put the record and the model in its forms into a folder that has the model as planned."""
    planned = load_model(folder / MODEL)
    (folder / PLAIN_MODEL).write_bytes(planned.SerializeToString())
    (folder / MODEL).write_bytes(lower_model(planned, record.forms()).SerializeToString())
    (folder / LOWERING).write_bytes(pretty_json(record))


_PROFILES: dict[tuple[str, bytes], bytes] = {}
"""What was measured of the middle layer's name and the forms."""


def _profile(dense: Path, pruned: Path, middle: str, lowered: LoweringRecord | None) -> bytes:
    """The networks' profile, which is measured once in a process: who writes a bundle needs times, but not new ones."""
    key = (middle, pretty_json(lowered) if lowered else b"")
    if key not in _PROFILES:
        options = ProfileOptions(warmup=1, iterations=9, batch_sizes=(1, 4))
        notes = {layer.name: layer.note for layer in plan(middle).layers}
        _PROFILES[key] = pretty_json(profile_files(Subject(pruned, dense, None, lowered, notes), ("cpu",), options))
    return _PROFILES[key]


def write_bundle(
    folder: Path,
    middle: str = MIDDLE,
    *,
    profiled: bool = True,
    partition: bytes = b"",
    lowered: LoweringRecord | None = None,
) -> Path:
    dense, pruned = write_models(folder, middle)
    (folder / PLAN).write_bytes(plan(middle).to_json())
    if lowered:
        write_lowering(folder, lowered)
    if profiled:
        (folder / PROFILE).write_bytes(_profile(dense, pruned, middle, lowered))
    if partition:
        (folder / "partition.json").write_bytes(partition)
    counts = [count_macs(model) for model in models(middle)]
    write_manifest(
        folder,
        Manifest(
            1,
            "0.1.0",
            arch="resnet8",
            method="tmi-gkp",
            settings={"groups": GROUPS, "rate": 0.5},
            seed=0,
            input_shape=(3, SIZE, SIZE),
            num_classes=CLASSES,
            opset=20,
            macs=Count(counts[0].total, counts[1].total),
            params=Count(counts[0].params, counts[1].params),
            parity=ParityRecord(1e-6, 2e-7, 1e-4, True, ("random", "zeros")),
            gathers=GatherCount(2, 1),
            accuracy=Accuracy(98.1, 97.4, 61.0, 360, "digits"),
            environment={"torch": "2.15.0"},
        ),
    )
    return folder
