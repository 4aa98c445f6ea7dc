"""The verbs end to end: real checkpoints, bundles from step to step, the same bytes for the same seed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from remembered_exports import remember_exports

import edgeprune
from edgeprune.bundles.bundle import Bundle, open_bundle
from edgeprune.cli import main
from edgeprune.onnx_files.macs import count_macs
from edgeprune.onnx_files.model import load_model
from edgeprune.plans.plan import load_plan
from edgeprune.zoo import build


def run(*arguments: object) -> None:
    assert main([*map(str, arguments), "--quiet"]) == 0, arguments


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    torch.manual_seed(0)
    torch.save({"state_dict": {f"module.{k}": v for k, v in build("resnet8").model.state_dict().items()}}, path)
    return path


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what an export says, or of what it exports: its ONNX files may be those of another one."""
    remember_exports(monkeypatch)


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundle") / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        remember_exports(monkeypatch)
        run("export", checkpoint, "--arch", "resnet8", "--groups", 4, "-o", out)
    return open_bundle(out)


def test_a_bundle_is_sound_and_says_what_the_file_holds(exported: Bundle) -> None:
    assert exported.faults() == []
    manifest = exported.manifest
    assert manifest.macs is not None
    assert manifest.parity is not None
    assert manifest.gathers is not None
    assert count_macs(load_model(exported.path("dense.onnx"))).total == manifest.macs.dense
    planned = "plain.onnx" if exported.has("plain.onnx") else "model.onnx"
    assert count_macs(load_model(exported.path(planned))).total == manifest.macs.pruned
    assert manifest.parity.passed
    assert manifest.gathers.after_fold < manifest.gathers.before_fold
    keys = json.loads((exported.folder / "manifest.json").read_text())
    assert {
        "schema_version", "arch", "method", "settings", "seed", "files", "macs", "params", "parity", "gathers",
    } <= set(keys)  # fmt: skip


def test_no_local_path_is_in_a_bundle(exported: Bundle, checkpoint: Path, repository: Path) -> None:
    for name in exported.manifest.files:
        data = exported.path(name).read_bytes()
        assert str(checkpoint.parent).encode() not in data
        assert str(repository).encode() not in data


def test_the_same_seed_gives_the_same_bytes(exported: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    run("export", checkpoint, "--arch", "resnet8", "--groups", 4, "-o", tmp_path / "again")
    assert open_bundle(tmp_path / "again").manifest.files == exported.manifest.files


def test_prune_then_export_is_the_same_as_export(exported: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    result = tmp_path / "prune.json"
    run("prune", checkpoint, "--arch", "resnet8", "--groups", 4, "-o", tmp_path / "pruned", "--json", result)
    run("export", tmp_path / "pruned", "-o", tmp_path / "out")
    files = open_bundle(tmp_path / "out").manifest.files
    assert {name: files[name] for name in ("model.onnx", "dense.onnx", "plan.json")} == {
        name: exported.manifest.files[name] for name in ("model.onnx", "dense.onnx", "plan.json")
    }
    summary = json.loads(result.read_text())
    assert {"macs", "params", "plan_sha256", "seconds", "peak_rss_mb", "layers"} <= set(summary)
    assert summary["plan_sha256"] == load_plan(tmp_path / "pruned" / "plan.json").sha256()
    assert {"name", "groups", "kept", "seconds", "note"} <= set(summary["layers"][0])


def test_recorded_clusters_serve_another_rate(exported: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    clusters = f"clusters={exported.path('clustering.json')}"
    # fmt: off
    run("prune", checkpoint, "--arch", "resnet8", "--groups", 4, "--rate", 0.75, "--set", clusters,
        "-o", tmp_path / "out")
    # fmt: on
    before, after = load_plan(exported.path("plan.json")), load_plan(tmp_path / "out" / "plan.json")
    assert [layer.filters for layer in before.layers] == [layer.filters for layer in after.layers]
    assert all(after.grouped()[name].kept < entry.kept for name, entry in before.grouped().items())


@pytest.mark.usefixtures("remembered")
def test_independent_clusterings_cost_gathers(tmp_path: Path) -> None:
    torch.manual_seed(1)
    torch.save(build("resnet14").model.state_dict(), tmp_path / "resnet14.pt")
    after = {}
    for flag in ("--share-partitions", "--no-share-partitions"):
        # fmt: off
        run("export", tmp_path / "resnet14.pt", "--arch", "resnet14", "--groups", 4, flag, "--as-planned",
            "-o", tmp_path / flag)
        # fmt: on
        gathers = open_bundle(tmp_path / flag).manifest.gathers
        assert gathers is not None
        after[flag] = gathers.after_fold
    assert after["--share-partitions"] < after["--no-share-partitions"]


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_split_and_unsplit_outputs_agree(exported: Bundle, devices: int, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((3, 3, 32, 32)).astype(np.float32))
    run(
        "split",
        exported.folder,
        "--devices",
        devices,
        "--force",
        "-o",
        tmp_path / "split",
        "--json",
        tmp_path / "split.json",
    )
    for bundle, output in ((exported.folder, "whole.npy"), (tmp_path / "split", "parts.npy")):
        run("run", bundle, "--input", tmp_path / "x.npy", "--output", tmp_path / output)
    whole, parts = np.load(tmp_path / "whole.npy"), np.load(tmp_path / "parts.npy")
    assert np.abs(whole - parts).max() <= 1e-5 * np.abs(whole).max()
    assert open_bundle(tmp_path / "split").faults() == []
    partition = json.loads((tmp_path / "split" / "partition.json").read_text())
    assert {"devices", "stages", "transfers", "predicted"} <= set(partition)
    assert sum(device["macs"] for device in partition["devices"]) >= exported.manifest.macs.pruned  # type: ignore[union-attr]


def test_profile_and_report_stay_in_the_bundle(exported: Bundle, tmp_path: Path) -> None:
    # fmt: off
    run("profile", exported.folder, "--target", "cpu,torch-cpu", "--batch-size", "1,2", "--iterations", 5, "--warmup", 1,
        "--json", tmp_path / "profile.json")
    # fmt: on
    result = json.loads((tmp_path / "profile.json").read_text())
    assert [(r["target"], r["batch_size"]) for r in result["results"]] == [
        ("cpu", 1), ("cpu", 2), ("torch-cpu", 1), ("torch-cpu", 2),
    ]  # fmt: skip
    first = result["results"][0]
    assert first["provider"] == "CPUExecutionProvider"
    assert first["efficiency"] == pytest.approx(first["realistic_speedup"] / first["theoretical_speedup"], rel=1e-3)
    assert {layer["name"] for layer in first["layers"]} == {
        e.name for e in load_plan(exported.path("plan.json")).layers
    }
    run("report", exported.folder, "--format", "html,md,json,csv")
    bundle = open_bundle(exported.folder)
    assert {"profile.json", "report.html", "report.md", "report.json"} <= set(bundle.manifest.files)
    assert bundle.faults() == []


def test_flags_win_over_the_config_file(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('arch = "resnet8"\ngroups = 4\nrate = 0.25\n')
    run("prune", checkpoint, "--config", tmp_path / "c.toml", "--rate", 0.5, "-o", tmp_path / "out")
    settings = open_bundle(tmp_path / "out").manifest.settings
    assert (settings["groups"], settings["rate"]) == (4, 0.5)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [("[export]\ngroups = 4", 1, "is a table"), ("groups = 4.5", 2, "groups"), ("gruops = 4", 2, "--groups")],
)
def test_config_values_are_as_strict_as_flags(
    checkpoint: Path, tmp_path: Path, text: str, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text(text)
    # fmt: off
    arguments = ["prune", str(checkpoint), "--arch", "resnet8", "--config", str(tmp_path / "c.toml"),
                 "-o", str(tmp_path / "out"), "--quiet"]
    # fmt: on
    assert main(arguments) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_users_own_model_is_pruned_but_never_run_from_a_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "mine.py"
    source.write_text(
        "from torch import nn\nINPUT_SHAPE = (3, 16, 16)\n"
        "def net():\n    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(),\n"
        "        nn.Conv2d(32, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))\n"
    )
    arch = f"{source}:net"
    run("prune", "--arch", arch, "--random-init", "--groups", 4, "-o", tmp_path / "pruned")
    assert open_bundle(tmp_path / "pruned").manifest.arch == "mine.py:net"
    assert main(["export", str(tmp_path / "pruned"), "-o", str(tmp_path / "out"), "--quiet"]) == 1
    assert "--arch" in capsys.readouterr().err
    run("export", tmp_path / "pruned", "--arch", arch, "-o", tmp_path / "out")
    assert open_bundle(tmp_path / "out").manifest.parity.passed  # type: ignore[union-attr]


def test_an_accuracy_gate_fails_with_exit_3(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # fmt: off
    arguments = ["prune", str(checkpoint), "--arch", "resnet8", "--groups", "4", "--data", "digits", "--max-drop", "-101",
                 "-o", str(tmp_path / "out"), "--quiet"]
    # fmt: on
    assert main(arguments) == 3
    assert "--max-drop" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_eval_agrees_between_torch_and_onnx_runtime(exported: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    # fmt: off
    run("eval", checkpoint, "--arch", "resnet8", "--data", "digits", "--limit", 40, "--json", tmp_path / "torch.json")
    run("eval", exported.path("dense.onnx"), "--data", "digits", "--limit", 40, "--json", tmp_path / "onnx.json")
    # fmt: on
    in_torch, in_onnx = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("torch", "onnx"))
    assert set(in_torch) >= {"top1", "n", "loss"}
    assert in_torch["n"] == in_onnx["n"] == 40
    assert in_torch["loss"] == pytest.approx(in_onnx["loss"], rel=1e-4)


@pytest.mark.usefixtures("remembered")
@pytest.mark.parametrize(("flags", "is_told"), [((), False), (("--groups", "2"), True), (("--set", "x=1"), True)])
def test_flags_for_pruning_what_is_pruned_already_are_told_to_be_unused(
    exported: Bundle, tmp_path: Path, flags: tuple[str, ...], is_told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(exported.folder), *flags, "-o", str(tmp_path / "out")]) == 0
    assert ("how to prune is not used" in capsys.readouterr().err) == is_told


@pytest.mark.usefixtures("remembered")
@pytest.mark.parametrize(
    ("flags", "expected"),
    [(("--method", "sfp"), "6 of 6 thinner layers"), (("--method", "gconv", "--groups", "2"), "3 of 6 grouped layers")],
)
def test_layers_off_the_block_are_named_when_a_pruned_bundle_is_exported_too(
    checkpoint: Path,
    tmp_path: Path,
    flags: tuple[str, ...],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("edgeprune.pruning.pruned.this_machine_block", lambda: 16)
    run("prune", checkpoint, "--arch", "resnet8", *flags, "-o", tmp_path / "pruned")
    capsys.readouterr()
    assert main(["export", str(tmp_path / "pruned"), "-o", str(tmp_path / "out")]) == 0
    assert expected in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("remembered")
def test_layers_off_the_block_are_those_of_the_device_that_the_network_is_for(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgeprune.pruning.pruned.this_machine_block", lambda: 16)
    flags = ("--groups", "4", "--set", "scheme=spectral", "--device-profile", "raspberry-pi-5")
    for verb, given in (("prune", (str(checkpoint), "--arch", "resnet8", *flags)), ("export", ("pruned", *flags[-2:]))):
        with monkeypatch.context() as there:
            there.chdir(tmp_path)
            assert main([verb, *given, "-o", {"prune": "pruned", "export": "out"}[verb]]) == 0
        told = " ".join(capsys.readouterr().err.split())
        assert "multiple of 4, the block of raspberry-pi-5's fast kernels" in told
        assert "this machine's fast kernels" not in told


@pytest.mark.parametrize("verb", ["eval", "eval-onnx", "prune", "train"])
def test_images_of_some_of_the_classes_come_with_a_note_on_what_their_labels_mean(
    checkpoint: Path, exported: Bundle, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("train/cat", "train/emu", "test/cat", "test/emu"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (32, 32)).save(tmp_path / "images" / folder / f"{number}.png")
    words = {
        "eval": ["eval", checkpoint, "--arch", "resnet8"],
        "eval-onnx": ["eval", exported.path("model.onnx")],
        "prune": ["prune", checkpoint, "--arch", "resnet8", "--groups", 2, "-o", tmp_path / "out"],
        "train": ["train", "--arch", "resnet8", "--epochs", 1, "-o", tmp_path / "out"],
    }[verb]
    assert main([*map(str, words), "--data", f"imagefolder:{tmp_path / 'images'}"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("2 classes and the network 10: labels 0..1 are numbered by the folders present (cat, emu)") == 1


def test_inspect_finds_a_damaged_bundle(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("prune", checkpoint, "--arch", "resnet8", "--groups", 4, "-o", tmp_path / "out")
    run("inspect", tmp_path / "out")
    run("inspect", checkpoint)
    (tmp_path / "out" / "plan.json").write_text("{}")
    assert main(["inspect", str(tmp_path / "out"), "--quiet"]) == 1
    assert "plan.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "verb", [("report",), ("profile", "--iterations", "2"), ("split", "--devices", "2", "--force")]
)
def test_a_changed_bundle_is_never_made_to_look_sound(
    checkpoint: Path, exported: Bundle, tmp_path: Path, verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(exported.folder, folder)
    shutil.copyfile(folder / "dense.onnx", folder / "model.onnx")
    out = ["-o", str(tmp_path / "out")] if verb[0] == "split" else []
    assert main([verb[0], str(folder), *verb[1:], *out, "--quiet"]) == 1
    assert "model.onnx" in capsys.readouterr().err
    assert open_bundle(folder).faults() != []
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 32, 32), np.float32))
    given = ["run", str(folder), "--input", str(tmp_path / "x.npy"), "--quiet", "--output"]
    assert main([*given, str(tmp_path / "y.npy")]) == 1
    assert "SHA-256" in capsys.readouterr().err


def test_the_input_of_a_run_is_never_replaced(
    exported: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = str(tmp_path / "x.npy")
    np.save(x, np.zeros((1, 3, 32, 32), np.float32))
    assert main(["run", str(exported.folder), "--input", x, "--output", x, "--quiet"]) == 1
    assert "replace the input" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--devices=0", "--opset=11", "--opset=99", "--tolerance=-1", "--data=imagenet"])
def test_values_that_cannot_work_are_refused_before_the_method_runs(
    checkpoint: Path, tmp_path: Path, flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgeprune.pruning.pruned.prune_network", lambda *_: pytest.fail("the method ran"))
    arguments = ["export", str(checkpoint), "--arch", "resnet8", "--groups", "4", flag, "-o", str(tmp_path / "out")]
    assert main([*arguments, "--quiet"]) == 1
    assert flag.partition("=")[0].strip("-") in capsys.readouterr().err.replace("imagenet", "data")


def test_the_python_front_door_prunes_a_copy(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build("resnet8").model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(2, 3, 32, 32)
    pruned = edgeprune.prune(model, x, groups=4, settings={"schemes": ["spectral"]})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    bundle = edgeprune.export(pruned, tmp_path / "out")
    session = onnxruntime.InferenceSession(bundle.path("model.onnx"))
    with torch.no_grad():
        expected = pruned.model(x).numpy()
    assert np.abs(session.run(None, {"input": x.numpy()})[0] - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_trained_resnet20_with_its_tickets(data_dir: Path, tmp_path: Path) -> None:
    tickets = data_dir / "tickets_resnet20"
    hashes = []
    for name in ("first", "second"):
        # fmt: off
        run("prune", tickets / "epoch_300.pt", "--arch", "resnet20-stage", "--tickets", tickets, "-o", tmp_path / name,
            "--json", tmp_path / f"{name}.json")
        # fmt: on
        hashes.append(json.loads((tmp_path / f"{name}.json").read_text())["plan_sha256"])
    assert hashes[0] == hashes[1]
    manifest = open_bundle(tmp_path / "first").manifest
    assert manifest.settings["tickets"] == [35, 40, 45, 50, 55, 60, 65, 70]
    assert manifest.macs is not None
    assert 0.56 < manifest.macs.pruned / manifest.macs.dense < 0.58


def test_a_public_checkpoint_is_exported_and_verified(data_dir: Path, tmp_path: Path) -> None:
    # fmt: off
    run("export", data_dir / "checkpoints" / "resnet20-12fca82f.th", "--arch", "resnet20", "--groups", 4,
        "-o", tmp_path / "out")
    # fmt: on
    parity = open_bundle(tmp_path / "out").manifest.parity
    assert parity is not None
    assert parity.max_rel <= 1e-4
