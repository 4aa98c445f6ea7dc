"""What other runtimes want and cost on this machine, by simulated times and in the runtimes themselves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from onnx import ModelProto

from edgeprune.calibration.probes import PROBE, ConvProbe, chain_probe, concat_probe, gather_probe, without_probe
from edgeprune.calibration.runtimes import FILTERS, runtime_costs
from edgeprune.calibration.stopwatch import K, RuntimeStopwatch
from edgeprune.errors import InputError
from edgeprune.onnx_files.model import check_model
from edgeprune.profiling.measurement import Measurement
from edgeprune.runners.onnxruntime.runner import OrtRunner
from edgeprune.runners.registry import TARGETS

MACS_PER_S = 50e9
NODE_S = 1e-6
ELEMENT_S = 2e-10


class Simulated:
    """A runtime that is half as fast where a group has fewer than 32 filters, and half of that off its block."""

    def __init__(self, block: int, *, gathers: bool = True) -> None:
        self.block, self.gathers = block, gathers

    def nodes(self, models: Mapping[K, ModelProto], threads: int) -> dict[K, dict[str, Measurement]]:
        return {key: {PROBE: Measurement(PROBE, (self.seconds(model),) * 9)} for key, model in models.items()}

    def runs(self, models: Mapping[K, ModelProto], threads: int) -> dict[K, Measurement]:
        return {key: Measurement(str(key), (len(model.graph.node) * NODE_S,) * 9) for key, model in models.items()}

    def seconds(self, model: ModelProto) -> float:
        node = next(node for node in model.graph.node if node.name == PROBE)
        shape = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
        if node.op_type == "Gather":
            if not self.gathers:
                raise InputError("no Gather here")
            return NODE_S + int(np.prod(shape)) * ELEMENT_S
        filters, inputs, *kernel = next(t.dims for t in model.graph.initializer if t.name == "weight")
        groups = shape[1] // inputs
        own = filters // groups
        rate = MACS_PER_S * (1.0 if own >= 32 else 0.5) * (0.5 if own % self.block or inputs % self.block else 1.0)
        return NODE_S + float(groups * own * inputs * np.prod(kernel) * shape[2] * shape[3]) / rate


def test_the_table_is_that_of_the_runtime() -> None:
    costs = runtime_costs("litert", stopwatch=Simulated(16))
    assert costs.channel_block.value == 16
    assert costs.channel_block.certainty == "measured"
    assert costs.convolution
    assert costs.convolution.rates == pytest.approx({16: 0.5, 32: 1.0, 64: 1.0, 128: 1.0})
    assert costs.convolution.off_block_rate == pytest.approx(0.25)
    assert costs.convolution.gather_macs_per_element == pytest.approx(ELEMENT_S * MACS_PER_S)
    assert costs.convolution.macs_per_node == pytest.approx(NODE_S * MACS_PER_S)
    assert "LiteRT" in costs.convolution.source


def test_a_runtime_without_gathers_and_without_a_block() -> None:
    costs = runtime_costs("ncnn", stopwatch=Simulated(1, gathers=False))
    assert costs.channel_block.value == 1
    assert costs.convolution
    assert costs.convolution.gather_macs_per_element is None
    assert set(costs.convolution.rates) == set(FILTERS)


@pytest.mark.parametrize(
    "model",
    [
        ConvProbe(4, 16, 16, 28).model(),
        gather_probe(2**20),
        concat_probe(2**20),
    ],
    ids=["conv", "gather", "concat"],
)
def test_without_its_probe_a_model_is_whole(model: ModelProto) -> None:
    before = model.SerializeToString()
    rest = check_model(without_probe(model))
    assert model.SerializeToString() == before
    assert len(rest.graph.node) == len(model.graph.node) - 1
    with OrtRunner(rest) as runner:
        shape = [axis.dim_value for axis in rest.graph.input[0].type.tensor_type.shape.dim]
        runner.run({"input": np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("target", "precision"), [("cpu", "int8"), ("litert", "fp32"), ("litert", "int8"), ("openvino-native", "int8")]
)
def test_nodes_take_time_in_the_runtimes_themselves(target: str, precision: str) -> None:
    if not TARGETS[target].state().available:
        pytest.skip(f"{target} is not installed")
    stopwatch = RuntimeStopwatch(target, precision)  # type: ignore[arg-type]
    models = {"small": ConvProbe(1, 16, 16, 7).model(), "large": ConvProbe(1, 128, 128, 28).model()}
    taken = stopwatch.nodes(models, 1)
    assert min(taken["large"][PROBE].seconds) > min(taken["small"][PROBE].seconds) > 0
    chains = stopwatch.runs({20: chain_probe(20)}, 1)
    assert min(chains[20].seconds) > 0
