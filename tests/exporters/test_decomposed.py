"""The short way through torch's exporter: taken where it can be, with the same graph as the long one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from networks import Concatenating, Mobile, Residual, Shuffled, settled
from onnx import numpy_helper
from torch import Tensor, nn

from edgeprune.exporters import to_onnx
from edgeprune.exporters.decomposed import decomposed
from edgeprune.exporters.function_table import keep_function_table
from edgeprune.exporters.options import ExportOptions
from edgeprune.rewriting.fold import fold
from edgeprune.runners.onnxruntime.runner import OrtRunner
from edgeprune.zoo import build

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
DYNAMIC = ({0: torch.export.Dim("batch")},)


class EveryKind(nn.Module):
    """What is replaced: operations in place, BatchNorm, pooling to one value and to several, dropout, flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.classifier = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8 * 16 + 8, 5)
        self.dropout = nn.Dropout(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(F.hardswish(self.first(x), inplace=True)), inplace=True)
        x = x + self.second(x).mul_(2).relu_()
        parts = [F.adaptive_avg_pool2d(x, size).flatten(1) for size in (4, 1)]
        return self.classifier(self.dropout(torch.cat(parts, dim=1)))


class ReadAfterwards(nn.Module):
    """The convolution's output is read after it was changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x.relu_() + x


class ChangedPart(nn.Module):
    """A part of a tensor is changed in place, and the whole is read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x[:, :2].relu_()
        return x


class ChangedUnder(nn.Module):
    """A tensor is changed in place, and a part of it that was taken before is read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        part = x[:, :2]
        x.relu_()
        return part


def graph_of(model: onnx.ModelProto) -> list[object]:
    """A graph without the names of its values."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    numbers: dict[str, int] = {}

    def told(name: str) -> object:
        held = stored.get(name)
        return numbers.setdefault(name, len(numbers)) if held is None else (held.shape, held.tobytes())

    lines: list[object] = [(value.name, told(value.name), str(value.type)) for value in model.graph.input]
    for node in model.graph.node:
        attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
        name = node.name if node.op_type in ("Conv", "Gemm") else ""
        lines.append((node.op_type, name, [told(n) for n in node.input], [told(n) for n in node.output], attributes))
    return lines + [(value.name, told(value.name), str(value.type)) for value in model.graph.output]


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize(
    "network", [Residual, Concatenating, Mobile, Shuffled, EveryKind, lambda: build("resnet8").model]
)
def test_both_ways_give_one_graph(network: type[nn.Module], dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, options = fold(settled(network()), X).module, ExportOptions(dynamic_batch=dynamic)
    assert decomposed(module, X, DYNAMIC if dynamic else None) is not None
    short = to_onnx.to_onnx(module, X, options)
    monkeypatch.setattr(to_onnx, "decomposed", lambda *_: None)
    assert graph_of(short) == graph_of(to_onnx.to_onnx(module, X, options))


@pytest.mark.parametrize(("network", "is_short"), [(ReadAfterwards, True), (ChangedPart, False), (ChangedUnder, False)])
def test_what_is_changed_in_place_is_changed_for_all_who_read_it(network: type[nn.Module], is_short: bool) -> None:
    torch.manual_seed(0)
    module = network().eval()
    assert (decomposed(module, X, DYNAMIC) is not None) == is_short
    with torch.no_grad():
        expected = module(X).numpy()
    with OrtRunner(to_onnx.to_onnx(module, X)) as runner:
        (found,) = runner.run({"input": X.numpy()}).values()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_norm_that_still_counts_takes_the_long_way() -> None:
    assert decomposed(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train(), X, None) is None


def test_where_the_short_way_fails_the_long_one_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("another torch")

    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    expected = graph_of(to_onnx.to_onnx(module, X))
    monkeypatch.setattr(to_onnx, "decomposed", fails)
    assert graph_of(to_onnx.to_onnx(module, X)) == expected


def test_the_table_of_functions_is_parsed_once() -> None:
    assert keep_function_table()
    from torch.onnx._internal.exporter import _registration

    module = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    for _ in range(2):
        to_onnx.to_onnx(module, X)
    counts = _registration.onnxscript_apis.get_torchlib_ops.cache_info()
    assert counts.misses == 1
    assert counts.hits >= 1


@pytest.mark.parametrize("place", ["torch.onnx.no_such_module", "torch.onnx"])
def test_another_torch_may_have_no_such_table(place: str) -> None:
    assert not keep_function_table(place)
