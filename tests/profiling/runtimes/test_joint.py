"""Several runtimes in one loop: what is compared with what, and what becomes of those that fail or crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import small_bundle as small

from edgeprune.errors import InputError
from edgeprune.profiling.measurement import Measurement
from edgeprune.profiling.runtimes import apart, joint
from edgeprune.profiling.runtimes.joint import Broken, Candidate, Job, Together
from edgeprune.profiling.runtimes.record import Place
from edgeprune.profiling.runtimes.rows import best_of, rows_of
from edgeprune.profiling.setup import ProfileOptions
from edgeprune.profiling.subject import Subject

QUICK = ProfileOptions(warmup=1, iterations=3, interval=0, per_layer=False)


def candidate(target: str, precision: str = "fp32", folder: Path = Path()) -> Candidate:
    files = {"dense": folder / "dense.onnx", "pruned": folder / "model.onnx"}
    return Candidate(target, precision, "as planned", files)


def job(folder: Path, *targets: str) -> Job:
    dense, pruned = small.write_models(folder)
    references = folder / "references"
    references.mkdir()
    candidates = tuple(candidate(target, folder=folder) for target in targets)
    return Job(candidates, Subject(pruned, dense), QUICK, references)


def together(**seconds: tuple[tuple[float, ...], tuple[float, ...]]) -> Together:
    """Dense and pruned of each target, in FP32."""
    return Together({f"{name} fp32": {"dense": both[0], "pruned": both[1]} for name, both in seconds.items()})


def test_speedups_are_over_a_runtimes_own_dense_network_and_over_the_fastest_of_all() -> None:
    taken = together(cpu=((8.0,) * 9, (2.0,) * 9), ncnn=((4.0,) * 9, (1.0,) * 9))
    rows, fastest = rows_of((candidate("cpu"), candidate("ncnn")), taken, (), ())
    assert [row.realistic_speedup for row in rows] == [4.0, 4.0]
    assert [row.speedup_over_fastest_dense for row in rows] == [2.0, 4.0]
    assert fastest == {"fp32": Place("ncnn", "fp32", "dense", 4000.0)}
    assert best_of(rows) == (Place("ncnn", "fp32", "pruned", 1000.0), ())


def test_a_precision_has_a_fastest_dense_network_of_its_own_and_what_must_not_be_used_never_wins() -> None:
    taken = Together(
        {
            "cpu fp32": {"dense": (4.0,) * 9, "pruned": (2.0,) * 9},
            "cpu int8": {"dense": (3.0,) * 9, "pruned": (1.0,) * 9},
        }
    )
    candidates = candidate("cpu"), candidate("cpu", "int8")
    rows, fastest = rows_of(candidates, taken, (), ("int8",))
    assert [row.speedup_over_fastest_dense for row in rows] == [2.0, 3.0]
    assert set(fastest) == {"fp32", "int8"}
    assert best_of(rows)[0] == Place("cpu", "fp32", "pruned", 2000.0)
    rows, _ = rows_of(candidates, taken, (), ())
    assert best_of(rows)[0] == Place("cpu", "int8", "pruned", 1000.0)


def test_what_cannot_be_told_apart_from_the_best_is_named() -> None:
    near = tuple(1.0 + 0.01 * (-1) ** n for n in range(40))
    rows, _ = rows_of(
        (candidate("cpu"), candidate("ncnn")),
        together(cpu=((3.0,) * 40, (0.9999,) * 40), ncnn=((3.0,) * 40, near)),
        (),
        (),
    )
    best, ties = best_of(rows)
    assert best is not None
    assert (best.target, best.network) == ("cpu", "pruned")
    assert [(tie.target, tie.network) for tie in ties] == [("ncnn", "pruned")]


def test_the_best_is_told_round_by_round_as_the_speedups_are() -> None:
    """What the machine did in two of three rounds met both networks: the medians of each alone say the contrary."""
    first, second = (1.0, 10.0, 20.0), (11.0, 9.5, 19.0)
    taken = Together({"cpu fp32": {"pruned": first}, "ncnn fp32": {"pruned": second}})
    best, ties = best_of(rows_of((candidate("cpu"), candidate("ncnn")), taken, (), ())[0])
    assert best is not None
    assert best.target == "ncnn"
    assert [tie.target for tie in ties] == ["cpu"]


def test_a_network_without_a_baseline_has_a_latency_and_no_speedup() -> None:
    rows, fastest = rows_of((candidate("cpu"),), Together({"cpu fp32": {"pruned": (1.0,) * 9}}), (), ())
    assert fastest == {}
    assert rows[0].pruned is not None
    assert rows[0].realistic_speedup is rows[0].speedup_over_fastest_dense is None


class Wrong:
    """A runner that gives other numbers than ONNX Runtime."""

    target, input_names = "ncnn", ("input",)

    def run(self, feeds: object) -> dict[str, np.ndarray]:
        return {"output": np.ones((1, small.CLASSES), np.float32)}

    def close(self) -> None:
        pass


def opening(**others: object) -> Callable[..., object]:
    """`open_runner` in which targets fail with an error, or are another runner."""
    real = joint.open_runner

    def open_one(name: str, *given: object) -> object:
        other = others.get(name)
        if isinstance(other, BaseException):
            raise other
        return other or real(name, *given)  # type: ignore[arg-type]

    return open_one


def test_what_refuses_the_network_or_gives_other_outputs_is_not_timed_and_costs_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = InputError("no Gather", where="litert")
    monkeypatch.setattr(joint, "open_runner", opening(litert=refusal, ncnn=Wrong()))
    found = joint.measure(job(tmp_path, "litert", "ncnn", "cpu"))
    assert found.broken["litert fp32"] == Broken("litert: no Gather", "input")
    assert found.broken["ncnn fp32"].kind == "gate"
    assert "gives other outputs than in ONNX Runtime" in found.broken["ncnn fp32"].error
    assert set(found.seconds) == {"cpu fp32"}
    assert all(len(seconds) == 3 for seconds in found.seconds["cpu fp32"].values())


def test_each_timed_run_has_another_one_of_the_same_network_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def interleave(runs: dict[str, object], **how: object) -> dict[str, Measurement]:
        asked.update(how)
        return {name: Measurement(name, (1.0,)) for name in runs}

    monkeypatch.setattr(joint, "interleave", interleave)
    joint.measure(job(tmp_path, "cpu"))
    assert asked["lead"] == 1


def test_a_runtime_that_crashes_is_named_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(module: str, folder: Path) -> int:
        request = msgspec.json.decode(
            (folder / "job.json").read_bytes(), type=apart.Request, dec_hook=lambda kind, text: kind(text)
        )
        keys = [one.key for one in request.job.candidates]
        if "litert fp32" in keys:
            (folder / apart.AT).write_text("litert fp32")
            return -11
        (folder / "result.json").write_bytes(msgspec.json.encode(Together({key: {"pruned": (1.0,)} for key in keys})))
        return 0

    monkeypatch.setattr(apart, "run_module", run)
    found = apart.run_together(job(tmp_path, "cpu", "litert"))
    assert set(found.seconds) == {"cpu fp32"}
    assert "ended by SIGSEGV" in found.broken["litert fp32"].error
    assert apart.run_together(job(tmp_path / "alone", "litert")).seconds == {}


def test_a_crash_while_all_of_them_run_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "run_module", lambda module, folder: -9)
    with pytest.raises(InputError, match="all runtimes together: the measuring process was ended by SIGKILL"):
        apart.run_together(job(tmp_path, "cpu"))
