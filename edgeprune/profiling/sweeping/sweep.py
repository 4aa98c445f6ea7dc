"""A sweep: every target with every number of threads, each in a fresh process.

What fails, or is ended by the user, does not take with it what was measured before: it is recorded beside the results.
"""

from __future__ import annotations

import tempfile
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from edgeprune.devices.device_profile import DeviceProfile
from edgeprune.errors import GateError, InputError, Interrupted
from edgeprune.onnx_files.model import load_model
from edgeprune.precision.quantization import require_full_precision
from edgeprune.profiling.agreement import References
from edgeprune.profiling.estimating.estimates import Estimate, estimate
from edgeprune.profiling.precise_models import PreciseModels, precise_models
from edgeprune.profiling.profiler import check_measurable, check_targets, profile_files
from edgeprune.profiling.result import FailureKind, ProfileResult, SweepFailure
from edgeprune.profiling.samples import load_samples
from edgeprune.profiling.setup import ProfileOptions
from edgeprune.profiling.subject import Subject
from edgeprune.profiling.sweeping.process import ProfileJob, run_apart
from edgeprune.runners.base import RunOptions
from edgeprune.runners.registry import target_named

_Failed = tuple[ProfileJob, BaseException]


@dataclass(frozen=True)
class Sweep:
    """What is measured: all targets with all numbers of threads and all batch sizes of the options."""

    targets: tuple[str, ...]
    thread_counts: tuple[int, ...]
    options: ProfileOptions

    @staticmethod
    def of(targets: Iterable[str], options: ProfileOptions, thread_counts: Iterable[int] = ()) -> Sweep:
        """Each target and number of threads (by default that of the options) once.

        InputError for values that make no sense, and targets that cannot be used here.
        """
        counts = tuple(dict.fromkeys(thread_counts)) or (options.threads,)
        RunOptions(min(counts)).check()
        replace(options, threads=max(counts)).check()
        sweep = Sweep(tuple(dict.fromkeys(targets)), counts, options)
        check_targets(sweep.targets, options.precision)
        return sweep

    def check(self, subject: Subject) -> None:
        """InputError for what can be known to be wrong with the networks on these targets before one is run."""
        check_measurable(subject, self.targets, self.options.with_threads(max(self.thread_counts)))

    def settings(self) -> Iterator[tuple[str, str, int, int]]:
        """(target, precision, threads, batch size) of every result that is asked for."""
        for target in self.targets:
            for threads in self.thread_counts:
                for size in self.options.batch_sizes:
                    yield target, self.options.precision, threads, size

    def estimates(self, subject: Subject, devices: Sequence[DeviceProfile]) -> tuple[Estimate, ...]:
        """One for every device, number of threads and batch size; InputError for threads that a device lacks."""
        if not devices:
            return ()
        pruned, dense = load_model(subject.pruned), None if subject.dense is None else load_model(subject.dense)
        return tuple(
            estimate(dense, pruned, device, size, threads)
            for device in devices
            for threads in self.thread_counts
            for size in self.options.batch_sizes
        )

    def convert(self, subject: Subject, data: str, folder: Path, engines: Path) -> PreciseModels:
        """The networks in the options' precision, converted into `folder`, with `data` to calibrate and compare on."""
        if self.options.precision == "fp32":
            return PreciseModels()
        for path in subject.networks.values():
            require_full_precision(load_model(path), self.options.precision, path)
        samples = load_samples(
            load_model(subject.pruned), data, self.options.seed, calibrate=self.options.calibration_images
        )
        folder.mkdir(parents=True, exist_ok=True)
        modules = subject.modules() if any(target_named(name).runs == "module" for name in self.targets) else {}
        return precise_models(subject.files_for, modules, self.targets, self.options, samples, folder, engines)

    def measure(self, subject: Subject, precise: PreciseModels, engines: Path) -> ProfileResult:
        """The results of all that could be measured, and what became of the rest.

        Where that is everything, the first error is raised.
        """
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as references:
            taken, failed = self._run(self._jobs(subject, precise, engines, Path(references)), precise)
        if not taken:
            raise failed[0][1]
        return self._joined(taken, precise, [_failure(job, error) for job, error in failed])

    def _jobs(self, subject: Subject, precise: PreciseModels, engines: Path, references: Path) -> deque[ProfileJob]:
        """What is to be measured. Into `references` goes what the networks give in ONNX Runtime."""
        options = self.options
        if options.precision == "fp32":
            threads = max(self.thread_counts)
            References(subject.networks, options.seed, threads, references).write(options.batch_sizes)
        converted = replace(subject, converted=precise.files)
        return deque(
            ProfileJob(converted, target, options.with_threads(count), engines, references)
            for target in self.targets
            for count in self.thread_counts
        )

    def _run(self, jobs: deque[ProfileJob], precise: PreciseModels) -> tuple[list[ProfileResult], list[_Failed]]:
        """The results of all jobs that could be measured, and what became of the others."""
        taken: list[ProfileResult] = []
        failed: list[_Failed] = []
        while jobs:
            job = jobs.popleft()
            if refusal := precise.refusal(job.target):
                failed.append((job, refusal))
                continue
            try:
                taken.append(run_apart(job) if self.options.fresh_process else measure(job))
            except KeyboardInterrupt as stop:
                if not taken:
                    raise
                failed += [(left, stop) for left in (job, *jobs)]
                break
            except Exception as error:  # runtimes raise what they like: it must not cost the other results
                sizes = job.options.batch_sizes
                if len(sizes) > 1:  # perhaps one of them fails alone, such as the one that memory does not hold
                    alone = (replace(job.options, batch_sizes=(size,)) for size in sizes[::-1])
                    jobs.extendleft(msgspec.structs.replace(job, options=options) for options in alone)
                else:
                    failed.append((job, error))
        return taken, failed

    def _joined(
        self, taken: Sequence[ProfileResult], precise: PreciseModels, failures: Sequence[SweepFailure]
    ) -> ProfileResult:
        first, options = taken[0], self.options
        results = (result for each in taken for result in each.results)
        return msgspec.structs.replace(
            first,
            environment=msgspec.structs.replace(first.environment, threads=max(self.thread_counts)),
            settings=msgspec.structs.replace(first.settings, pin=options.pin, fresh_process=options.fresh_process),
            results=tuple(msgspec.structs.replace(r, warnings=(*precise.warnings, *r.warnings)) for r in results),
            precisions=precise.records,
            failures=tuple(failures),
        )


def measure(job: ProfileJob) -> ProfileResult:
    """One target with one number of threads, in this process."""
    return profile_files(job.subject, (job.target,), job.options, job.engines, job.references)


def require_complete(result: ProfileResult, *, told: bool = False) -> None:
    """InputError, GateError for wrong outputs, or whatever else it comes to, where a part of a sweep could
    not be measured; without the reasons if the user was told of them."""
    require_none(result.failures, told=told)


def require_none(failures: Sequence[SweepFailure], *, told: bool = False) -> None:
    """`require_complete` for what failed."""
    if not failures:
        return
    jobs = [failure.setting for failure in failures]
    kinds = {failure.kind for failure in failures}
    if "interrupted" in kinds:
        raise Interrupted(f"interrupted; all was measured but {'; '.join(jobs)}")
    reasons = [f"{job} ({failure.error})" for job, failure in zip(jobs, failures, strict=True)]
    text = f"all was measured but {'; '.join(jobs if told else reasons)}"
    if "bug" in kinds:
        raise RuntimeError(text)
    raise GateError(text) if "gate" in kinds else InputError(text)


def _failure(job: ProfileJob, error: BaseException) -> SweepFailure:
    return SweepFailure(job.target, job.options.threads, *failure_words(error), job.options.batch_sizes)


def failure_words(error: BaseException) -> tuple[str, FailureKind]:
    """What happened, in a line, and of which kind it is; a bug's traceback goes to standard error, where bugs are
    told."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "interrupted"
    if isinstance(error, GateError):
        return str(error), "gate"
    if isinstance(error, InputError):
        return str(error), "input"
    traceback.print_exception(error)
    return traceback.format_exception_only(error)[-1].strip().splitlines()[-1], "bug"
