"""Export: what is in the file, what is not, and that it computes the same."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from networks import Concatenating, Mobile, Residual, Shuffled, random_plan, settled
from places import ROOT, SUPPORT
from torch import nn

from edgeprune.deployment.parity import measure_parity, random_inputs, require_parity
from edgeprune.errors import GateError, InputError
from edgeprune.exporters.options import ExportOptions
from edgeprune.exporters.to_onnx import to_onnx
from edgeprune.lowering.gathers import count_gathers
from edgeprune.onnx_files.macs import count_macs
from edgeprune.onnx_files.model import save_onnx
from edgeprune.plans.costs import planned_macs
from edgeprune.rewriting.fold import fold
from edgeprune.rewriting.rewrite import masked, rewrite
from edgeprune.tracing.trace import trace

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def reference_and_folded(network: type[nn.Module]) -> tuple[nn.Module, nn.Module, int]:
    torch.manual_seed(0)
    model = settled(network())
    graph = trace(model, X).graph
    plan = random_plan(graph, 4, overlap=True, share=True)
    pruned = rewrite(model, plan, graph)
    return masked(pruned, model, plan, graph), fold(pruned, X).module, sum(planned_macs(plan, graph).values())


@functools.cache
def _exported(network: type[nn.Module]) -> onnx.ModelProto:
    return to_onnx(reference_and_folded(network)[1], X)


def exported(network: type[nn.Module]) -> onnx.ModelProto:
    """The network's file with all options as by default, which is made once and is each test's own."""
    return copy.deepcopy(_exported(network))


@pytest.mark.parametrize("network", [Residual, Concatenating, Mobile, Shuffled])
def test_the_file_computes_what_the_masked_model_computes(network: type[nn.Module], tmp_path: Path) -> None:
    reference, _, macs = reference_and_folded(network)
    model = exported(network)
    save_onnx(model, tmp_path / "model.onnx")
    inputs = {"one": random_inputs((3, 16, 16), 3, 1), "five": random_inputs((3, 16, 16), 4, 5)}
    reference = reference.double()
    with torch.no_grad():
        references = {name: [reference(torch.from_numpy(x).double()).numpy()] for name, x in inputs.items()}
    record = measure_parity(tmp_path / "model.onnx", inputs, references)
    assert record.max_rel < 1e-5
    require_parity(record)
    assert count_macs(model).total == macs


def test_the_parity_gate_catches_a_wrong_file_and_nan(tmp_path: Path) -> None:
    reference, _, _ = reference_and_folded(Residual)
    save_onnx(exported(Residual), tmp_path / "model.onnx")
    inputs = {"random": random_inputs((3, 16, 16), 0)}
    with torch.no_grad():
        right = reference.double()(torch.from_numpy(inputs["random"]).double()).numpy()
    for wrong in (right * 1.001, np.full_like(right, np.nan)):
        record = measure_parity(tmp_path / "model.onnx", inputs, {"random": [wrong]})
        assert not record.passed
        with pytest.raises(GateError, match="parity failed"):
            require_parity(record)


def test_nodes_carry_layer_names_and_gathers_the_layer_they_serve() -> None:
    reference, _, _ = reference_and_folded(Residual)
    model = exported(Residual)
    names = {node.name for node in model.graph.node}
    assert {name for name, m in reference.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))} <= names
    gathers = [node.name for node in model.graph.node if node.op_type == "Gather"]
    assert len(gathers) == count_gathers(model)
    assert all(name.endswith(("input_gather", "output_gather")) or "pad" in name or "node_" in name for name in gathers)
    assert "a.input_gather" in gathers
    assert not any(node.op_type in ("GatherND", "Transpose", "BatchNormalization") for node in model.graph.node)


def test_no_metadata_of_the_exporter_is_left() -> None:
    data = exported(Residual).SerializeToString()
    for trace_of_origin in (
        str(ROOT).encode(),
        b"site-packages",
        b".py",
        b"pkg.torch",
    ):
        assert trace_of_origin not in data


def test_the_batch_is_dynamic_unless_fixed() -> None:
    _, folded, _ = reference_and_folded(Residual)
    dims = exported(Residual).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["batch", 3, 16, 16]
    dims = to_onnx(folded, X, ExportOptions(dynamic_batch=False)).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims] == [2, 3, 16, 16]


def test_an_opset_that_the_exporter_does_not_reach_is_an_error() -> None:
    _, folded, _ = reference_and_folded(Residual)
    assert to_onnx(folded, X, ExportOptions(opset=18)).opset_import[0].version == 18
    with pytest.raises(InputError, match="asked for opset 17, the exporter wrote opset 18"):
        to_onnx(folded, X, ExportOptions(opset=17))


def test_weights_above_the_limit_go_into_a_file_beside(tmp_path: Path) -> None:
    model = exported(Residual)
    save_onnx(model, tmp_path / "inline.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["inline.onnx"]
    save_onnx(model, tmp_path / "large.onnx", inline_limit=1000)
    assert (tmp_path / "large.onnx.data").stat().st_size > (tmp_path / "large.onnx").stat().st_size
    outputs = [
        onnx.numpy_helper.to_array(i)
        for i in onnx.load(tmp_path / "large.onnx").graph.initializer
        if i.name == "a.weight"
    ]
    assert outputs[0].shape == (16, 10, 3, 3)


def test_the_same_input_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path\n"
        "from test_to_onnx import *\n"
        "save_onnx(to_onnx(reference_and_folded(Residual)[1], X), Path(sys.argv[1]))\n"
    )
    paths = [str(Path(__file__).parent), str(SUPPORT)]
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "there"), *paths], check=True)
    save_onnx(exported(Residual), tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


def test_outputs_near_zero_are_compared_as_activations_round(tmp_path: Path) -> None:
    """Scores of a detector that sees nothing: ONNX Runtime's Sigmoid is off by as much as such a value."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid()).eval()
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
        model[0].bias.fill_(-16)
        inputs = {"random": random_inputs((3, 8, 8), 0)}
        reference = model.double()(torch.from_numpy(inputs["random"]).double()).numpy()
    save_onnx(to_onnx(model.float(), torch.from_numpy(inputs["random"])), tmp_path / "model.onnx")
    record = measure_parity(tmp_path / "model.onnx", inputs, {"random": [reference]})
    assert reference.max() < 2e-7
    assert record.max_abs > 0.1 * reference.max()
    assert record.passed
    assert not measure_parity(tmp_path / "model.onnx", inputs, {"random": [reference + 1e-6]}).passed
