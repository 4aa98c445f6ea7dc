"""Measuring in a process of its own: what comes back, and how the ends of that process are told."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import small_bundle as small

from edgeprune.errors import InputError
from edgeprune.profiling.setup import ProfileOptions
from edgeprune.profiling.subject import Subject
from edgeprune.profiling.sweeping import process as profile_process
from edgeprune.profiling.sweeping import sweep
from edgeprune.profiling.sweeping import worker as profile_worker
from edgeprune.profiling.sweeping.process import Failure, ProfileJob, Request, run_apart

QUICK = ProfileOptions(warmup=1, iterations=4, interval=0, per_layer=False)


def job(folder: Path) -> ProfileJob:
    dense, pruned = small.write_models(folder)
    return ProfileJob(Subject(pruned, dense), "cpu", QUICK)


def test_a_job_measured_apart_is_the_same_job(tmp_path: Path) -> None:
    asked = job(tmp_path)
    apart, here = run_apart(asked), sweep.measure(asked)
    assert apart.settings == here.settings
    for name in ("target", "provider", "threads", "batch_size", "dense_macs", "pruned_macs"):
        assert getattr(apart.results[0], name) == getattr(here.results[0], name)
    assert apart.results[0].pruned.n == 4
    assert apart.results[0].peak_memory_mb is None or apart.results[0].peak_memory_mb > 10


def test_what_is_wrong_with_the_input_is_said_as_if_measured_here(tmp_path: Path) -> None:
    asked = job(tmp_path)
    asked.subject.pruned.unlink()
    with pytest.raises(InputError) as apart:
        run_apart(asked)
    with pytest.raises(InputError) as here:
        sweep.measure(asked)
    assert str(apart.value) == str(here.value)


def fake_worker(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let this code run where the worker would."""
    real = subprocess.Popen

    def start(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        return real([sys.executable, "-c", code, command[-1]], **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(profile_process.subprocess, "Popen", start)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "SIGKILL: most likely for the memory.*--batch-size",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV; the runtime crashed"),
        ("import sys; sys.exit(9)", "with status 9"),
    ],
)
def test_a_process_that_was_ended_is_told_with_its_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    fake_worker(monkeypatch, code)
    with pytest.raises(InputError, match=f"target cpu: the measuring process was ended .*{words}"):
        run_apart(job(tmp_path))


def test_an_interrupted_process_interrupts_the_one_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_worker(monkeypatch, f"import sys; sys.exit({profile_process.INTERRUPTED})")
    with pytest.raises(KeyboardInterrupt):
        run_apart(job(tmp_path))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_no_process_is_left_behind_by_an_interrupt(tmp_path: Path) -> None:
    """In a process of its own: with OpenVINO loaded, by whichever test came before, a signal ends pytest's worker."""
    number = tmp_path / "pid"
    result = subprocess.run([sys.executable, "-c", INTERRUPTED_WAIT, str(number)], check=False)
    assert result.returncode == 7
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), 0)


INTERRUPTED_WAIT = """
import os, pathlib, signal, subprocess, sys, threading, time
from edgeprune.profiling.sweeping import process

number, real = pathlib.Path(sys.argv[1]), subprocess.Popen
code = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"
process.subprocess.Popen = lambda command, **options: real([sys.executable, "-c", code, str(number)], **options)
signal.signal(signal.SIGINT, signal.default_int_handler)

def interrupt():
    while not (number.exists() and number.read_text()):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    process.run_module("any", pathlib.Path("any"))
except KeyboardInterrupt:
    sys.exit(7)
"""


def test_a_bug_comes_back_with_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(job: ProfileJob) -> None:
        raise ZeroDivisionError("of the test")

    monkeypatch.setattr(sweep, "measure", broken)
    request = Request(job(tmp_path), shows_progress=False)
    (tmp_path / profile_process.JOB).write_bytes(request.encoded())
    profile_worker.work(tmp_path)
    failure = msgspec.json.decode((tmp_path / profile_process.FAILURE).read_bytes(), type=Failure)
    assert isinstance(failure.error(), RuntimeError)
    assert "ZeroDivisionError: of the test" in str(failure.error())
    assert not (tmp_path / profile_process.RESULT).exists()


def test_the_worker_ends_with_the_process_that_waits_for_it(tmp_path: Path) -> None:
    code = "import threading, time; from edgeprune.profiling import worker as w; "
    code += "threading.Thread(target=w.wait_for_parent, daemon=True).start(); print(1, flush=True); time.sleep(600)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    worker = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    try:
        assert worker.stdout is not None
        assert worker.stdin is not None
        worker.stdout.readline()
        worker.stdin.close()
        assert worker.wait(60) == 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            worker.kill()
        worker.stdout.close()
