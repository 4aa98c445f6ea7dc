"""Sweeps: every target with every number of threads, what becomes of the parts that fail, and what a bundle keeps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import small_bundle as small

from edgeprune.bundles.bundle import open_bundle
from edgeprune.bundles.names import PROFILE
from edgeprune.cli import EXIT_BUG, EXIT_INTERRUPTED, main
from edgeprune.errors import InputError
from edgeprune.io import progress
from edgeprune.pipeline.profile import profile as profile_bundle
from edgeprune.profiling.result import ProfileResult, SweepFailure, load_profile_result
from edgeprune.profiling.setup import ProfileOptions
from edgeprune.profiling.sweeping import process as profile_process
from edgeprune.profiling.sweeping import sweep
from edgeprune.profiling.sweeping.process import ProfileJob

QUICK = ProfileOptions(warmup=1, iterations=4, interval=0, per_layer=False)
FLAGS = ("--warmup", "1", "--iterations", "4", "--interval", "0", "--no-per-layer", "--quiet")


def test_every_combination_has_a_result(tmp_path: Path) -> None:
    dense, pruned = small.write_models(tmp_path)
    options = replace(QUICK, batch_sizes=(1, 2), fresh_process=False)
    measured = profile_bundle(pruned, dense, ("cpu",), options, thread_counts=(1, 2, 1))
    assert [(r.threads, r.batch_size) for r in measured.results] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert measured.environment.threads == 2
    assert not measured.settings.fresh_process
    assert measured.failures == ()


def instead_of_a_process(monkeypatch: pytest.MonkeyPatch, errors: Sequence[BaseException | None]) -> list[ProfileJob]:
    """Measure in this process, or end the n-th job with the n-th error; returns the jobs as they come."""
    jobs: list[ProfileJob] = []

    def apart(job: ProfileJob) -> ProfileResult:
        jobs.append(job)
        error = errors[len(jobs) - 1] if len(jobs) <= len(errors) else None
        if error is not None:
            raise error
        return sweep.measure(job)

    monkeypatch.setattr(sweep, "run_apart", apart)
    return jobs


def test_each_target_and_thread_count_has_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = instead_of_a_process(monkeypatch, ())
    dense, pruned = small.write_models(tmp_path)
    measured = profile_bundle(pruned, dense, ("cpu", "cpu"), QUICK, thread_counts=(1, 2))
    assert [(job.target, job.options.threads) for job in jobs] == [("cpu", 1), ("cpu", 2)]
    assert measured.settings.fresh_process


class TestRefused:
    """What can be known to be wrong beforehand is said before anything is measured."""

    @pytest.fixture(autouse=True)
    def nothing_is_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sweep, "run_apart", lambda job: pytest.fail("measured"))

    @pytest.mark.parametrize(
        ("targets", "counts", "options", "words"),
        [
            (("cpu", "gpu"), (1,), QUICK, "unknown target 'gpu'"),
            (("cpu",), (0, 1), QUICK, "--threads 0"),
            (("cpu",), (1, 2), replace(QUICK, pin=(0,)), "1 cores to pin to for 2 threads"),
            (("cpu",), (1,), replace(QUICK, pin=(4096,)), "cannot pin to cores"),
            (("cpu",), (1,), replace(QUICK, machine_profile="none"), "unknown device profile 'none'"),
        ],
    )
    def test_values(
        self, tmp_path: Path, targets: tuple[str, ...], counts: tuple[int, ...], options: ProfileOptions, words: str
    ) -> None:
        dense, pruned = small.write_models(tmp_path)
        with pytest.raises(InputError, match=words):
            profile_bundle(pruned, dense, targets, options, thread_counts=counts)

    def test_models_that_do_not_fit_each_other_or_the_batch(self, tmp_path: Path) -> None:
        (dense, pruned), (fixed, _) = small.write_models(tmp_path), small.write_models(tmp_path / "fixed", batch=2)
        with pytest.raises(InputError, match="the baseline takes"):
            profile_bundle(pruned, fixed, ("cpu",), QUICK)
        with pytest.raises(InputError, match="fixed batch of 2"):
            profile_bundle(fixed, None, ("cpu",), replace(QUICK, batch_sizes=(2, 4)))
        dense.write_bytes(b"")
        with pytest.raises(InputError, match="dense.onnx: is empty"):
            profile_bundle(pruned, dense, ("cpu",), QUICK)

    def test_a_target_that_does_not_take_what_there_is(self, tmp_path: Path) -> None:
        pytest.importorskip("torch")
        dense, pruned = small.write_models(tmp_path)
        with pytest.raises(InputError, match="ONNX files do not run in torch"):
            profile_bundle(pruned, dense, ("cpu", "torch-cpu"), QUICK)
        with pytest.raises(InputError, match="this bundle has no dense.safetensors"):
            profile_bundle(small.write_bundle(tmp_path / "bundle", profiled=False), None, ("cpu", "torch-cpu"), QUICK)

    def test_threads_that_a_device_to_estimate_lacks(self, tmp_path: Path) -> None:
        dense, pruned = small.write_models(tmp_path)
        with pytest.raises(InputError, match="64 threads on raspberry-pi-5"):
            profile_bundle(pruned, dense, ("cpu",), QUICK, thread_counts=(64,), device_profiles=("raspberry-pi-5",))

    def test_a_bundle_that_could_not_keep_the_result(self, tmp_path: Path) -> None:
        folder = small.write_bundle(tmp_path / "bundle", profiled=False)
        (folder / "stray.txt").write_text("not listed")
        with pytest.raises(InputError, match="stray.txt: not listed in the manifest"):
            profile_bundle(folder, None, ("cpu",), QUICK)


class TestFailures:
    """One part of a sweep that fails takes nothing with it."""

    @pytest.fixture
    def bundle(self, tmp_path: Path) -> Path:
        return small.write_bundle(tmp_path / "bundle", profiled=False)

    def test_the_others_are_measured_kept_and_shown_and_the_verb_names_what_failed(
        self, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        instead_of_a_process(monkeypatch, (None, InputError("no room", where="target cpu", remedy="make some"), None))
        json = tmp_path / "speed.json"
        assert main(["profile", str(bundle), "--threads", "1,2,3", "--json", str(json), *FLAGS]) == 1
        told = capsys.readouterr()
        error = "target cpu: no room; make some"
        assert told.err.splitlines() == ["edgeprune: all was measured but cpu, threads 2, batch 1"]
        assert f"not measured (cpu, threads 2, batch 1): {error}" in told.out
        kept = load_profile_result(bundle / PROFILE)
        assert kept == load_profile_result(json)
        assert [result.threads for result in kept.results] == [1, 3]
        assert kept.failures == (SweepFailure("cpu", 2, error, batch_sizes=(1,)),)
        assert {"target", "threads", "error"} <= set(msgspec.json.decode(json.read_bytes())["failures"][0])
        assert open_bundle(bundle).faults() == []

    @pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
    def test_a_process_that_is_killed_costs_its_own_results_alone(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, started = subprocess.Popen, list[Any]()

        def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
            started.append(command)
            killed = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
            return real(killed if len(started) == 1 else command, **options)

        monkeypatch.setattr(profile_process.subprocess, "Popen", start)
        result = profile_bundle(bundle, None, ("cpu",), QUICK, thread_counts=(1, 2))
        assert [measured.threads for measured in result.results] == [2]
        (failure,) = result.failures
        assert (failure.target, failure.threads, failure.kind) == ("cpu", 1, "input")
        assert "SIGKILL" in failure.error
        assert (result.environment.threads, len(started)) == (2, 2)

    def test_where_everything_failed_nothing_is_written_and_the_first_error_is_told(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        instead_of_a_process(monkeypatch, (InputError("the first"), InputError("the second")))
        assert main(["profile", str(bundle), "--threads", "1,2", *FLAGS]) == 1
        assert capsys.readouterr().err.splitlines() == ["edgeprune: the first"]
        assert not (bundle / PROFILE).exists()

    def test_a_batch_that_memory_does_not_hold_costs_no_other(self, bundle: Path) -> None:
        options = replace(QUICK, batch_sizes=(1, 10**9), fresh_process=False)
        result = profile_bundle(bundle, None, ("cpu",), options)
        assert [measured.batch_size for measured in result.results] == [1]
        (failure,) = result.failures
        assert (failure.batch_sizes, failure.kind) == ((10**9,), "input")
        assert "not enough memory" in failure.error

    def test_a_damaged_profile_is_replaced(self, bundle: Path) -> None:
        here = replace(QUICK, fresh_process=False)
        profile_bundle(bundle, None, ("cpu",), here)
        (bundle / PROFILE).write_bytes(b"{")
        profile_bundle(bundle, None, ("cpu",), here)
        assert open_bundle(bundle).faults() == []
        (bundle / PROFILE).unlink()
        assert profile_bundle(bundle, None, ("cpu",), here).results

    def test_a_bug_keeps_the_rest_too_and_is_told_with_its_traceback(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        worker = RuntimeError("the measuring process failed:\nTraceback ...\nZeroDivisionError: of the test")
        instead_of_a_process(monkeypatch, (worker,))
        assert main(["profile", str(bundle), "--threads", "1,2", *FLAGS]) == EXIT_BUG
        told = capsys.readouterr().err
        assert "the measuring process failed:\nTraceback ...\nZeroDivisionError: of the test" in told
        assert told.splitlines()[-1].endswith("please report it with the lines above")
        (failure,) = load_profile_result(bundle / PROFILE).failures
        assert failure == SweepFailure("cpu", 1, "ZeroDivisionError: of the test", "bug", (1,))

    def test_an_interrupt_keeps_what_is_finished(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        jobs = instead_of_a_process(monkeypatch, (None, KeyboardInterrupt()))
        assert main(["profile", str(bundle), "--threads", "1,2,3", *FLAGS]) == EXIT_INTERRUPTED
        told = capsys.readouterr()
        assert told.err.splitlines() == [
            "edgeprune: interrupted; all was measured but cpu, threads 2, batch 1; cpu, threads 3, batch 1"
        ]
        assert "not measured (cpu, threads 3, batch 1): interrupted" in told.out
        kept = load_profile_result(bundle / PROFILE)
        assert [result.threads for result in kept.results] == [1]
        assert [(failure.threads, failure.kind) for failure in kept.failures] == [
            (2, "interrupted"),
            (3, "interrupted"),
        ]
        assert len(jobs) == 2

    def test_an_interrupt_before_anything_is_finished_writes_nothing(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        instead_of_a_process(monkeypatch, (InputError("no room"), KeyboardInterrupt()))
        assert main(["profile", str(bundle), "--threads", "1,2", *FLAGS]) == EXIT_INTERRUPTED
        assert "nothing half-written was left" in capsys.readouterr().err
        assert not (bundle / PROFILE).exists()

    @pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
    def test_ctrl_c_on_the_keyboard(self, bundle: Path) -> None:
        flags = ["--warmup", "1", "--interval", "0", "--iterations", "1000000", "--no-per-layer"]
        command = [sys.executable, "-m", "edgeprune.cli", "profile", str(bundle), "--threads", "1,2", *flags]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(
            [*command, "--time-limit", "0.5"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as running:
            assert running.stderr is not None
            told = []
            for line in running.stderr:
                told.append(line)
                if sum(line.startswith("profiling on") for line in told) == 2 and line.startswith("profiling on"):
                    running.send_signal(signal.SIGINT)
        assert running.returncode == EXIT_INTERRUPTED
        assert told[-1].startswith("edgeprune: interrupted; all was measured but cpu, threads 2")
        assert [result.threads for result in load_profile_result(bundle / PROFILE).results] == [1]


def test_the_result_is_written_though_nobody_reads_the_tables(tmp_path: Path) -> None:
    _, pruned = small.write_models(tmp_path)
    json = tmp_path / "speed.json"
    command = [sys.executable, "-m", "edgeprune.cli", "profile", str(pruned), "--json", str(json), *FLAGS]
    command.append("--no-fresh-process")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.close()  # as `| head` does
    assert running.returncode == 0
    assert load_profile_result(json).results


class TestReplaced:
    """A bundle has one profile: what it loses is said."""

    @pytest.fixture
    def said(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        said: list[str] = []
        monkeypatch.setattr(progress, "note", said.append)
        return said

    def test_results_that_are_not_measured_again_are_named(
        self, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        instead_of_a_process(monkeypatch, ())
        bundle = small.write_bundle(tmp_path / "bundle", profiled=False)
        profile: Callable[..., ProfileResult] = profile_bundle
        profile(bundle, None, ("cpu",), QUICK, thread_counts=(1, 2), device_profiles=("raspberry-pi-5",))
        profile(bundle, None, ("cpu",), QUICK, thread_counts=(1, 2), device_profiles=("raspberry-pi-5",))
        assert not [text for text in said if "replaces" in text]
        profile(bundle, None, ("cpu",), QUICK)
        assert said == [
            "replaces the bundle's profile, in which this was not measured again: cpu, threads 2, batch 1; estimates "
            "for raspberry-pi-5"
        ]
        said.clear()
        profile(bundle, None, ("cpu",), replace(QUICK, batch_sizes=(1, 2)))
        assert said == []

    def test_a_run_that_leaves_the_profile_alone_says_nothing_of_a_loss(
        self, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        instead_of_a_process(monkeypatch, (KeyboardInterrupt(),))
        bundle = small.write_bundle(tmp_path / "bundle")
        before = (bundle / PROFILE).read_bytes()
        with pytest.raises(InputError, match="nowhere"):
            profile_bundle(bundle, None, ("cpu",), replace(QUICK, precision="int8"), data="nowhere.npy")
        with pytest.raises(KeyboardInterrupt):
            profile_bundle(bundle, None, ("cpu",), QUICK)
        assert not [text for text in said if "replaces" in text]
        assert (bundle / PROFILE).read_bytes() == before
        profile_bundle(bundle, None, ("cpu",), QUICK)
        assert said[-1].endswith("not measured again: cpu, threads 1, batch 4")

    def test_an_old_profile_that_cannot_be_read_is_no_loss(self, tmp_path: Path, said: list[str]) -> None:
        bundle = small.write_bundle(tmp_path / "bundle", profiled=False)
        manifest = open_bundle(bundle).manifest
        (bundle / PROFILE).write_text('{"schema_version": 99}')
        small.write_manifest(bundle, manifest)
        profile_bundle(bundle, None, ("cpu",), replace(QUICK, fresh_process=False))
        assert not [text for text in said if "replaces" in text]
        assert load_profile_result(bundle / PROFILE).results
