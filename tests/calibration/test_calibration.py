"""Calibration: what is hidden in a made-up machine is found again, and this machine's own profile is of use."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from estimate_cases import COSTS, DEVICE, SOURCES, Conv, network, rates, relu
from onnx import ModelProto, helper, numpy_helper

from edgeprune.calibration import bench, stopwatch
from edgeprune.calibration.bench import MIB
from edgeprune.calibration.machine import calibrate
from edgeprune.calibration.probes import PROBE, conv_probes
from edgeprune.calibration.stopwatch import REORDERS, OrtStopwatch
from edgeprune.cli import main
from edgeprune.devices.device_profile import DeviceProfile, channel_block_for, list_profiles, load_profile
from edgeprune.devices.figures import Bandwidths, ChannelBlock, Figure, KernelKind, KernelRates, MoveKind
from edgeprune.errors import InputError
from edgeprune.io.toml_files import toml_text
from edgeprune.lowering.costs import predict
from edgeprune.lowering.layers import grouped_layers
from edgeprune.onnx_files.graph import attributes
from edgeprune.onnx_files.model import check_model
from edgeprune.pipeline.profile import calibrate as calibrate_here
from edgeprune.profiling.estimating.estimates import estimate_nodes, total_ms
from edgeprune.profiling.estimating.node_work import conv_kernel
from edgeprune.profiling.measurement import Measurement

RATES: dict[KernelKind, KernelRates] = {
    "spatial": rates(
        {8: 0.5, 16: 0.7, 32: 0.9, 64: 1.0}, by_width={7: 0.7, 14: 0.9, 28: 1.0, 56: 1.1}, by_depth={72: 0.8, 288: 1.0}
    ),
    "pointwise": rates({8: 0.4, 16: 0.6, 32: 0.7, 64: 0.8}, by_depth={8: 0.5, 16: 0.6, 32: 0.8, 128: 1.0}),
    "image": rates({32: 0.6}, by_depth={27: 0.5, 147: 1.0}),
    "depthwise": rates({1: 0.3}, by_width={7: 0.5, 14: 0.7, 28: 1.0, 56: 1.2}),
    "off_block": rates({1: 0.05, 2: 0.1, 4: 0.2, 6: 0.25, 12: 0.3, 20: 0.4}, by_depth={9: 0.5, 36: 0.8, 162: 1.0}),
    "off_block_pointwise": rates({1: 0.05, 2: 0.1, 4: 0.2, 6: 0.3, 12: 0.35, 20: 0.4}),
}
HIDDEN = msgspec.structs.replace(
    DEVICE,
    cores=2,
    channel_block=ChannelBlock(8, *SOURCES),
    peak_gflops_fp32=Figure(18, *SOURCES),
    core_gflops_fp32=Figure(10, *SOURCES),
    memory_gb_per_s=Figure(3, *SOURCES),
    core_gb_per_s=Figure(2, *SOURCES),
    # Caches so fast that convolutions are nothing but their multiply-adds.
    execution=msgspec.structs.replace(
        COSTS,
        dispatch_us=Figure(3, *SOURCES),
        rates=RATES,
        bandwidths={"operation": Bandwidths(dict.fromkeys(MIB, 9e6), *SOURCES)},
    ),
)


class Simulated:
    """A machine that takes as long as its profile says."""

    def __init__(self, profile: DeviceProfile, noise: float = 0.0, settles: int = 0) -> None:
        self.profile, self.noise, self.settles, self.calls = profile, noise, settles, 0

    def nodes(self, models: Mapping[Any, ModelProto], threads: int) -> dict[Any, dict[str, Measurement]]:
        self.calls += 1
        return {key: self._times(model, threads) for key, model in models.items()}

    def runs(self, models: Mapping[Any, ModelProto], threads: int) -> dict[Any, Measurement]:
        return {
            key: self._taken(total_ms(estimate_nodes(model, self.profile, 1, threads)) / 1e3)
            for key, model in models.items()
        }

    def _times(self, model: ModelProto, threads: int) -> dict[str, Measurement]:
        found, reorders = {}, 0.0
        for node in estimate_nodes(model, self.profile, 1, threads):
            start = node.dispatch / max(node.work.launches, 1)  # of one node
            found[node.work.name] = self._taken(node.seconds - node.reorder - start * node.work.reorders)
            reorders += node.reorder + start * node.work.reorders
        return found | ({REORDERS: self._taken(reorders)} if reorders else {})

    def _taken(self, seconds: float) -> Measurement:
        """The fastest is the true one; others are slower by more and more."""
        noise = 0.0 if self.settles and self.calls > self.settles else self.noise
        return Measurement("made up", tuple(seconds * (1 + noise * number) for number in range(5)))


@pytest.fixture(scope="module", autouse=True)
def one_probe_of_memory() -> Iterator[None]:
    """The model whose weights are read from memory, 80 MB of random numbers, is made once."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(bench, "weights_probe", functools.cache(bench.weights_probe))
        yield


@pytest.fixture(scope="module")
def found() -> DeviceProfile:
    return calibrate("found", Simulated(HIDDEN), cores=2)


def test_a_made_up_machines_figures_are_found_again(found: DeviceProfile) -> None:
    hidden, costs = HIDDEN.execution, found.execution
    assert hidden is not None
    assert costs is not None
    assert found.channel_block.fp32 == 8
    assert found.peak_gflops_fp32.value == pytest.approx(18, rel=0.02)
    assert found.core_gflops_fp32 is not None
    assert found.core_gb_per_s is not None
    assert found.memory_gb_per_s.value == pytest.approx(3, rel=0.02)
    assert found.core_gb_per_s.value == pytest.approx(2, rel=0.02)
    assert costs.dispatch_us.value == pytest.approx(3, rel=0.06)  # its nodes compute a little
    assert found.core_gflops_fp32.value == pytest.approx(10, rel=0.02)
    assert {figure.certainty for key, figure in found.figures().items() if not key.startswith("link")} == {"measured"}
    assert all("ONNX Runtime" in f.source for key, f in found.figures().items() if not key.startswith("link"))
    assert not any("noisy" in figure.source for figure in found.figures().values())


@pytest.mark.parametrize("kind", list(RATES))
def test_the_rates_of_every_kind_of_convolution_are_found_again(found: DeviceProfile, kind: KernelKind) -> None:
    assert found.execution is not None
    taken, hidden = found.execution.rates[kind], RATES[kind]
    assert taken.by_filters == pytest.approx(hidden.by_filters, rel=0.02)
    for own, true in ((taken.by_width, hidden.by_width), (taken.by_depth, hidden.by_depth)):
        assert own == pytest.approx(true if true else dict.fromkeys(own, 1.0), rel=0.02)


def test_bandwidths_are_found_by_what_operations_touch() -> None:
    slow: dict[MoveKind, Bandwidths] = {
        "operation": Bandwidths({1: 9, 2: 8, 4: 7, 8: 6, 16: 5, 32: 4}, *SOURCES),
        "gather": Bandwidths({1: 6, 2: 5, 4: 4, 8: 3, 16: 2, 32: 1}, *SOURCES),
        "reorder": Bandwidths({1: 12, 2: 10, 4: 8, 8: 6, 16: 4, 32: 3}, *SOURCES),
    }
    assert HIDDEN.execution is not None
    hidden = msgspec.structs.replace(HIDDEN, execution=msgspec.structs.replace(HIDDEN.execution, bandwidths=slow))
    taken = calibrate("found", Simulated(hidden), cores=1)
    assert taken.execution is not None
    assert taken.execution.bandwidths.keys() == slow.keys()
    for what, table in slow.items():
        assert taken.execution.bandwidths[what].by_mib == pytest.approx(table.by_mib, rel=0.03)
    assert (taken.cores, taken.core_gflops_fp32, taken.core_gb_per_s) == (1, None, None)


def test_a_machine_without_a_layout_of_its_own_has_no_rate_of_reordering(found: DeviceProfile) -> None:
    assert found.execution is not None
    assert found.execution.bandwidths.keys() == {"operation", "gather"}


@pytest.mark.parametrize("block", [1, 2, 4, 8, 16, 32])
def test_the_sweep_finds_every_block(block: int) -> None:
    hidden = msgspec.structs.replace(HIDDEN, channel_block=ChannelBlock(block, *SOURCES))
    assert calibrate("found", Simulated(hidden), cores=1).channel_block.fp32 == block


@pytest.mark.parametrize("block", [4, 8, 16, 32])
def test_every_probe_is_of_the_kind_that_it_stands_for(block: int) -> None:
    for (kind, varied, at), probe in conv_probes(block).items():
        model = check_model(probe.model())
        (node,) = (node for node in model.graph.node if node.name == PROBE)
        (weight,) = (tensor.dims for tensor in model.graph.initializer if tensor.name == "weight")
        groups = attributes(node)["group"]
        assert isinstance(groups, int)
        kernel = conv_kernel(tuple(weight), groups, probe.width, block)
        assert kernel.kind == kind
        assert kernel.fill == 1
        assert {"filters": kernel.filters, "width": kernel.width, "depth": kernel.depth}[varied] == at


def test_noise_is_measured_again_and_told_if_it_stays() -> None:
    settled, restless = Simulated(HIDDEN, noise=0.2, settles=1), Simulated(HIDDEN, noise=0.2)
    steady = calibrate("found", settled, cores=1).figures()
    noisy = calibrate("found", restless, cores=1).figures()
    assert restless.calls > settled.calls
    assert "noisy: the middle half of the times spreads over" in noisy["memory_gb_per_s"].source
    assert "noisy" not in steady["memory_gb_per_s"].source
    assert all(marked.certainty == "measured" for key, marked in noisy.items() if not key.startswith("link"))


@pytest.mark.parametrize("name", [*list_profiles(), ""])
def test_a_profile_that_is_written_is_read_again(found: DeviceProfile, name: str, tmp_path: Path) -> None:
    profile = load_profile(name) if name else found
    path = tmp_path / "mine.toml"
    path.write_text(toml_text(profile))
    assert load_profile(path) == profile


def test_awkward_texts_survive_in_a_profile(found: DeviceProfile, tmp_path: Path) -> None:
    awkward = msgspec.structs.replace(found, description='a "chip" \\ of\n\tmany names: Ü 芯 \x7f')
    (tmp_path / "mine.toml").write_text(toml_text(awkward), encoding="utf-8")
    assert load_profile(tmp_path / "mine.toml") == awkward


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real times, but few."""
    monkeypatch.setattr(stopwatch, "WARMUP", 1)
    monkeypatch.setattr(stopwatch, "RUNS", 4)
    monkeypatch.setattr(bench, "REPEATS", 1)


def test_this_machines_own_profile_is_written_and_used(
    quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, shown = tmp_path / "my-machine.toml", tmp_path / "shown.json"
    assert main(["profile", "--calibrate", "-o", str(path), "--json", str(shown), "--quiet"]) == 0
    mine = load_profile(path)
    assert mine.name == "my-machine"
    assert json.loads(shown.read_text())["channel_block"]["fp32"] == mine.channel_block.fp32
    assert "execution.rates.spatial" in capsys.readouterr().out
    assert channel_block_for("auto", path) == mine.channel_block.fp32
    layers = grouped_layers(check_model(network(Conv(32, 32), Conv(32, 32, 4), channels=32)))
    record = predict(layers, mine)
    assert (record.device, record.chosen_by, record.notes) == ("my-machine", "predicted", ())
    assert record.layers[0].costs["grouped"] > 0


def measured_ms(model: ModelProto) -> float:
    """The fastest of some runs."""
    (taken,) = OrtStopwatch().runs({"": model}, 1).values()
    return min(taken.seconds) * 1e3


def test_estimates_by_this_machines_profile_are_near_what_it_takes(quick: None) -> None:
    """Within a factor of 2. On a machine that others use as well, its speed may change in between: then again."""
    gather = helper.make_node("Gather", ["conv1_relu", "order"], ["moved"], "gather", axis=1)
    layers = (
        Conv(64, 64),
        Conv(64, 128, size=1),
        relu("conv1", "conv1_relu"),
        gather,
        Conv(128, 128, 4),
        relu("conv4", "conv4_relu"),
        Conv(128, 64),
    )
    model = network(*layers, channels=64, side=28)
    model.graph.initializer.append(numpy_helper.from_array(np.random.default_rng(0).permutation(128), "order"))
    check_model(model)
    tried = []
    for _ in range(4):
        profile = calibrate("mine", cores=1)
        tried.append(total_ms(estimate_nodes(model, profile)) / measured_ms(model))
        if 0.5 < tried[-1] < 2:
            return
    pytest.fail(f"estimates over measured times: {tried}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--calibrate"], "expected --calibrate -o FILE.toml"),
        (["model.onnx", "--calibrate", "-o", "mine.toml"], "expected --calibrate -o FILE.toml"),
        (["--calibrate", "-o", "mine.txt"], "mine.txt: cannot be written"),
        (["--calibrate", "-o", "nowhere/mine.toml"], "expected a .toml file in a folder that exists"),
        ([], "no model given"),
        (["model.onnx", "-o", "out"], "--out is for --calibrate"),
        (["model.onnx", "--device-profile", "raspberry-pi-6"], "did you mean raspberry-pi-"),
    ],
)
def test_what_cannot_be_calibrated_or_estimated_is_refused_before_any_work(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["profile", *arguments]) == 1
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_files_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeprune.io.files.os.access", lambda path, mode: False)
    with pytest.raises(InputError, match="expected a file in a folder that you may write to"):
        calibrate_here(tmp_path / "mine.toml")
