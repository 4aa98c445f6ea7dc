"""What is done where nobody says how: gkp-cal on images, to a share of the latency; the fastest network within a drop."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from edgeprune.cli.flags.method import PruneFlags
from edgeprune.datasets.images import Dataset
from edgeprune.devices.device_profile import load_profile
from edgeprune.devices.this_machine import this_machine_block
from edgeprune.errors import GateError, InputError
from edgeprune.io import progress
from edgeprune.methods.budget import RECOMMENDED, Budget
from edgeprune.pipeline.prune import SHARES, fastest
from edgeprune.pruning.layerwise import Calibration
from edgeprune.pruning.options import PruneOptions
from edgeprune.pruning.pruned import Pruned
from edgeprune.zoo import build


def test_images_decide_on_the_method_and_a_budget_on_the_block() -> None:
    plain, with_images = PruneFlags().options(0), PruneFlags().options(0, "imagefolder:x")
    assert (plain.method, plain.request.budget, plain.request.align) == ("tmi-gkp", Budget(), 1)
    assert with_images.method == "gkp-cal"
    assert with_images.request.budget == Budget(latency=RECOMMENDED, is_wish=True)
    assert with_images.request.align == this_machine_block()
    assert not with_images.asks_for_pruning, "a pruned bundle may be evaluated on images"


def test_a_budget_for_a_device_is_on_its_blocks() -> None:
    flags = PruneFlags(method="gkp-cal", budget="latency-ms=8@raspberry-pi-5")
    assert flags.options(0, "digits").request.align == load_profile("raspberry-pi-5").channel_block.fp32
    assert flags.options(0, "digits").device_profile == "raspberry-pi-5"
    with pytest.raises(InputError, match="unknown device profile 'nowhere'"):
        PruneFlags(method="gkp-cal", budget="latency-ms=8@nowhere").options(0, "digits")


def test_who_says_how_much_is_not_given_a_budget() -> None:
    asked = PruneFlags(groups=4).options(0, "digits").request
    assert (asked.groups, asked.budget.is_given, asked.align) == (4, False, 1)
    named = PruneFlags(method="gkp-cal").options(0, "digits").request
    assert (named.budget.is_given, named.align) == (False, 1)
    own = PruneFlags(budget="macs=0.5", align="8").options(0, "digits").request
    assert (own.budget, own.align) == (Budget(macs=0.5), 8)
    assert PruneFlags(method="fpgm").options(0, "digits").method == "fpgm"


@pytest.mark.parametrize("limit", [0.9, 0.62, 0.4, 0.0])
def test_the_fastest_network_that_passes_is_found_and_others_are_not_tried_for_long(limit: float) -> None:
    tried: list[float] = []

    def at(options: PruneOptions) -> Pruned:
        share = options.request.budget.latency
        assert share is not None
        tried.append(share)
        if share < limit:
            raise GateError(f"{share} is too small")
        return cast(Pruned, share)

    options = PruneFlags().options(0, "digits")
    assert cast(Any, fastest(at, options)) == min(share for share in SHARES if share >= limit)
    assert len(tried) <= 4


def test_where_none_passes_the_gate_of_the_slowest_is_what_is_told() -> None:
    def at(options: PruneOptions) -> Pruned:
        raise GateError(f"{options.request.budget.latency} is too small")

    with pytest.raises(GateError, match=f"{SHARES[0]} is too small"):
        fastest(at, PruneFlags().options(0, "digits"))


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (torch.zeros(24, 3, 32, 32), "all hold one value"),
        (torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255, "unlike those that the network"),
    ],
)
def test_images_that_do_not_suit_are_told(pixels: torch.Tensor, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = build("resnet8", num_classes=10).model.train()
    for _ in range(20):  # statistics of what the network is meant for
        model(torch.randn(16, 3, 32, 32))
    images = Dataset("odd", pixels, torch.zeros(24, dtype=torch.int64), (), (0.0,) * 3, (1.0,) * 3)
    with progress.shown():
        Calibration(model.eval(), images).look(["layer1.0.conv1"], lambda layer, moments: None)
    assert words in capsys.readouterr().err
