"""Random small networks over random devices compute what they compute whole."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper, parser

from edgeprune.devices.device_profile import load_profile
from edgeprune.onnx_files.model import load_model
from edgeprune.partitioning.devices import Device, LinkRate
from edgeprune.partitioning.executor import LocalExecutor
from edgeprune.partitioning.partition import check_partition, load_partition, partition_model, write_partition
from edgeprune.runners.onnxruntime.runner import OrtRunner

PROFILES = ("raspberry-pi-4", "raspberry-pi-5", "x86-avx2", "rk3588")
LAYERS = (
    "grouped",
    "dense",
    "depthwise",
    "residual",
    "concat",
    "relu",
    "pool",
    "silu",
    "gather",
    "norm",
    "gate",
    "pad",
    "cut",
)


@dataclass
class Builder:
    """A network over x (batch, 12, 6, 6), written layer by layer."""

    body: list[str] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    values: list[tuple[str, int]] = field(default_factory=lambda: [("x", 12)])
    """Name and channels of each value of 6x6."""
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.constants)}"
        self.constants[name] = (self.random.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1))).astype(
            np.float32
        )
        return name

    def add(self, text: str, channels: int) -> None:
        name = f"v{len(self.values)}"
        self.body.append(f"{name} = {text}")
        self.values.append((name, channels))

    def layer(self, kind: str, draw: st.DataObject) -> None:
        value, count = self.values[-1]
        if kind == "grouped":
            groups = draw.draw(st.sampled_from([g for g in (2, 3, 4, 6) if count % g == 0]))
            weight, bias = self.weight(24, count // groups, 3, 3), self.weight(24)
            self.add(f"Conv<group={groups}, pads=[1,1,1,1]>({value}, {weight}, {bias})", 24)
        elif kind == "dense":
            out = draw.draw(st.sampled_from([12, 24]))
            self.add(f"Conv({value}, {self.weight(out, count, 1, 1)}, {self.weight(out)})", out)
        elif kind == "depthwise":
            self.add(f"Conv<group={count}, pads=[1,1,1,1]>({value}, {self.weight(count, 1, 3, 3)})", count)
        elif kind in ("residual", "concat"):
            same = [name for name, other in self.values if other == count or kind == "concat"]
            other = draw.draw(st.sampled_from(same))
            if kind == "residual":
                self.add(f"Add({value}, {other})", count)
            elif count + dict(self.values)[other] <= 60:
                self.add(f"Concat<axis=1>({other}, {value})", count + dict(self.values)[other])
        elif kind == "relu":
            self.add(f"Relu({value})", count)
        elif kind == "pool":
            self.add(f"MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({value})", count)
        elif kind == "silu":
            self.add(f"Sigmoid({value})", count)
            self.add(f"Mul({value}, {self.values[-1][0]})", count)
        elif kind == "gather":
            name = f"o{len(self.constants)}"
            self.constants[name] = np.asarray(draw.draw(st.permutations(range(count))))
            self.add(f"Gather<axis=1>({value}, {name})", count)
        elif kind == "pad":
            name, (front, back) = f"o{len(self.constants)}", draw.draw(st.sampled_from([(4, 8), (0, 1), (12, 0)]))
            self.constants[name] = np.asarray([0, front, 0, 0, 0, back, 0, 0])
            self.add(f"Pad({value}, {name})", count + front + back)
            if back == 1:  # one channel of zeros, and a Gather that repeats it
                name, added = f"o{len(self.constants)}", [count] * 12
                self.constants[name] = np.asarray(draw.draw(st.permutations([*range(count), *added])))
                self.add(f"Gather<axis=1>({self.values[-1][0]}, {name})", count + 12)
        elif kind == "cut":
            bounds = [f"o{len(self.constants) + number}" for number in range(4)]
            self.constants |= dict(zip(bounds, map(np.asarray, ([0], [6], [2], [2])), strict=True))
            self.add(f"Slice({value}, {', '.join(bounds)})", count)
            number = len(self.values)
            self.body.append(f"r{number} = Concat<axis=2>({self.values[-1][0]}, {self.values[-1][0]})")
            self.values[-1] = (f"r{number}", count)
        elif kind == "norm":
            scale, shift, mean = (self.weight(count) for _ in range(3))
            variance = self.weight(count)
            self.constants[variance] = np.abs(self.constants[variance]) + 0.5
            self.add(f"BatchNormalization({value}, {scale}, {shift}, {mean}, {variance})", count)
        elif kind == "gate":
            number = len(self.values)
            self.body.append(f"g{number} = GlobalAveragePool({value})")
            self.body.append(f"h{number} = Conv(g{number}, {self.weight(count, count, 1, 1)})")
            self.add(f"Mul({value}, h{number})", count)

    def model(self, head: bool) -> ModelProto:
        value, count = self.values[-1]
        body, result = " ".join(self.body), "float[batch,c,h,w] y"
        if head:
            weight, bias = self.weight(10, count * 36), self.weight(10)
            body += f" f = Flatten({value}) y = Gemm<transB=1>(f, {weight}, {bias})"
            result = "float[batch,c] y"
        else:
            body += f" y = Identity({value})"
        text = f'<ir_version: 9, opset_import: ["" : 20]> g (float[batch,12,6,6] x) => ({result}) {{ {body} }}'
        model = parser.parse_model(text)
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in self.constants.items())
        return model


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_network_over_any_devices_computes_what_it_computes_whole(data: st.DataObject) -> None:
    builder = Builder()
    builder.layer("grouped", data)
    for kind in data.draw(st.lists(st.sampled_from(LAYERS), max_size=7)):
        builder.layer(kind, data)
    model = builder.model(data.draw(st.booleans()))
    devices = [
        Device(
            f"d{number}",
            load_profile(data.draw(st.sampled_from(PROFILES))),
            link=LinkRate(data.draw(st.sampled_from([10.0, 1e3, 1e6])), data.draw(st.sampled_from([0.0, 0.3]))),
        )
        for number in range(data.draw(st.integers(1, 4)))
    ]
    x = np.random.default_rng(1).standard_normal((2, 12, 6, 6)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        model = load_model(path)
        partition = partition_model(model, devices)
        assert check_partition(partition.manifest, partition.models) == []
        write_partition(partition, folder)
        assert load_partition(folder).manifest == partition.manifest
        with OrtRunner(model) as whole, LocalExecutor(folder) as parts:
            expected, found = whole.run({"x": x})["y"], parts.run({"x": x})["y"]
            moved = parts.last_run.transferred_bytes
    assert np.abs(found - expected).max() <= 1e-5 * max(np.ptp(expected), 1e-6)
    assert moved == 2 * partition.manifest.predicted.bytes_per_inference
