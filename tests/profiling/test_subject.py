"""What is profiled: a bundle and loose files look alike, and networks without an input size are given one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import small_bundle as small
from onnx import ModelProto

from edgeprune.bundles.names import DENSE_MODEL, MODEL, PLAIN_MODEL
from edgeprune.cli import main
from edgeprune.errors import InputError
from edgeprune.onnx_files.inputs import input_specs
from edgeprune.onnx_files.model import load_model
from edgeprune.pipeline.profile import profile as profile_bundle
from edgeprune.profiling import layers
from edgeprune.profiling.result import ProfileResult, load_profile_result
from edgeprune.profiling.setup import ProfileOptions
from edgeprune.profiling.subject import Subject
from edgeprune.profiling.sweeping.process import ProfileJob, Request
from edgeprune.runners.registry import TARGETS, target_named

QUICK = ProfileOptions(warmup=1, iterations=5, interval=0, fresh_process=False)
FLAGS = ("--warmup", "1", "--iterations", "5", "--interval", "0", "--quiet", "--no-fresh-process")
SIZE = (24, 16)


def test_a_bundle_and_its_files_are_the_same_networks(tmp_path: Path) -> None:
    folder = small.write_bundle(tmp_path / "bundle", profiled=False, lowered=small.lowering())
    whole, files = Subject.of(folder), Subject.of(folder / MODEL, folder / DENSE_MODEL)
    assert whole.networks == files.networks == {"dense": folder / DENSE_MODEL, "pruned": folder / MODEL}
    assert (whole.planned, files.planned) == (folder / PLAIN_MODEL, None)
    assert whole.notes[small.LAST] == "skipped by request"
    assert Subject.of(folder / MODEL).networks == {"pruned": folder / MODEL}
    assert files.modules() == {}
    forms, planned = whole.pair_for(target_named("cpu")), whole.pair_for(target_named("torch-cpu"))
    assert (forms.lowerings, planned.lowerings) == ({small.MIDDLE: "dense"}, {})
    assert forms.planned_macs == small.lowering().planned_macs()
    assert planned.pruned == load_model(folder / PLAIN_MODEL)


def test_linear_layers_that_were_written_anew_have_a_note(tmp_path: Path) -> None:
    record = msgspec.structs.replace(small.lowering(), pointwise=(small.HEAD,))
    folder = small.write_bundle(tmp_path / "bundle", profiled=False, lowered=record)
    assert Subject.of(folder).notes[small.HEAD].startswith("written as a 1x1 convolution")


def test_a_bundle_has_its_own_baseline(tmp_path: Path) -> None:
    folder = small.write_bundle(tmp_path / "bundle", profiled=False)
    with pytest.raises(InputError, match="has its own baseline"):
        Subject.of(folder, folder / DENSE_MODEL)


def test_a_job_comes_out_of_json_as_it_went_in(tmp_path: Path) -> None:
    folder = small.write_bundle(tmp_path / "bundle", profiled=False, lowered=small.lowering())
    subject = replace(Subject.of(folder, arch="mine.py:net"), converted={"cpu": {"pruned": tmp_path / "a.onnx"}})
    request = Request(ProfileJob(subject, "cpu", QUICK, tmp_path / "engines"), shows_progress=True)
    assert Request.decoded(request.encoded()) == request


def with_size(size: tuple[int, int] | tuple[str, str]) -> tuple[ModelProto, ModelProto]:
    """The small networks for images of another size, or of any."""
    models = small.models()
    for model in models:
        for dim, value in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], size, strict=True):
            if isinstance(value, int):
                dim.dim_value = value
            else:
                dim.dim_param = value
    return models


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Writes (dense, pruned) with this input size, under one name in two folders, as people keep them."""

    def write(*size: int | str) -> tuple[Path, Path]:
        paths = []
        for name, model in zip(("dense", "pruned"), with_size(size), strict=True):  # type: ignore[arg-type]
            path = tmp_path / "-".join(map(str, size)) / name / "net.onnx"
            path.parent.mkdir(parents=True)
            path.write_bytes(model.SerializeToString())
            paths.append(path)
        return paths[0], paths[1]

    return write


class TestInputSize:
    """Networks that leave height and width open are measured at the size that is given."""

    @pytest.fixture(autouse=True)
    def one_turn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Layers are timed once, for each turn compiles the network anew."""
        monkeypatch.setattr(layers, "LAYER_BLOCKS", 1)

    @pytest.mark.parametrize("target", ["cpu", "openvino-native"])
    def test_all_that_is_told_is_that_of_the_network_exported_with_that_size(
        self, write: Callable[..., tuple[Path, Path]], target: str
    ) -> None:
        if not TARGETS[target].state().available:
            pytest.skip(f"{target} {TARGETS[target].state().reason}")
        options = replace(QUICK, batch_sizes=(1, 2))

        def measured(dense: Path, pruned: Path, size: tuple[int, ...]) -> ProfileResult:
            asked = replace(options, input_size=size)
            return profile_bundle(pruned, dense, (target,), asked, device_profiles=("raspberry-pi-5",))

        fixed, sized = measured(*write(*SIZE), ()), measured(*write("height", "width"), SIZE)
        assert sized.settings.input_size == SIZE
        assert sized.estimates == fixed.estimates
        for at_fixed, at_sized in zip(fixed.results, sized.results, strict=True):
            for name in ("batch_size", "dense_macs", "pruned_macs", "theoretical_speedup"):
                assert getattr(at_sized, name) == getattr(at_fixed, name), name
            for before, after in zip(at_fixed.layers, at_sized.layers, strict=True):
                assert (after.name, after.macs, after.bytes_moved) == (before.name, before.macs, before.bytes_moved)
                assert after.pruned_ms is not None
        assert sized.results[0].layers[1].macs == 32 * 16 * 9 * SIZE[0] * SIZE[1]

    def test_other_precisions_and_their_data_follow_it(
        self, write: Callable[..., tuple[Path, Path]], tmp_path: Path
    ) -> None:
        dense, pruned = write("height", "width")
        images, json = tmp_path / "images.npy", tmp_path / "speed.json"
        np.save(images, np.random.default_rng(0).standard_normal((40, 3, *SIZE)).astype(np.float32))
        flags = ["--precision", "int8", "--input-size", "24,16", "--json", str(json), *FLAGS, "--no-per-layer"]
        assert main(["profile", str(pruned), "--baseline", str(dense), "--data", str(images), *flags]) == 0
        result = load_profile_result(json)
        assert [(r.network, r.n, r.data) for r in result.precisions] == [
            ("dense", 32, "images.npy"),
            ("pruned", 32, "images.npy"),
        ]
        # Both networks, though their files have one name.
        assert {r.file for r in result.precisions} == {"dense.int8.onnx", "model.int8.onnx"}
        assert len({r.max_rel for r in result.precisions}) == 2
        assert result.results[0].dense_macs is not None

    def test_both_files_need_not_leave_it_open(self, write: Callable[..., tuple[Path, Path]]) -> None:
        (_, pruned), (dense, _) = write("height", "width"), write(*SIZE)
        (result,) = profile_bundle(pruned, dense, ("cpu",), replace(QUICK, input_size=SIZE)).results
        assert result.theoretical_speedup is not None

    def test_the_files_themselves_are_left_alone(self, write: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
        dense, pruned = write("height", "width")
        before = pruned.read_bytes()
        sized = Subject.of(pruned, dense).with_input_size(SIZE, tmp_path / "sized")
        assert pruned.read_bytes() == before
        assert {input_specs(load_model(path))[0].shape for path in sized.networks.values()} == {("batch", 3, *SIZE)}
        assert len(set(sized.networks.values())) == 2
        (fixed, _) = write(*SIZE)
        assert Subject.of(fixed).with_input_size(SIZE, tmp_path / "none").networks == {"pruned": fixed}
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize(
        ("axes", "flags", "words"),
        [
            (("height", "width"), (), "net.onnx: input 'input' has dynamic axes .*pass --input-size H,W"),
            ((24, 16), ("--input-size", "12,12"), "net.onnx: --input-size 12,12 contradicts input 'input'"),
            (("height", 16), ("--input-size", "24,12"), "--input-size 24,12 contradicts"),
            ((24, 16), ("--input-size", "24"), "--input-size 24 contradicts"),
            ((24, 16), ("--input-size", "24,wide"), "--input-size '24,wide' is no size"),
        ],
    )
    def test_a_size_that_is_missing_or_wrong_is_refused(
        self,
        write: Callable[..., tuple[Path, Path]],
        axes: tuple[int | str, ...],
        flags: tuple[str, ...],
        words: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        _, pruned = write(*axes)
        assert main(["profile", str(pruned), *flags, *FLAGS]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(words, line)

    def test_a_size_below_one_is_refused(self, write: Callable[..., tuple[Path, Path]]) -> None:
        with pytest.raises(InputError, match="--input-size 0,8; expected 1 or more"):
            profile_bundle(write("height", "width")[1], None, ("cpu",), replace(QUICK, input_size=(0, 8)))
