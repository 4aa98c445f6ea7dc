"""Bad input through the command line: exit 1, one line that says what, where, expected and remedy, nothing written."""

from __future__ import annotations

import pickle  # noqa: TID251  # to make what must be refused
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fresh_imports import failed_imports
from onnx import TensorProto, helper
from torch import nn

import edgeprune
from edgeprune.cli import main
from edgeprune.errors import InputError
from edgeprune.zoo import build

Run = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the CLI, and returns the one line that it must print; checks the exit code and that nothing is written."""

    def run(*arguments: object, out: Path | None = None, code: int = 1) -> str:
        place = out or tmp_path / "out"
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        flags = [] if arguments[0] in ("profile", "run", "inspect", "report", "eval", "list") else ["-o", str(place)]
        assert main([*map(str, arguments), *flags, "--quiet"]) == code
        captured = capsys.readouterr()
        assert sorted(tmp_path.rglob("*")) == before
        lines = captured.err.strip().splitlines()
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("edgeprune: ")
        assert "Traceback" not in captured.err
        return lines[0]

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "resnet8.pt"
    torch.manual_seed(0)
    torch.save(build("resnet8").model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def grouped_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "grouped.onnx"
    weight = helper.make_tensor("w", TensorProto.FLOAT, (4, 2, 1, 1), np.ones(8).tolist())
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="c", group=2)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, 8, 8])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


# -- checkpoints -------------------------------------------------------------------------------------------------------
def test_a_missing_checkpoint(refused: Run, tmp_path: Path) -> None:
    assert "no such file" in refused("export", tmp_path / "nowhere.pt", "--arch", "resnet8").lower()


def test_a_truncated_checkpoint(refused: Run, checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.pt"
    path.write_bytes(checkpoint.read_bytes()[:5000])
    assert "short.pt" in refused("export", path, "--arch", "resnet8")


def test_an_empty_checkpoint(refused: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    assert "empty" in refused("export", tmp_path / "empty.pt", "--arch", "resnet8")


@pytest.mark.parametrize("content", [b"hello, this is text\n", b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_a_file_that_is_no_checkpoint(refused: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.pt").write_bytes(content)
    assert "checkpoint" in refused("export", tmp_path / "other.pt", "--arch", "resnet8")


def test_a_pickled_module_is_refused_with_the_way_out(refused: Run, tmp_path: Path) -> None:
    torch.save(nn.Conv2d(3, 3, 3), tmp_path / "module.pt")
    assert "state_dict()" in refused("export", tmp_path / "module.pt", "--arch", "resnet8")


def test_code_in_a_pickle_is_never_run(refused: Run, tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (marker.touch, ())

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "plain.pt"):
        refused("export", tmp_path / name, "--arch", "resnet8")
    assert not marker.exists()


def test_the_wrong_architecture_for_a_checkpoint(refused: Run, checkpoint: Path) -> None:
    line = refused("export", checkpoint, "--arch", "resnet20")
    assert "resnet8" in line
    assert "torchvision" not in line


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(refused: Run, tmp_path: Path, value: float) -> None:
    state = build("resnet8").model.state_dict()
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    torch.save(state, tmp_path / "bad.pt")
    assert "layer2.0.conv1.weight" in refused("export", tmp_path / "bad.pt", "--arch", "resnet8")


def test_a_file_that_is_not_there_is_not_told_to_need_a_place_to_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(tmp_path / "nothere.onnx")]) == 1
    assert "nothere.onnx: no such file" in capsys.readouterr().err


def test_neither_checkpoint_nor_random_weights(refused: Run, checkpoint: Path) -> None:
    assert "--random-init" in refused("export", "--arch", "resnet8")
    assert "--random-init" in refused("export", checkpoint, "--arch", "resnet8", "--random-init")


# -- what to prune -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("groups", ["0", "-4", "1"])
def test_group_counts_that_group_nothing(refused: Run, checkpoint: Path, groups: str) -> None:
    assert "--groups" in refused("prune", checkpoint, "--arch", "resnet8", f"--groups={groups}")


def test_groups_that_divide_no_layer(refused: Run, checkpoint: Path) -> None:
    line = refused("prune", checkpoint, "--arch", "resnet8", "--groups", "7")
    assert "7" in line
    assert "--groups" in line


def test_groups_that_divide_some_layers_leave_the_others_dense(checkpoint: Path, tmp_path: Path) -> None:
    out, result = tmp_path / "out", tmp_path / "result.json"
    # fmt: off
    assert main(["prune", str(checkpoint), "--arch", "resnet8", "--groups", "32", "--rate", "0.5", "-o", str(out),
                 "--json", str(result), "--quiet"]) == 0
    # fmt: on
    import json

    layers = {layer["name"]: layer for layer in json.loads(result.read_text())["layers"]}
    assert layers["layer1.0.conv1"]["groups"] == 1
    assert "16 filters cannot be divided into 32" in layers["layer1.0.conv1"]["note"]
    assert layers["layer3.0.conv2"]["groups"] == 32


@pytest.mark.parametrize("rate", ["0", "1", "-0.5", "1.5", "nan"])
def test_rates_out_of_range(refused: Run, checkpoint: Path, rate: str) -> None:
    assert "--rate" in refused("prune", checkpoint, "--arch", "resnet8", f"--rate={rate}")


@pytest.mark.parametrize(
    ("method", "flag", "remedy"),
    [
        ("sfp", "--tickets", "it is for tmi-gkp"),
        ("gconv", "--tickets", "it is for tmi-gkp"),
        ("fpgm", "--no-share-partitions", "it is for tmi-gkp, gconv"),
    ],
)
def test_flags_that_a_method_does_not_look_at(
    refused: Run, checkpoint: Path, tmp_path: Path, method: str, flag: str, remedy: str
) -> None:
    given = (flag, tmp_path) if flag == "--tickets" else (flag,)
    said = refused("prune", checkpoint, "--arch", "resnet8", "--method", method, *given)
    assert f"{method} takes no {flag}; leave it out; {remedy}" in said
    options = {"tickets": tmp_path} if flag == "--tickets" else {"share_partitions": False}
    with pytest.raises(InputError, match=f"{method} takes no {flag}"):
        edgeprune.prune(build("resnet8").model, torch.zeros(1, 3, 32, 32), method=method, **options)


@pytest.mark.parametrize("flags", [("--rate", "0.5"), ("--layer-rate", "layer1.*=0.5")])
def test_a_rate_beside_the_network_to_squeeze_into(refused: Run, flags: tuple[str, str]) -> None:
    words = ("train", "--arch", "resnet8-w24", "--data", "digits", "--epochs", "1", "--method", "csgd")
    said = refused(*words, "--set", "squeeze_to=resnet8", *flags)
    assert f"both {flags[0]} and --set squeeze_to say how much to prune" in said


def test_a_rate_that_leaves_no_kernel(refused: Run, checkpoint: Path) -> None:
    assert "rate" in refused("prune", checkpoint, "--arch", "resnet8", "--rate", "0.999")


def test_unknown_names_suggest_the_nearest(refused: Run, checkpoint: Path, grouped_onnx: Path) -> None:
    assert "resnet" in refused("prune", checkpoint, "--arch", "resnet9")
    assert "tmi-gkp" in refused("prune", checkpoint, "--arch", "resnet8", "--method", "tmi-gpk")
    assert "torchvision:resnet50" in refused("export", "--arch", "resnet50", "--random-init")
    assert "cpu" in refused("profile", grouped_onnx, "--target", "cpuu")
    assert "raspberry-pi-4" in refused("split", grouped_onnx, "--devices", "2", "--device-profile", "rasberry-pi4")
    assert "alpha" in refused("prune", checkpoint, "--arch", "resnet8", "--set", "alhpa=1")
    assert "conv1" in refused("prune", checkpoint, "--arch", "resnet8", "--skip", "conv99")


def test_settings_of_the_wrong_type(refused: Run, checkpoint: Path) -> None:
    assert "alpha" in refused("prune", checkpoint, "--arch", "resnet8", "--set", "alpha=much")
    assert "NAME=VALUE" in refused("prune", checkpoint, "--arch", "resnet8", "--set", "alpha")


@pytest.mark.parametrize("align", ["0", "-4", "x", "1.5", "4096"])
def test_alignments_that_make_no_sense(refused: Run, checkpoint: Path, align: str) -> None:
    assert "--align" in refused("prune", checkpoint, "--arch", "resnet8", f"--align={align}")
    assert "--align" in refused("prune", checkpoint, "--arch", "resnet8", "--method", "sfp", f"--align={align}")


def test_the_masks_of_a_masked_checkpoint_take_no_alignment(refused: Run, checkpoint: Path) -> None:
    assert "--align 8" in refused("prune", checkpoint, "--arch", "resnet8", "--method", "masked", "--align", "8")


# -- tickets -----------------------------------------------------------------------------------------------------------
def test_tickets_that_are_none(refused: Run, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tickets"
    given = ("prune", checkpoint, "--arch", "resnet8", "--groups", "4", "--tickets", folder)
    assert "tickets" in refused(*given)
    folder.mkdir()
    assert "tickets" in refused(*given)
    shutil.copy(checkpoint, folder / "epoch_300.pt")
    assert "earlier epoch" in refused(*given)
    torch.save(build("resnet14").model.state_dict(), folder / "epoch_1.pt")
    assert "epoch_1.pt" in refused(*given)


# -- output ------------------------------------------------------------------------------------------------------------
def test_output_folders_that_cannot_be_used(refused: Run, checkpoint: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("precious")
    given = ("prune", checkpoint, "--arch", "resnet8")
    assert "not empty" in refused(*given, out=full)
    assert "not a bundle" in refused(*given, "--overwrite", out=full)
    assert "not a folder" in refused(*given, out=full / "thesis.txt")
    assert "cannot be written" in refused(*given, out=full / "thesis.txt" / "below")


# -- ONNX files --------------------------------------------------------------------------------------------------------
def test_onnx_files_that_are_none(refused: Run, grouped_onnx: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    assert "no such file" in refused("split", path, "--devices", "2").lower()
    for size in (0, 60):
        path.write_bytes(grouped_onnx.read_bytes()[:size])
        assert "model.onnx" in refused("split", path, "--devices", "2")
        assert "model.onnx" in refused("profile", path)


def test_an_onnx_file_of_an_unknown_opset(refused: Run, grouped_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(grouped_onnx)
    model.opset_import[0].version = 999
    (tmp_path / "future.onnx").write_bytes(model.SerializeToString())
    assert "opset" in refused("profile", tmp_path / "future.onnx")


def test_an_onnx_file_without_a_convolution(refused: Run, grouped_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(grouped_onnx)
    model.graph.node[0].CopyFrom(helper.make_node("Relu", ["x"], ["y"]))
    del model.graph.initializer[:]
    onnx.save(model, tmp_path / "relu.onnx")
    for verb in (("profile",), ("split", "--devices", "2")):
        assert "convolution" in refused(verb[0], tmp_path / "relu.onnx", *verb[1:])


def test_a_split_that_does_not_pay_is_refused_with_the_figures(
    refused: Run, grouped_onnx: Path, tmp_path: Path
) -> None:
    told = refused("split", grouped_onnx, "--devices", "2", code=3)
    assert "device0 alone" in told
    assert "--force" in told
    pruned = refused("export", grouped_onnx, "--force", code=1)
    assert "--devices" in pruned
    slow = tmp_path / "slow.toml"
    slow.write_text('[[device]]\nname = "a"\n[[device]]\nname = "b"\nmemory_mb = 0.0001\n')
    assert "a alone" in refused("split", grouped_onnx, "--devices", slow, code=3)
    slow.write_text('[[device]]\nname = "a"\nmemory_mb = 0.0001\n')
    assert "0.0001 MB" in refused("split", grouped_onnx, "--devices", slow)


def test_a_model_without_layers_cannot_be_split(refused: Run, grouped_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(grouped_onnx)
    model.graph.node[0].op_type = "ConvTranspose"
    onnx.save(model, tmp_path / "other.onnx")
    assert "'c' is ConvTranspose" in refused("split", tmp_path / "other.onnx", "--devices", "2")


@pytest.mark.parametrize("devices", ["0", "-1", "many"])
def test_device_counts_that_make_no_sense(refused: Run, grouped_onnx: Path, devices: str) -> None:
    assert "devices" in refused("split", grouped_onnx, f"--devices={devices}")


@pytest.mark.parametrize("target", ["cuda", "tensorrt", "openvino"])
def test_a_provider_that_is_not_here(refused: Run, grouped_onnx: Path, target: str) -> None:
    import onnxruntime

    if any(target in provider.lower() for provider in onnxruntime.get_available_providers()):
        pytest.skip(f"{target} is here")
    assert "ExecutionProvider" in refused("profile", grouped_onnx, "--target", target)


def test_inputs_that_do_not_fit(refused: Run, grouped_onnx: Path, tmp_path: Path) -> None:
    flags = ["--devices", "2", "--force", "-o", str(tmp_path / "split"), "--quiet"]
    assert main(["split", str(grouped_onnx), *flags]) == 0
    given = ("run", tmp_path / "split", "--output", tmp_path / "y.npy", "--input")
    assert "cannot be read" in refused(*given, tmp_path / "nowhere.npy")
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 8, 8), np.float32))
    assert "(1, 3, 8, 8)" in refused(*given, tmp_path / "x.npy")
    (tmp_path / "text.npy").write_text("no array")
    assert "not an array" in refused(*given, tmp_path / "text.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "not an array" in refused(*given, tmp_path / "objects.npy")


def test_folders_that_are_no_bundle(refused: Run, tmp_path: Path) -> None:
    for verb in ("profile", "report", "inspect"):
        assert "bundle" in refused(verb, tmp_path)
    assert "bundle" in refused("export", tmp_path, "--arch", "resnet8")


def test_data_that_is_not_there(refused: Run, checkpoint: Path, tmp_path: Path) -> None:
    given = ("prune", checkpoint, "--arch", "resnet8", "--groups", "4")
    assert "--data" in refused(*given, "--finetune-epochs", "1")
    assert "--data" in refused(*given, "--max-drop", "1")
    assert "digits" in refused(*given, "--data", "digit")
    assert "nowhere" in refused(*given, "--data", f"imagefolder:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--align", "foo"), "--align 'foo' is no block"),
        (("--set", "nosuch=1"), "unknown setting of tmi-gkp 'nosuch'"),
        (("--set", "alpha=x"), "--set alpha=x cannot be read"),
        (("--device-profile", "nosuch"), "unknown device profile 'nosuch'"),
        (("--method", "nosuch"), "unknown method 'nosuch'"),
        (("--tickets", "nowhere"), "nowhere: no such folder"),
        (("--data", "nosuch"), "unknown data source 'nosuch'"),
        (("--data", "nowhere.py:f"), "nowhere.py: no such file"),
        (("--data", "digits", "--finetune-epochs", "1", "--batch-size", "1"), "batch size 1"),
        (("--num-classes", "0"), "0 classes"),
        (("--data", "digits", "--max-drop", "nan"), "--max-drop nan"),
        (("--groups", "1"), "--groups 1"),
        (("--arch", "nowhere.py:f"), "nowhere.py: no such file"),
        (("-o", "/dev/null/out"), "/dev/null/out: "),
        (("--json", "/dev/null/x.json"), "/dev/null/x.json: cannot be written"),
        (("--devices", "nosuch"), "--devices 'nosuch' is neither a number nor a file"),
        (("--opset", "99"), "--opset 99"),
        (("--tune", "--threads", "0"), "--threads 0"),
        (("--parity-inputs", "nowhere.npy"), "nowhere.npy: cannot be read"),
    ],
)
def test_what_the_flags_tell_is_checked_before_anything_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edgeprune.pruning.network.load_network", None)
    monkeypatch.setattr("edgeprune.pruning.pruned.open_pruned", None)
    network = ("--random-init", *(() if "--arch" in flags else ("--arch", "resnet8")))
    out = () if "-o" in flags else ("-o", "out")
    only_export = {"--devices", "--opset", "--tune", "--parity-inputs"} & {*flags}
    for verb in ("export",) if only_export else ("export", "prune"):
        assert main([verb, *network, *out, *flags]) == 1
        told = capsys.readouterr().err
        assert words in told
        assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


CHECKING = (
    "edgeprune.pruning.options",
    "edgeprune.exporters.options",
    "edgeprune.deployment.options",
    "edgeprune.pipeline.export",
)


@pytest.fixture(scope="module")
def failed_without_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    after = "import edgeprune.methods.tmi_gkp.method; assert 'torch' not in sys.modules"
    return failed_imports(CHECKING, tmp_path_factory.mktemp("imports"), after=after)


@pytest.mark.parametrize("module", CHECKING)
def test_checking_the_flags_takes_no_torch(module: str, failed_without_torch: dict[str, str]) -> None:
    assert failed_without_torch.get(module) is None


# -- usage and gates ---------------------------------------------------------------------------------------------------
def test_wrong_usage_is_exit_2(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    for arguments in (
        ["prune", str(checkpoint)],
        ["prune", "x", "-o", "y", "--groops", "3"],
        ["prun"],
        ["list", "x"],
        *(["profile", "x", flag, "y"] for flag in ("--threads", "--batch-size", "--pin", "--iterations")),
        ["profile", "x", "--batch-size", "1.5"],
        ["tune", "x", "--threads", "y"],
    ):
        assert main(arguments) == 2
        assert capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        *((verb, "x", "--seed", "-1") for verb in ("tune", "profile")),
        ("tune", "x", "--batch-size", "0"),
        ("profile", "x", "--threads", "0"),
        ("profile", "x", "--batch-size", "1,0"),
        ("report", "x", "y", "--max-drop", "nan"),
        ("list", "methods", "--json", "/dev/null/x"),
    ],
)
def test_values_out_of_range_are_exit_1(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(list(arguments)) == 1
    assert arguments[-2].removeprefix("--") in (told := capsys.readouterr().err) or "/dev/null/x" in told
    assert told.count("\n") == 1


def test_accuracy_in_batches_of_nothing_is_refused(refused: Run, checkpoint: Path) -> None:
    given = ("eval", checkpoint, "--arch", "resnet8", "--input-size", "32,32", "--data", "digits")
    assert "--batch-size 0 is out of range" in refused(*given, "--batch-size", "0")


def test_a_failed_gate_is_exit_3_and_leaves_no_bundle(refused: Run, checkpoint: Path) -> None:
    line = refused("export", checkpoint, "--arch", "resnet8", "--groups", "4", "--tolerance", "1e-12", code=3)
    assert "parity failed" in line


def test_a_missing_or_wrong_config_file(refused: Run, checkpoint: Path, tmp_path: Path) -> None:
    given = ("prune", checkpoint, "--arch", "resnet8", "--config", tmp_path / "edgeprune.toml")
    assert "no such file" in refused(*given)
    (tmp_path / "edgeprune.toml").write_text("groups = [")
    assert "edgeprune.toml" in refused(*given)


def test_exporting_in_forms_takes_no_contradicting_flags(refused: Run) -> None:
    network = ("export", "--arch", "resnet8", "--random-init", "--groups", "2")
    assert "--as-planned" in refused(*network, "--tune", "--as-planned")
    assert "--threads" in refused(*network, "--threads", "2")
