"""Measure one pair of models on one target with one batch size: whole runs in turn, then every layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from edgeprune.devices.sensors import MachineState, energy_meter, energy_per_run_mj, machine_state
from edgeprune.errors import InputError, first_line
from edgeprune.io import progress
from edgeprune.io.arrays import Feeds
from edgeprune.onnx_files.inputs import input_specs
from edgeprune.profiling.agreement import References
from edgeprune.profiling.environment import crowding, load_average, peak_memory_mb, usable_core_numbers, usable_cores
from edgeprune.profiling.layers import LayerTimes, above_peak, layer_rows, over, rounded, time_layers
from edgeprune.profiling.measurement import (
    NOISY,
    Measurement,
    interleave,
    interval_width,
    median_interval,
    paired_ratios,
    settles_within,
    warm_up,
)
from edgeprune.profiling.result import Drift, Latency, Result
from edgeprune.profiling.setup import Batch, ProfileOptions, Which, is_gpu, random_feeds
from edgeprune.runners.base import ProfiledRunner
from edgeprune.runners.registry import TARGETS

# Elsewhere one node holds the whole network, or times are those of starting kernels.
PER_LAYER_TARGETS = tuple(name for name, target in TARGETS.items() if target.tells_layers)
DRIFT = 0.05
"""Difference between two ways to state the realistic speed-up, or fall of the clock, above which the machine was
not steady."""
COPIES = 50
"""Copies of the inputs, and of the outputs, that are timed."""
Run = Callable[[], object]
_OUT_OF_MEMORY = (
    "out of memory",
    "outofmemory",
    "failed to allocate",
    "alloc_failed",
    "bad_alloc",
    "cannot allocate memory",
    "not enough memory",
)


def measure_batch(
    runners: Mapping[Which, ProfiledRunner], batch: Batch, options: ProfileOptions, references: References | None = None
) -> Result:
    """Run the models in turn, and their layers; `runners` holds "pruned" and, where there is a baseline, "dense".

    InputError where there is not enough memory; GateError, before anything is timed, where outputs are not those of
    `references`.
    """
    with memory_checked(batch.target, batch.size):
        values = random_feeds(input_specs(batch.pair.pruned), batch.size, options.seed)
    feeds: dict[Which, Feeds] = {
        which: dict(zip(runner.input_names, values, strict=True)) for which, runner in runners.items()
    }
    pruned = runners["pruned"]
    times, notes = LayerTimes(), list[str]()
    with memory_checked(batch.target, batch.size):
        if references is not None:
            for which, runner in runners.items():
                references.require(which, batch.size, runner, feeds[which])
        runs: dict[str, Run] = {which: runner.prepared(feeds[which]) for which, runner in runners.items()}
        taken = _Taken.of(runs, options)
        energies = _energies(runs, batch.target)
        copy_in, copy_out = _copy_times(pruned, feeds["pruned"])
        if options.per_layer and batch.target in PER_LAYER_TARGETS:
            progress.note(f"timing every layer on {batch.target}, batch {batch.size}")
            times = time_layers(runners, feeds, batch, options)
        elif options.per_layer:
            notes.append(f"{batch.target} does not tell the times of single layers: they are left out")
    rows = layer_rows(batch, times) if options.per_layer else ()
    notes += above_peak(rows, batch.machine.roofline)
    speed, settled = _Speed.of(taken.measured, batch), is_settled(taken.measured, options)
    return Result(
        target=batch.target,
        provider=pruned.provider,
        precision=options.precision,
        providers=pruned.providers(),
        threads=options.threads,
        batch_size=batch.size,
        dense=Latency.of(taken.measured["dense"], settled=settled) if "dense" in taken.measured else None,
        pruned=Latency.of(taken.measured["pruned"], settled=settled),
        dense_macs=batch.dense_macs,
        pruned_macs=batch.pruned_macs,
        theoretical_speedup=rounded(speed.theoretical),
        realistic_speedup=rounded(speed.realistic),
        paired_speedup=rounded(speed.realistic),
        paired_interval=speed.interval,
        efficiency=rounded(over(speed.realistic, speed.theoretical)),
        warnings=(*taken.warnings(options), *batch.unsupported(), *notes, *speed.warnings()),
        layers=rows,
        dense_other_ms=rounded(times.others.get("dense")),
        pruned_other_ms=rounded(times.others.get("pruned")),
        peak_memory_mb=rounded(peak_memory_mb()),
        energy_mj=rounded(energies.get("pruned")),
        dense_energy_mj=rounded(energies.get("dense")),
        copy_in_ms=rounded(copy_in),
        copy_out_ms=rounded(copy_out),
        drift=taken.drift,
    )


def noise_warnings(measured: Mapping[str, Measurement], load: float | None, options: ProfileOptions) -> list[str]:
    """Sentences on what makes these times doubtful."""
    warnings = []
    cores = len(options.pin) or usable_cores()
    if load is not None and load > cores:
        warnings.append(f"the machine was busy before measuring: load average {load:.1f} on {cores} cores")
    warnings += crowding(options.threads, cores)
    for name, taken in measured.items():
        if taken.is_noisy:
            warnings.append(
                f"{name}: the middle half of the runs spreads over {taken.noise:.0%} of the median "
                f"(steady is below {NOISY:.0%}); close other programs, or pin the threads to cores"
            )
    if not is_settled(measured, options):
        warnings.append(_unsettled_words(measured, options))
    return warnings


def is_settled(measured: Mapping[str, Measurement], options: ProfileOptions) -> bool:
    """Whether the interval is as narrow as was asked."""
    return not options.interval or interval_width(_seconds(measured)) <= options.interval


@contextmanager
def memory_checked(target: str, batch: int = 0) -> Iterator[None]:
    """Whatever a runtime says when it runs out of memory in this block, as an InputError. Batch 0: of no size that the
    user chose."""
    try:
        yield
    except Exception as error:  # runtimes share no base class for it
        if not isinstance(error, MemoryError) and not any(words in str(error).lower() for words in _OUT_OF_MEMORY):
            raise
        raise InputError(
            f"not enough memory: {first_line(error)}",
            where=f"target {target}{f', batch {batch}' if batch else ''}",
            remedy="pass a smaller --batch-size" if batch > 1 else "free memory of the device, or choose another one",
        ) from error


@dataclass(frozen=True)
class _Taken:
    """The measured runs, and how the machine was."""

    measured: Mapping[str, Measurement]
    load: float | None
    was_steady: bool
    """Whether warm-up ended because times were steady."""
    before: MachineState
    after: MachineState

    @staticmethod
    def of(runs: Mapping[str, Run], options: ProfileOptions) -> _Taken:
        load, cores = load_average(), options.pin or usable_core_numbers()
        steady = warm_up(runs, least=options.warmup, time_limit_s=options.time_limit_s / 2)
        before = machine_state(cores)  # behind the warm-up: an idle processor's clock is low
        measured = interleave(
            runs,
            warmup=0,
            iterations=options.iterations,
            time_limit_s=options.time_limit_s,
            until=settles_within(options.interval) if options.interval else None,
        )
        return _Taken(measured, load, steady, before, machine_state(cores))

    @property
    def drift(self) -> Drift | None:
        """None where the machine tells nothing."""
        before, after = self.before, self.after
        known = (before.clock_mhz, before.temperature_c, before.throttled)
        if known == (None, None, None):
            return None
        throttled = after.throttled - before.throttled if before.throttled is not None and after.throttled else None
        return Drift(
            _pair(before.clock_mhz, after.clock_mhz), _pair(before.temperature_c, after.temperature_c), throttled
        )

    def warnings(self, options: ProfileOptions) -> list[str]:
        sentences = noise_warnings(self.measured, self.load, options)
        if not self.was_steady:
            sentences.append("times still changed at the end of the warm-up: raise --warmup")
        drift = self.drift
        if drift and drift.clock_mhz and drift.clock_mhz[1] < drift.clock_mhz[0] * (1 - DRIFT):
            first, last = drift.clock_mhz
            sentences.append(f"the clock fell from {first:.0f} to {last:.0f} MHz while measuring")
        if drift and drift.throttled:
            sentences.append(f"the processor was slowed down {drift.throttled} times because of heat while measuring")
        return sentences


@dataclass(frozen=True)
class _Speed:
    """Speed-ups of a whole network; None without a baseline."""

    theoretical: float | None
    realistic: float | None = None
    """Median of the ratios of every round's two runs: what the machine does in a round meets both."""
    of_medians: float | None = None
    """Ratio of the two medians: the same on a steady machine."""
    interval: tuple[float, float] | None = None

    @staticmethod
    def of(measured: Mapping[str, Measurement], batch: Batch) -> _Speed:
        theoretical = over(batch.dense_macs, batch.pruned_macs)
        if "dense" not in measured:
            return _Speed(theoretical)
        dense, pruned = measured["dense"], measured["pruned"]
        ratios = paired_ratios(dense, pruned)
        low, high = median_interval(ratios)
        return _Speed(theoretical, median(ratios), over(dense.p50_ms, pruned.p50_ms), (round(low, 6), round(high, 6)))

    def warnings(self) -> list[str]:
        sentences = []
        if self.realistic and self.of_medians and abs(self.of_medians / self.realistic - 1) > DRIFT:
            sentences.append(
                f"the machine was not steady: {self.of_medians:.2f}x from the medians, "
                f"{self.realistic:.2f}x from runs side by side"
            )
        if self.interval and self.interval[1] < 1:
            sentences.append("the pruned model is slower than the dense one")
        elif self.interval and self.interval[0] <= 1:
            sentences.append("dense and pruned cannot be told apart: the speed-up's interval holds 1")
        return sentences


def _energies(runs: Mapping[str, Run], target: str) -> dict[str, float]:
    """Millijoules of a run of each model, where this machine has a meter for what the target runs on."""
    meter = energy_meter()
    if meter is None or (is_gpu(target) and not meter.whole_board):
        return {}
    progress.note(f"counting the energy of every model: {meter.source}")
    counted = {which: energy_per_run_mj(run, meter) for which, run in runs.items()}
    return {which: millijoules for which, millijoules in counted.items() if millijoules is not None}


def _copy_times(runner: ProfiledRunner, feeds: Feeds) -> tuple[float | None, float | None]:
    """Milliseconds to copy inputs to the device, and outputs back, where the runner has a device of its own."""
    copy_times: Callable[[Feeds, int], tuple[float, float]] | None = getattr(runner, "copy_times", None)
    return copy_times(feeds, COPIES) if copy_times else (None, None)


def _unsettled_words(measured: Mapping[str, Measurement], options: ProfileOptions) -> str:
    seconds, count = _seconds(measured), measured["pruned"].n
    limit = f"{options.time_limit_s:g} s" if count < options.iterations else f"{options.iterations} runs"
    if "dense" in measured:
        low, high = median_interval(paired_ratios(measured["dense"], measured["pruned"]))
        what, text = "speed-up", f"{low:.2f}x to {high:.2f}x"
    else:
        low, high = median_interval(measured["pruned"].seconds)
        what, text = "latency", f"{low * 1e3:.3g} to {high * 1e3:.3g} ms"
    return (
        f"not settled within {limit}: after {count} runs of each the 95% interval of the {what} is {text}, "
        f"{interval_width(seconds):.0%} of it ({options.interval:.0%} was asked)"
    )


def _seconds(measured: Mapping[str, Measurement]) -> dict[str, tuple[float, ...]]:
    return {name: taken.seconds for name, taken in measured.items()}


def _pair(before: float | None, after: float | None) -> tuple[float, float] | None:
    return None if before is None or after is None else (before, after)
