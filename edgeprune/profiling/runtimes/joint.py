"""Run dense and pruned of several runtimes in turn, in one loop, so that whatever the machine does meets all of them.

All runtimes are loaded into one process, of which a runtime that crashes takes the others along: that is why it is a
process of its own (`apart`), which is started again without the one that crashed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import msgspec

from edgeprune.io import progress
from edgeprune.io.arrays import Feeds
from edgeprune.onnx_files.inputs import input_specs
from edgeprune.onnx_files.model import load_model
from edgeprune.precision.formats import Precision
from edgeprune.profiling.agreement import References
from edgeprune.profiling.batch import memory_checked
from edgeprune.profiling.environment import crowding, load_average, usable_cores
from edgeprune.profiling.measurement import (
    NOISY,
    Measurement,
    interleave,
    interval_width,
    settles_within,
    warm_up,
)
from edgeprune.profiling.result import FailureKind
from edgeprune.profiling.setup import ProfileOptions, Which, random_feeds
from edgeprune.profiling.subject import Subject
from edgeprune.profiling.sweeping.sweep import failure_words
from edgeprune.runners.base import ProfiledRunner
from edgeprune.runners.registry import open_runner, target_named
from edgeprune.runners.target import OpenOptions, Source

LEAD = 1
"""Runs that are not timed before each timed one: the runtimes that ran in between have filled the caches."""
DENSE_FIRST: tuple[Which, ...] = ("dense", "pruned")


class Candidate(msgspec.Struct, frozen=True):
    """The networks as one runtime runs them, in one precision."""

    target: str
    precision: Precision
    forms: str
    """How the layers of the pruned one are written, in words."""
    files: dict[Which, Path]
    """`dense`, where there is a baseline, and `pruned`."""

    @property
    def key(self) -> str:
        """Its own among those of one job."""
        return f"{self.target} {self.precision}"


class Job(msgspec.Struct, frozen=True):
    """What is measured together."""

    candidates: tuple[Candidate, ...]
    subject: Subject
    options: ProfileOptions
    """The time limit is for all candidates together, the precision that of no one."""
    references: Path
    """Folder of what the networks give in ONNX Runtime."""
    engines: Path | None = None


class Broken(msgspec.Struct, frozen=True):
    """Why a candidate has no times."""

    error: str
    kind: FailureKind


class Together(msgspec.Struct, frozen=True):
    """What came of a job."""

    seconds: dict[str, dict[Which, tuple[float, ...]]]
    """Candidate's key -> network -> its times, the n-th of all in the same round."""
    broken: dict[str, Broken] = {}
    settled: bool = True
    warnings: tuple[str, ...] = ()


def measure(job: Job, begin: Callable[[str], None] = lambda key: None) -> Together:
    """Open all that can be opened, compare their outputs with ONNX Runtime's, and time all of these in turn.

    `begin` is told the key of the candidate that is tried next, and nothing when all were. What a candidate fails with
    is recorded; no error of a runtime is raised.
    """
    options, broken = job.options, dict[str, Broken]()
    with ExitStack() as stack:
        runs: dict[str, Callable[[], object]] = {}
        for candidate in job.candidates:
            begin(candidate.key)
            progress.note(f"comparing the outputs of {candidate.target}, {candidate.precision}")
            try:
                with ExitStack() as opened, memory_checked(candidate.target, options.batch_sizes[0]):
                    prepared = _prepared(candidate, job, opened)
                    stack.push(opened.pop_all())
                runs |= {f"{candidate.key} {which}": run for which, run in prepared.items()}
            except Exception as error:  # runtimes raise what they like: it must not cost the other results
                broken[candidate.key] = Broken(*failure_words(error))
        begin("")
        if not runs:
            return Together({}, broken)
        progress.note(f"timing {len(runs)} networks in turn")
        load = load_average()
        steady = warm_up(runs, least=options.warmup, time_limit_s=options.time_limit_s / 4)
        until = settles_within(options.interval) if options.interval else None
        taken = interleave(
            runs,
            warmup=0,
            iterations=options.iterations,
            time_limit_s=options.time_limit_s,
            until=until,
            lead=LEAD,
        )
    return _told(job, taken, broken, load, steady=steady)


def _prepared(candidate: Candidate, job: Job, stack: ExitStack) -> dict[Which, Callable[[], object]]:
    """One run of each network; GateError where its outputs are not ONNX Runtime's."""
    options, size = job.options, job.options.batch_sizes[0]
    references = References(job.subject.networks, options.seed, options.threads, job.references)
    specs = input_specs(load_model(job.subject.pruned))
    names, values = tuple(spec.name for spec in specs), random_feeds(specs, size, options.seed)
    how = OpenOptions(options.run_options(), candidate.precision, job.engines)
    modules = job.subject.modules() if target_named(candidate.target).runs == "module" else {}
    found: dict[Which, Callable[[], object]] = {}
    for which in DENSE_FIRST:
        if which not in candidate.files:
            continue
        source = Source(candidate.files[which], modules.get(which), names)
        runner: ProfiledRunner = open_runner(candidate.target, source, how)
        stack.callback(runner.close)
        feeds: Feeds = dict(zip(runner.input_names, values, strict=True))
        if candidate.precision == "fp32":  # others were compared when they were converted
            references.require(which, size, runner, feeds)
        found[which] = runner.prepared(feeds)
    return found


def _told(
    job: Job, taken: Mapping[str, Measurement], broken: dict[str, Broken], load: float | None, *, steady: bool
) -> Together:
    seconds = {
        candidate.key: {
            which: taken[name].seconds for which in DENSE_FIRST if (name := f"{candidate.key} {which}") in taken
        }
        for candidate in job.candidates
        if candidate.key not in broken
    }
    width, asked = interval_width({name: one.seconds for name, one in taken.items()}), job.options.interval
    settled = not asked or width <= asked
    doubts = list(crowding(job.options.threads, usable_cores()))
    if load is not None and load > usable_cores():
        doubts.append(f"the machine was busy before measuring: load average {load:.1f} on {usable_cores()} cores")
    if noisy := sum(one.is_noisy for one in taken.values()):
        doubts.append(
            f"the runs of {noisy} of {len(taken)} networks spread by more than {NOISY:.0%}: close other programs"
        )
    if not steady:
        doubts.append("times still changed at the end of the warm-up")
    if not settled:
        rounds = next(iter(taken.values())).n
        doubts.append(
            f"not settled within {rounds} rounds: the widest 95% interval of a ratio is {width:.0%} of it "
            f"({asked:.0%} was asked); --time-limit gives it more time"
        )
    return Together(seconds, broken, settled, tuple(doubts))
