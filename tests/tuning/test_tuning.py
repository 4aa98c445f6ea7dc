"""Tuning: what is measured decides, what is remembered is not measured again, and nothing slower than dense is taken."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace as replace_options
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_bundle as small
import torch
import torch.nn.functional as F
from msgspec.structs import replace
from onnx import ModelProto

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.names import DENSE_MODEL, MODEL, PROFILE
from edgeprune.bundles.writing import write_manifest
from edgeprune.cli import main
from edgeprune.deployment import lower_bundle
from edgeprune.deployment.lower_bundle import LowerOptions
from edgeprune.devices.device_profile import load_profile
from edgeprune.errors import GateError, InputError
from edgeprune.io import progress
from edgeprune.lowering.forms import DENSE, GROUPED, SPLIT
from edgeprune.lowering.layers import grouped_layers
from edgeprune.lowering.record import FromCache, load_lowering
from edgeprune.onnx_files.model import check_model, load_model
from edgeprune.pipeline.output import Output
from edgeprune.pipeline.profile import profile as profile_bundle
from edgeprune.pipeline.report import report as report_bundle
from edgeprune.pipeline.split import SplitOptions
from edgeprune.pipeline.split import split as split_bundle
from edgeprune.pipeline.tune import tune as tune_bundle
from edgeprune.profiling import environment, profiler
from edgeprune.profiling.profiler import ProfileOptions
from edgeprune.profiling.subject import Subject
from edgeprune.profiling.sweeping.keeping import note_tuned_for_other
from edgeprune.profiling.sweeping.sweep import Sweep
from edgeprune.runners.base import RunOptions
from edgeprune.runners.onnxruntime.runner import OrtRunner
from edgeprune.tuning import cache as cache_module
from edgeprune.tuning import timer, tuner
from edgeprune.tuning.alone import alone
from edgeprune.tuning.cache import CachedTime, TuningCache, default_path
from edgeprune.tuning.keys import structure_key
from edgeprune.tuning.options import TuneOptions
from edgeprune.tuning.tuner import ALL_DENSE, AS_PLANNED, DENSE_NETWORK, POINTWISE, tune

DEVICE = load_profile("x86-avx512")
QUICK = ProfileOptions(warmup=1, iterations=3, fresh_process=False)
BRIEF = replace_options(QUICK, per_layer=False)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real times, but few, however noisy they are."""
    monkeypatch.setattr(timer, "RUNS", 1)
    monkeypatch.setattr(timer, "REPEATS", 1)
    monkeypatch.setattr(tuner, "SECONDS_A_NETWORK", 0.001)


def bundle(tmp_path: Path) -> Path:
    return small.write_bundle(tmp_path / "bundle")


def networks() -> tuple[ModelProto, ModelProto]:
    dense, pruned = map(check_model, small.models())
    return dense, pruned


@pytest.mark.usefixtures("quick")
def test_every_form_and_whole_networks_are_measured() -> None:
    dense, pruned = networks()
    record = tune(pruned, dense, DEVICE, TuneOptions())
    (layer,) = record.layers
    assert set(layer.costs) == {"grouped", "split", "dense"}
    assert all(ms > 0 for ms in layer.costs.values())
    assert record.networks[0].what == DENSE_NETWORK
    assert record.chosen in {network.what for network in record.networks}
    assert record.networks[0].speedup == 1.0
    assert record.chosen_by == "measured"


@pytest.mark.usefixtures("quick")
def test_forms_are_measured_in_the_runtime_that_is_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    dense, pruned = networks()
    cache = tmp_path / "cache.json"
    record = tune(pruned, dense, DEVICE, TuneOptions(target="openvino-native", cache=cache))
    assert record.target == "openvino-native"
    assert record.runtime.startswith("OpenVINO 20")
    (layer,) = record.layers
    assert set(layer.costs) == {"grouped", "split", "dense"}
    assert all(ms > 0 for ms in layer.costs.values())
    assert record.networks[0].what == DENSE_NETWORK
    other = tune(pruned, dense, DEVICE, TuneOptions(cache=cache))
    assert other.runtime.startswith("ONNX Runtime")
    assert other.networks != record.networks  # nothing that was measured in one runtime is taken for the other


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("target", ["litert", "ncnn"])
def test_layers_are_timed_alone_where_the_runtime_does_not_tell_them(target: str) -> None:
    pytest.importorskip({"litert": "ai_edge_litert", "ncnn": "ncnn"}[target], reason=f"no {target} here")
    dense, pruned = networks()
    record = tune(pruned, dense, DEVICE, TuneOptions(target=target))
    assert record.runtime.startswith({"litert": "LiteRT 2", "ncnn": "ncnn 1"}[target])
    (layer,) = record.layers
    refused = {"split"} if target == "ncnn" else set()  # it reads channels in an order that ncnn cannot make
    assert set(layer.costs) == {"grouped", "split", "dense"} - refused
    assert record.networks[0].what == DENSE_NETWORK


def test_a_layer_alone_computes_what_it_does_in_the_network() -> None:
    pruned = networks()[1]
    (layer,) = grouped_layers(pruned).values()
    read = np.random.default_rng(0).standard_normal((2, *layer.source_shape)).astype(np.float32)
    one = alone(pruned, layer, 2)
    with OrtRunner(one, RunOptions()) as runner:
        found = runner.run({layer.source: read})[layer.output]
    shuffled = read[:, np.array([c for group in layer.reads for c in group])]
    expected = F.conv2d(
        torch.from_numpy(shuffled), torch.from_numpy(layer.weight.copy()), padding=1, groups=layer.groups
    )
    np.testing.assert_allclose(found, expected.numpy()[:, list(layer.writes.index)], rtol=1e-4, atol=1e-5)


def test_forms_that_are_faster_alone_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ai_edge_litert", reason="no LiteRT here")
    dense, pruned = networks()
    monkeypatch.setattr(timer, "interleave", _interleaved(1.0, 1.0, 1.0))
    told = {GROUPED: 3.0, DENSE: 1.0, SPLIT: 2.0}
    monkeypatch.setattr(timer.Timer, "alone_times", lambda self, models: {form: told[form] for form in models})
    (layer,) = tune(pruned, dense, DEVICE, TuneOptions(target="litert")).layers
    assert layer.costs == {"grouped": 3.0, "dense": 1.0, "split": 2.0}


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    dense, pruned = networks()
    options = TuneOptions(cache=tmp_path / "cache.json")
    monkeypatch.setattr(timer, "interleave", _interleaved(1.0, 1.0, 1.0))
    first = tune(pruned, dense, DEVICE, options)
    assert first.from_cache == FromCache()
    monkeypatch.setattr(timer, "open_runner", None)  # nothing may be run
    again = tune(pruned, dense, DEVICE, options)
    assert again.from_cache == FromCache(forms=3, networks=len(first.networks))
    assert replace(again, from_cache=FromCache()) == first
    with pytest.raises(TypeError):  # another number of threads is another measurement
        tune(pruned, dense, DEVICE, TuneOptions(threads=2, cache=options.cache))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b'{"schema_version": 1, "machines": {"\xff": {}}}',
        b"[]",
        b'{"schema_version": 1, "machines": {"m": {"k": {"ms": "x"}}}}',
        b'{"schema_version": 9, "machines": {"m": {"k": {"ms": 1}}}}',
        b'{"schema_version": 1, "machines": {"m": {"k": {"ms": -1}}}}',
    ],
)
def test_a_corrupt_or_foreign_cache_counts_as_empty_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cache.json"
    path.write_bytes(content)
    cache = TuningCache.load(path, "m")
    assert cache.times == {}
    cache.times["new"] = CachedTime(2.0)
    cache.save()
    assert TuningCache.load(path, "m").times == {"new": CachedTime(2.0)}
    assert TuningCache.load(path, "another machine").times == {}
    kept = tmp_path / "cache.json.kept"  # it may have been named by mistake
    assert kept.read_bytes() == content if content and b'"ms": -1' not in content else not kept.exists()


def test_two_runs_that_end_at_once_both_keep_what_they_measured(tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    first, second = TuningCache.load(path, "m"), TuningCache.load(path, "m")
    first.times["a"], second.times["b"] = CachedTime(1.0), CachedTime(2.0)
    first.save()
    second.save()
    assert set(TuningCache.load(path, "m").times) == {"a", "b"}


def test_no_file_that_was_named_by_mistake_is_ever_lost(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for text in ("first", "second", "third"):
        path.write_text(text)
        TuningCache(path, "m", {"a": CachedTime(1.0)}).save()
    kept = [path.with_name(f"notes.txt.kept{ending}") for ending in ("", "-2", "-3")]
    assert [one.read_text() for one in kept] == ["first", "second", "third"]


@pytest.mark.parametrize("place", ["file/cache.json", "folder"])
def test_a_cache_that_cannot_be_written_is_told_and_does_not_stop_the_tuning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    said: list[str] = []
    monkeypatch.setattr(cache_module.progress, "note", said.append)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    cache = TuningCache.load(tmp_path / place, "m")
    cache.times["a"] = CachedTime(1.0)
    cache.save()
    assert len(said) == 1
    assert "not remembered" in said[0]
    assert str(tmp_path / place) in said[0]


def test_the_cache_lies_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "edgeprune" / "tuning.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_path() == Path.home() / ".cache" / "edgeprune" / "tuning.json"


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ({DENSE_NETWORK: 10.0, AS_PLANNED: 5.0, ALL_DENSE: 10.0}, AS_PLANNED),
        ({DENSE_NETWORK: 10.0, AS_PLANNED: 12.0, ALL_DENSE: 10.1}, ALL_DENSE),
        ({DENSE_NETWORK: 10.0, AS_PLANNED: 10.05, ALL_DENSE: 10.1}, ALL_DENSE),
        ({DENSE_NETWORK: 10.0, AS_PLANNED: 9.9, ALL_DENSE: 9.8}, ALL_DENSE),
    ],
)
def test_the_fastest_network_is_taken_and_the_dense_form_where_none_beats_the_dense_network(
    monkeypatch: pytest.MonkeyPatch, times: Mapping[str, float], chosen: str
) -> None:
    def measured(self: Any, models: Mapping[str, ModelProto], seconds: float) -> dict[str, CachedTime]:
        return {name: CachedTime(times.get(name, 99.0)) for name in models}

    monkeypatch.setattr(timer.Timer, "_measure", measured)
    monkeypatch.setattr(tuner, "_fastest", lambda costs: GROUPED)
    monkeypatch.setattr(timer, "RUNS", 1)
    dense, pruned = networks()
    profile = load_profile("raspberry-pi-4")  # no cost table: nothing else is proposed
    record = tune(pruned, dense, profile, TuneOptions())
    assert record.chosen == chosen
    assert record.layers[0].form == ("dense" if chosen == ALL_DENSE else "grouped")


@pytest.mark.parametrize(("pointwise_ms", "taken"), [(4.0, True), (4.97, False)])
def test_linear_layers_become_convolutions_where_that_is_clearly_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None, pointwise_ms: float, taken: bool
) -> None:
    def measured(self: Any, models: Mapping[str, ModelProto], seconds: float) -> dict[str, CachedTime]:
        slow = {DENSE_NETWORK: 10.0, ALL_DENSE: 10.0}
        return {name: CachedTime(pointwise_ms if POINTWISE in name else slow.get(name, 5.0)) for name in models}

    monkeypatch.setattr(timer.Timer, "_measure", measured)
    path = bundle(tmp_path)
    tuned, record = tune_bundle(path, LowerOptions(tune=TuneOptions()))
    assert record.pointwise == ((small.HEAD,) if taken else ())
    ops = {node.name: node.op_type for node in load_model(tuned.path(MODEL)).graph.node}
    assert ops[small.HEAD] == ("Conv" if taken else "Gemm")
    assert tuned.manifest.parity is not None
    assert tuned.manifest.parity.passed
    result = profile_bundle(path, None, ("cpu",), QUICK).results[0]
    (head,) = (layer for layer in result.layers if layer.name == small.HEAD)
    assert (head.macs, head.theoretical_speedup) == (small.CHANNELS * small.CLASSES, 1.0)


def test_a_busy_machine_is_told_of_and_nothing_that_it_measured_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy, calls = _interleaved(1.0, 1.0, 5.0, 9.0), []

    def counted(runs: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        calls.append(runs)
        return noisy(runs)

    monkeypatch.setattr(timer, "interleave", counted)
    monkeypatch.setattr(timer, "RUNS", 1)
    dense, pruned = networks()
    options = TuneOptions(cache=tmp_path / "cache.json")
    record = tune(pruned, dense, DEVICE, options)
    assert len(calls) == timer.REPEATS
    assert "the machine was busy" in record.notes[0]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(timer, "interleave", _interleaved(1.0, 1.0, 1.0))
    assert tune(pruned, dense, DEVICE, options).notes == ()


def test_noisy_times_of_an_older_cache_are_measured_anew(tmp_path: Path) -> None:
    cache = TuningCache(tmp_path / "cache.json", "m", {"steady": CachedTime(1.0, 0.02), "noisy": CachedTime(1.0, 0.5)})
    cache.save()
    assert set(TuningCache.load(cache.path, "m").times) == {"steady"}


def test_the_command_tells_once_of_noise_and_of_what_came_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quick: None
) -> None:
    command = ["tune", str(bundle(tmp_path)), "--cache", str(tmp_path / "cache.json")]
    monkeypatch.setattr(timer, "interleave", _interleaved(1.0, 1.0, 5.0, 9.0))
    assert main(command) == 0
    output = capsys.readouterr()
    assert (output.out + output.err).count("the machine was busy") == 1
    monkeypatch.setattr(timer, "interleave", _interleaved(1.0, 1.0, 1.0))
    assert main(command) == 0
    output = capsys.readouterr()
    assert "the machine was busy" not in output.out + output.err
    assert "the cache" not in output.out
    assert main(command) == 0
    assert "From the cache: 3 of layers in their forms and" in (told := capsys.readouterr().out)
    assert "--no-cache" in told


@pytest.mark.parametrize("target", ["tensorrt", "torch-cpu"])
def test_a_target_that_cannot_be_tuned_for_is_told_from_one_that_does_not_exist(target: str) -> None:
    with pytest.raises(InputError, match=f"target {target} is not one that forms can be tuned for") as caught:
        TuneOptions(target=target).check()
    assert "cpu, openvino-native" in str(caught.value)
    with pytest.raises(InputError, match="unknown target 'tensort'"):
        TuneOptions(target="tensort").check()


def _interleaved(*seconds: float) -> Callable[..., dict[str, timer.Measurement]]:
    """What `interleave` would have measured: the same times of every model."""
    return lambda runs, **_: {name: timer.Measurement(name, seconds) for name in runs}


def test_a_layer_that_the_runtime_does_not_tell_of_stays_as_planned() -> None:
    assert tuner._fastest({}) == GROUPED
    assert tuner._fastest({tuner.DENSE: 1.0}) == GROUPED
    assert tuner._fastest({GROUPED: 1.0, tuner.DENSE: 0.999}) == GROUPED
    assert tuner._fastest({GROUPED: 1.0, tuner.DENSE: 0.9}) == tuner.DENSE


def test_a_structure_is_told_by_operations_and_shapes_not_by_names_or_weights() -> None:
    dense, pruned = networks()
    renamed = ModelProto()
    renamed.CopyFrom(pruned)
    for node in renamed.graph.node:
        node.name += "_other"
    weight = next(tensor for tensor in renamed.graph.initializer if tensor.name.endswith("conv1.weight"))
    weight.raw_data = bytes(len(weight.raw_data))
    assert structure_key(renamed) == structure_key(pruned)
    assert structure_key(dense) != structure_key(pruned)


@pytest.mark.usefixtures("quick")
def test_tuning_a_bundle_keeps_the_planned_model_and_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundle(tmp_path)
    planned = (folder / "model.onnx").read_bytes()
    monkeypatch.setattr(timer.Timer, "times", _times_that_prefer(ALL_DENSE))
    tuned, record = tune_bundle(folder, LowerOptions(tune=TuneOptions()))
    assert [layer.form for layer in record.layers] == ["dense"]
    assert not tuned.faults()
    assert not tuned.has(PROFILE), "measured on the model before"
    assert tuned.manifest.parity is not None
    assert tuned.manifest.parity.passed
    x = np.random.default_rng(0).standard_normal((2, 3, small.SIZE, small.SIZE)).astype(np.float32)
    outputs = []
    for model in (planned, folder / "model.onnx", folder / "plain.onnx"):
        with OrtRunner(model) as runner:
            outputs.append(next(iter(runner.run({runner.input_names[0]: x}).values())))
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(outputs[2], outputs[0])


def test_what_was_measured_of_a_model_stays_while_the_model_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(progress, "note", said.append)
    folder = bundle(tmp_path)
    monkeypatch.setattr(timer.Timer, "times", _times_that_prefer(ALL_DENSE))
    report_bundle(folder, ("html", "md"))
    tune_bundle(folder, LowerOptions(tune=TuneOptions()))
    assert said[-1] == (
        "removed profile.json, report.html, report.md, which told of the model before: "
        f"`edgeprune profile {folder}` writes it anew"
    )
    profile_bundle(folder, None, ("cpu",), BRIEF)
    report_bundle(folder, ("html",))
    measured = (folder / PROFILE).read_bytes()
    tune_bundle(folder, LowerOptions(tune=TuneOptions()))
    assert (folder / PROFILE).read_bytes() == measured
    assert not (folder / "report.html").exists(), "it shows how the forms were chosen"
    assert said[-1].startswith("removed report.html, which told of the choice of forms before")
    assert not open_bundle(folder).faults()
    monkeypatch.setattr(timer.Timer, "times", _times_that_prefer(AS_PLANNED))
    tuned, _ = tune_bundle(folder, LowerOptions(tune=TuneOptions()))
    assert not tuned.has(PROFILE)


@pytest.mark.usefixtures("quick")
def test_more_threads_than_cores_are_told_of_but_times_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "usable_cores", lambda: 1)
    monkeypatch.setattr(timer.Timer, "notes", lambda self: ())
    dense, pruned = networks()
    options = TuneOptions(threads=2, cache=tmp_path / "cache.json")
    assert tune(pruned, dense, DEVICE, options).notes == ("2 threads share 1 core",)
    assert (tmp_path / "cache.json").is_file()


@pytest.mark.usefixtures("quick")
def test_tuning_again_begins_with_the_planned_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bundle(tmp_path)
    original = load_model(folder / "model.onnx").SerializeToString(deterministic=True)
    parity = open_bundle(folder).manifest.parity
    for preferred, forms in ((ALL_DENSE, ["dense"]), (ALL_DENSE, ["dense"]), (AS_PLANNED, ["grouped"])):
        with monkeypatch.context() as patch:
            patch.setattr(tuner, "_fastest", lambda costs: GROUPED)
            patch.setattr(timer.Timer, "times", _times_that_prefer(preferred))
            tuned, record = tune_bundle(folder, LowerOptions("raspberry-pi-4", TuneOptions()))
        assert [layer.form for layer in record.layers] == forms
    assert not tuned.has("plain.onnx")
    assert tuned.manifest.parity == parity
    assert load_model(folder / "model.onnx").SerializeToString(deterministic=True) == original


@pytest.mark.usefixtures("quick")
def test_a_lowered_model_outside_the_tolerance_is_refused_and_the_bundle_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeprune.deployment import lower_bundle

    folder = bundle(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(timer.Timer, "times", _times_that_prefer(ALL_DENSE))

    def wrong(model: ModelProto, *forms: Any) -> ModelProto:
        changed = ModelProto()
        changed.CopyFrom(model)
        for tensor in changed.graph.initializer:
            if tensor.name.endswith("conv2.weight"):
                tensor.raw_data = bytes(len(tensor.raw_data))
        return changed

    monkeypatch.setattr(lower_bundle, "as_recorded", wrong)
    with pytest.raises(GateError, match="parity failed"):
        tune_bundle(folder, LowerOptions(tune=TuneOptions()))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_profile_tells_planned_from_executed_macs_and_names_the_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    folder = bundle(tmp_path)
    planned = profile_bundle(folder, None, ("cpu",), QUICK).results[0]
    monkeypatch.setattr(timer.Timer, "times", _times_that_prefer(ALL_DENSE))
    tune_bundle(folder, LowerOptions(tune=TuneOptions()))
    found = profile_bundle(folder, None, ("cpu",), QUICK).results[0]
    assert found.theoretical_speedup == planned.theoretical_speedup, "never counts what a form computes in excess"
    layer = next(layer for layer in found.layers if layer.name == small.MIDDLE)
    assert layer.lowering == "dense"
    assert layer.executed_macs == 2 * layer.macs


def test_tuning_is_advised_where_the_bundle_was_not_tuned_for_just_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    asked: list[bool] = []
    folder, both = bundle(tmp_path), replace_options(BRIEF, batch_sizes=(1, 2))
    monkeypatch.setattr(profiler, "advice", lambda result, *, may_tune, **_: asked.append(may_tune) or ())
    profile_bundle(folder, None, ("cpu",), both)
    assert asked == [True, True]
    tune_bundle(folder, LowerOptions(tune=TuneOptions()))
    asked.clear()
    profile_bundle(folder, None, ("cpu",), both)
    assert asked == [False, True]
    asked.clear()
    profile_bundle(folder / "model.onnx", None, ("cpu",), BRIEF)
    assert asked == [False], "only a bundle can be tuned"


def test_tuning_with_the_profile_of_another_device_says_for_which_it_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    said: list[str] = []
    folder = bundle(tmp_path)
    monkeypatch.setattr(lower_bundle.progress, "note", said.append)
    tune_bundle(folder, LowerOptions(tune=TuneOptions()))
    assert not [text for text in said if "measured on this machine" in text]
    tune_bundle(folder, LowerOptions("raspberry-pi-5", TuneOptions()))
    (told,) = [text for text in said if "measured on this machine" in text]
    assert "raspberry-pi-5 only gives the channel block of padded forms, 4," in told


def test_a_bundle_tuned_elsewhere_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
    said: list[str] = []
    folder = bundle(tmp_path)
    tune_bundle(folder, LowerOptions(tune=TuneOptions()))
    monkeypatch.setattr(progress, "note", said.append)
    profile_bundle(folder, None, ("cpu",), BRIEF)
    assert not [text for text in said if "was tuned on" in text]
    profile_bundle(folder, None, ("cpu",), replace_options(BRIEF, batch_sizes=(2,)))
    assert [text for text in said if f"not here for cpu, threads 1, batch 2: `edgeprune tune {folder} --batch" in text]
    said.clear()
    note_tuned_for_other(Subject.of(folder), Sweep(("cpu", "openvino-native"), (1,), ProfileOptions()))
    (told,) = said
    assert told.endswith(
        ", for cpu, threads 1, batch 1, and not here for openvino-native, threads 1, batch 1: "
        f"`edgeprune tune {folder} --target openvino-native` chooses its layers' forms for that"
    )
    said.clear()
    note_tuned_for_other(Subject.of(folder), Sweep(("torch-cpu",), (1, 2), ProfileOptions()))
    (told,) = said
    assert told.endswith("not here for torch-cpu, threads 1, batch 1; torch-cpu, threads 2, batch 1"), (
        "none to tune for"
    )
    record = json.loads((folder / "lowering.json").read_bytes()) | {"device": "another processor"}
    manifest = open_bundle(folder).manifest
    (folder / "lowering.json").write_text(json.dumps(record))
    write_manifest(folder, manifest)
    profile_bundle(folder, None, ("cpu",), BRIEF)
    assert [text for text in said if "was tuned on another processor" in text]


def test_tuning_a_bundle_of_another_machine_says_so_and_names_the_block_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    said: list[str] = []
    folder = bundle(tmp_path)
    monkeypatch.setattr(lower_bundle.progress, "note", said.append)
    for _ in range(2):
        tune_bundle(folder, LowerOptions(tune=TuneOptions()))
    assert not [text for text in said if "chosen anew" in text]
    record = json.loads((folder / "lowering.json").read_bytes()) | {"device": "another processor"}
    manifest = open_bundle(folder).manifest
    (folder / "lowering.json").write_text(json.dumps(record))
    write_manifest(folder, manifest)
    profile = tmp_path / "wide.toml"
    shipped = resources.files("edgeprune.device_profiles").joinpath("x86-avx512.toml").read_text()
    profile.write_text(shipped.replace("fp32 = 16", "fp32 = 64"))
    tune_bundle(folder, LowerOptions(device_profile=str(profile), tune=TuneOptions()))
    assert [text for text in said if "measured on another processor" in text]
    assert [text for text in said if "1 of 1 grouped layers" in text and "multiples of 64" in text]


def test_a_model_of_fixed_batch_is_tuned_at_that_batch(tmp_path: Path, quick: None) -> None:
    folder = bundle(tmp_path)
    manifest = open_bundle(folder).manifest
    for name, model in zip((DENSE_MODEL, MODEL), small.models(batch=3), strict=True):
        (folder / name).write_bytes(model.SerializeToString())
    write_manifest(folder, manifest)
    _, record = tune_bundle(folder, LowerOptions(tune=TuneOptions()))
    assert record.batch_size == 3
    with pytest.raises(InputError, match="fixed batch of 3"):
        tune_bundle(folder, LowerOptions(tune=TuneOptions(batch_size=2)))


def test_a_split_bundle_is_not_tuned(tmp_path: Path) -> None:
    folder = bundle(tmp_path)
    split, _ = split_bundle(folder, SplitOptions("2", force=True), Output(tmp_path / "split"))
    with pytest.raises(InputError, match="is split already"):
        tune_bundle(split.folder, LowerOptions(tune=TuneOptions()))


def test_a_bundle_without_a_model_is_sent_to_export(tmp_path: Path) -> None:
    folder = bundle(tmp_path)
    manifest = open_bundle(folder).manifest
    (folder / MODEL).unlink()
    write_manifest(folder, manifest)
    with pytest.raises(InputError, match=r"holds no ONNX model yet.*edgeprune export .* --tune"):
        tune_bundle(folder, LowerOptions(tune=TuneOptions()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (LowerOptions(tune=TuneOptions(threads=0)), "--threads 0"),
        (LowerOptions(tune=TuneOptions(batch_size=0)), "--batch-size 0"),
        (LowerOptions(tune=TuneOptions(target="torch-cpu")), "torch-cpu is not one that forms can be tuned for"),
        (LowerOptions("no-such-device"), "unknown device profile"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: LowerOptions, words: str) -> None:
    with pytest.raises(InputError, match=words):
        tune_bundle(bundle(tmp_path), options)


def test_the_lowering_is_read_back(tmp_path: Path, quick: None) -> None:
    folder = bundle(tmp_path)
    _, record = tune_bundle(folder, LowerOptions(tune=TuneOptions()))
    assert load_lowering(folder / "lowering.json") == record


def _times_that_prefer(wanted: str) -> Any:
    def times(self: Any, keys: Mapping[str, str], models: Any, seconds: float) -> dict[str, float]:
        return {name: 1.0 if name == wanted else 2.0 for name in keys}

    return times
