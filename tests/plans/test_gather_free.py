"""Networks that are pruned with --gathers none hold no Gather, whatever the method and the network."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from edgeprune import api
from edgeprune.datasets.images import Dataset
from edgeprune.errors import InputError
from edgeprune.lowering.gathers import count_gathers
from edgeprune.plans.gather_free import needs_gathers
from edgeprune.plans.layout import Demand as Block
from edgeprune.plans.layout import LayoutProblem, Padding, choose_layouts, padding_needs_gather
from edgeprune.zoo import build

EXAMPLE = torch.zeros(1, 3, 32, 32)
CASES = [
    ("resnet8", "gconv", {"groups": 4}),  # zero-channel shortcuts
    ("resnet8-b", "gconv", {"groups": 4}),
    ("resnet8", "fpgm", {"rate": 0.4}),  # branches of which filters are left out
    ("densenet40", "gconv", {"groups": 2, "skip": ["dense3.*"]}),
]


@pytest.mark.parametrize(("arch", "method", "amount"), CASES, ids=lambda value: str(value)[:14])
def test_no_gather_is_left(tmp_path: Path, arch: str, method: str, amount: dict) -> None:
    torch.manual_seed(1)
    network = build(arch, num_classes=10).model
    pruned = api.prune(network, EXAMPLE, method=method, gathers="none", **amount)
    assert pruned.macs.pruned < pruned.macs.dense
    bundle = api.export(pruned, tmp_path / "out", as_planned=True)  # which holds it against the float64 reference
    for name in ("model.onnx", "dense.onnx"):
        assert count_gathers(onnx.load(tmp_path / "out" / name)) == 0
    assert bundle.manifest.gathers.after_fold == 0


def test_what_needs_a_gather_stays_dense_and_says_so() -> None:
    network = build("resnet8", num_classes=10).model
    pruned = api.prune(network, EXAMPLE, method="gconv", groups=4, gathers="none")
    dense = [entry for entry in pruned.plan.layers if "need a Gather" in entry.note]
    assert dense
    assert all(entry.is_dense and entry.name not in pruned.result.recovery for entry in dense)


def test_a_budget_chooses_among_groups_that_need_no_gather(tmp_path: Path) -> None:
    network = build("resnet8", num_classes=10).model
    images = torch.rand(64, *EXAMPLE.shape[1:], generator=torch.Generator().manual_seed(0))
    seen = Dataset("noise", images, torch.zeros(64, dtype=torch.long), (), (0.5,) * 3, (0.25,) * 3)
    pruned = api.prune(
        network, EXAMPLE, method="gkp-cal", budget="macs=0.6", data=seen, heal="none", align=8, gathers="none"
    )
    assert pruned.macs.pruned < 0.65 * pruned.macs.dense
    api.export(pruned, tmp_path / "out", as_planned=True)
    assert count_gathers(onnx.load(tmp_path / "out" / "model.onnx")) == 0


def test_groups_that_share_channels_are_refused() -> None:
    network = build("resnet8", num_classes=10).model
    with pytest.raises(InputError, match="every layer that tmi-gkp puts into groups needs a Gather"):
        api.prune(network, EXAMPLE, method="tmi-gkp", groups=4, gathers="none")


def test_what_to_do_instead_is_something_else() -> None:
    assert "choose --method gconv, whose groups share no channels, or gkp-cal" in str(needs_gathers("tmi-gkp"))
    assert "choose gkp-cal with a --budget; or leave Gathers in" in str(needs_gathers("gconv"))
    assert "--to ncnn" in str(needs_gathers("gconv"))


def test_a_shortcut_hands_on_its_layout() -> None:
    problem = LayoutProblem(
        {"a": 4, "b": 8}, frozenset(), [Block("a", ((1, 3), (0, 2)), 10)], [Padding("a", "b", 2, 2, 10)]
    )
    layouts = choose_layouts(problem)
    assert layouts["b"].index == (0, 1, 3, 5, 2, 4, 6, 7)
    assert not padding_needs_gather(problem.paddings[0], layouts["a"], layouts["b"])
