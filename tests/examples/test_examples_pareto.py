"""The benchmarks of accuracy against latency, beside other tools and on a network made elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import example_modules
import numpy as np
import pytest
import torch
from places import BENCHMARKS

from edgeprune.errors import InputError
from edgeprune.pruning.network import load_network
from edgeprune.pruning.options import NetworkSource
from edgeprune.tuning import timer, tuner


def load(name: str) -> Any:
    return example_modules.load(BENCHMARKS, name)


@pytest.fixture
def pareto(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark with measurements as short as they can be, without packages that may be installed or not."""
    module = load("pareto")
    monkeypatch.setattr(load("torch_pruning_baseline"), "is_installed", lambda: False)
    monkeypatch.setattr(timer, "RUNS", 1)
    monkeypatch.setattr(timer, "REPEATS", 1)
    monkeypatch.setattr(tuner, "SECONDS_A_NETWORK", 0.001)
    return module


def run(module: Any, out: Path, *more: str) -> str:
    checkpoint = out.parent / "resnet8.pt"
    if not checkpoint.is_file():
        torch.save(load_network(NetworkSource("resnet8", random_init=True)).model.state_dict(), checkpoint)
    asked = ["--data", "digits", "--baseline", f"resnet8={checkpoint}", "-o", str(out), "--test-images", "20"]
    module.main([*asked, "--seconds", "0.05", "--budgets", "0.75", *more])
    return (out / "results.md").read_text()


def test_points_are_kept_shown_and_drawn(pareto: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    methods = ("--methods", "fpgm@1,tmi-gkp,onnxsim-l2,tp-magnitude")
    text = run(pareto, out, *methods, "--stages", "none,bn,heal", "--heal", "0.01")
    found = {path.stem for path in (out / "points").iterdir()}
    assert found == {
        "resnet8-dense-1-none", "resnet8-fpgm@1-0.75-none", "resnet8-fpgm@1-0.75-bn", "resnet8-fpgm@1-0.75-heal",
        "resnet8-tmi-gkp-0.75-none", "resnet8-tmi-gkp-0.75-bn", "resnet8-tmi-gkp-0.75-heal",
        "resnet8-onnxsim-l2-0.75-none",
    }  # fmt: skip
    assert "left out: tp-magnitude: not installed: pip install --no-deps torch-pruning==1.6.1" in text
    assert "onnxsim-l2 at 0.75, BatchNorm estimated anew: has no BatchNorm" in text
    assert "onnxsim-l2 at 0.75, healed without labels: the tool that pruned it has no such step" in text
    assert (out / "resnet8.svg").read_text().lstrip().startswith("<?xml")
    for line in text.splitlines():
        if line.startswith(("| fpgm", "| tmi-gkp", "| onnxsim")):
            assert float(line.split("|")[3]) == pytest.approx(0.75, rel=load("our_methods").FARTHEST)

    kept = shutil.copytree(out / "points", tmp_path / "kept")
    monkeypatch.setattr(pareto.Start, "candidate", None)  # nothing may be pruned
    run(pareto, out, *methods, "--stages", "none")
    assert all(path.read_bytes() == (kept / path.name).read_bytes() for path in (out / "points").iterdir())
    run(pareto, out, "--measure-again")
    again = pareto.load_point(out / "points" / "resnet8-tmi-gkp-0.75-bn.json")
    before = pareto.load_point(kept / "resnet8-tmi-gkp-0.75-bn.json")
    assert (again.top1, again.speed.macs) == (before.top1, before.speed.macs)
    assert again.speed != before.speed


def test_what_is_asked_wrongly_is_told(pareto: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for asked, told in (
        (("--methods", "gkp"), "unknown method 'gkp'"),
        (("--methods", "onnxsim-l2@16"), "unknown method 'onnxsim-l2@16'"),
        (("--stages", "2"), "unknown stage '2'"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(pareto, tmp_path / "out", *asked)
        assert told in capsys.readouterr().err


def test_stages_of_one_case_are_of_one_plan(pareto: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = load_network(NetworkSource("resnet8", random_init=True))
    bench = pareto.Bench(pareto.Asked(tmp_path, "digits", (), (), (), "latency", test_images=20), "net", network)
    speed = load("pareto_results").Speed(0.5, 0.5, (0.5, 0.5), 1.0, 9, 0.0, None, "here")
    monkeypatch.setattr(pareto.Bench, "speed", lambda _, case, macs: pareto.msgspec.structs.replace(speed, macs=macs))
    monkeypatch.setattr(pareto, "reestimated", lambda model, _: model)
    found = {}
    for share, stage in ((0.5, "none"), (0.25, "bn")):  # by the clock, pruning again gave another plan
        macs = share * bench.start.macs
        monkeypatch.setattr(pareto.Start, "candidate", lambda *_: pareto.Candidate(network.model, macs, lambda _: None))  # noqa: B023
        bench._case("gkp-cal", 0.8, [stage])
        found[stage] = [(p.stage, p.by, p.speed.macs) for p in load("pareto_results").all_points(tmp_path)]
    assert found["none"] == [("none", "latency", 0.5)]
    assert found["bn"] == [("none", "latency", 0.25), ("bn", "latency", 0.25)]


def test_a_front_leaves_out_what_a_cheaper_point_matches() -> None:
    results = load("pareto_results")
    assert results.front([(1.0, 90), (0.5, 80), (0.7, 79), (0.5, 70), (0.8, 90)]) == [(0.5, 80), (0.8, 90)]
    assert results.envelope([(0.5, 20), (0.6, 22), (0.7, 40), (0.9, 60), (1.0, 90)]) == [(0.5, 20), (1.0, 90)]
    assert results.envelope([(0.5, 20), (0.7, 60), (0.71, 61), (1.0, 90)]) == [(0.5, 20), (0.7, 60), (1.0, 90)]
    curve = [(0.5, 80.0), (0.8, 90.0), (1.0, 92.0)]
    assert results.interpolated(curve, 0.65) == pytest.approx(85)
    assert results.interpolated(curve, 0.9) == pytest.approx(91)
    assert results.interpolated(curve, 0.5) == 80
    assert results.interpolated(curve, 0.4) is None
    assert results.interpolated([(1.0, 92.0)], 1.0) == 92


def test_families_are_compared_at_the_same_latency() -> None:
    results = load("pareto_results")

    def point(method: str, latency: float, top1: float) -> Any:
        speed = results.Speed(latency, latency, (latency, latency), 1.0, 9, 0.0, None, "here")
        return results.Point("net", method, latency, "none", top1, 100, 0.0, speed)

    points = [point("dense", 1.0, 90), point("gkp-cal", 0.6, 82), point("fpgm@1", 0.6, 50), point("tp-fpgm", 0.8, 70)]
    rows = list(results.comparison(points))
    assert "| no training | 0.8 | 86.00 | 70.00 | - | +16.00 | - |" in rows
    assert "| no training | 0.9 | 88.00 | 80.00 | - | +8.00 | - |" in rows
    assert not any("| 0.7 |" in row for row in rows)


@pytest.mark.parametrize("by", ["macs", "latency"])
def test_gkp_cal_alone_is_asked_for_latency(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, asked = load("our_methods"), {}
    monkeypatch.setattr("edgeprune.prune", lambda *_, **given: asked.update(given))
    network = load_network(NetworkSource("resnet8", random_init=True))
    ours.pruned(network, ours.Wanted("gkp-cal", 0.5, by, 16), "images")
    assert asked == {"method": "gkp-cal", "align": 16, "budget": {by: 0.5}, "data": "images", "heal": "none"}
    bench = load("pareto").Bench(load("pareto").Asked(Path(), "", (), (), (), by), "net", network)
    assert bench.point("fpgm@1", 0.5, "none").stem == "net-fpgm@1-0.5-none"
    share = "0.5" if by == "macs" else "latency0.5"
    assert bench.point("gkp-cal@1", 0.5, "heal").stem == f"net-gkp-cal@1-{share}-heal"


def test_a_plan_far_from_what_was_asked_is_refused() -> None:
    ours, network = load("our_methods"), load_network(NetworkSource("resnet8", random_init=True))
    with pytest.raises(InputError, match="comes no nearer to 0.5 of the multiply-adds than 0.711"):
        ours.pruned(network, ours.Wanted("tmi-gkp", 0.5, align=16), None)


def test_layers_whose_widths_zero_padded_shortcuts_fix_are_known() -> None:
    methods = load("pareto_methods")
    network = load_network(NetworkSource("resnet8", random_init=True))
    assert methods.Start(network, None, Path()).fixed == ("conv1", "layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2")
    assert methods.Start(load_network(NetworkSource("resnet8-b", random_init=True)), None, Path()).fixed == ()
    with pytest.raises(InputError, match="no BatchNorm"):
        methods.reestimated(torch.nn.Conv2d(3, 3, 1), None)


def test_lines_of_text_are_the_same_for_the_same_seed_and_every_other_one_is_turned() -> None:
    text = load("text_direction")
    pixels, labels = text.lines(6, seed=3)
    assert pixels.shape == (6, 3, text.HEIGHT, text.WIDTH)
    assert labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert -1 <= pixels.min() < -0.3 < 0.3 < pixels.max() <= 1
    again, _ = text.lines(6, seed=3)
    other, _ = text.lines(6, seed=4)
    assert torch.equal(pixels, again)
    assert not torch.equal(pixels, other)


def test_a_line_is_as_high_as_the_input_and_at_most_as_wide() -> None:
    text = load("text_direction")
    white = np.full((24, 48, 3), 255, np.uint8)
    white[..., 0] = 0
    found = text.normalised(white)
    assert (found[:2, :, :96] == 1).all()
    assert (found[2, :, :96] == -1).all()  # red is last
    assert (found[:, :, 96:] == 0).all()
    assert (text.normalised(np.full((10, 900, 3), 255, np.uint8)) == 1).all()
