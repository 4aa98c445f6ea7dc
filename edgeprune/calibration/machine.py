"""Measure this machine, and write down what was found as a device profile that prediction and estimates can use.

Small models run in ONNX Runtime: convolutions by kernel, filters a group and width of the output; operations that only
move data, in cache and out of it; a Gather and the reordering of data around it; nodes that do nothing. The channel
block is found by a sweep over channels a group. The runtime tells the times of nodes.
"""

from __future__ import annotations

import onnxruntime

from edgeprune.calibration.bench import Bench, Reading, rounded
from edgeprune.calibration.probes import MATRICES, WIDTH
from edgeprune.calibration.stopwatch import OrtStopwatch, Stopwatch
from edgeprune.devices.device_profile import DeviceProfile, load_profile
from edgeprune.devices.figures import ConvolutionCosts, ExecutionCosts
from edgeprune.devices.prices import macs_per_moved_element
from edgeprune.devices.this_machine import default_profile_name
from edgeprune.profiling.environment import current_environment, usable_cores


def calibrate(name: str, stopwatch: Stopwatch | None = None, *, cores: int | None = None) -> DeviceProfile:
    """A profile of this machine, called `name`; everything in it but the network's link is measured.

    `cores`: as many as this process may use, by default.
    """
    count = cores or usable_cores()
    environment = current_environment(count)
    bench = Bench(stopwatch or OrtStopwatch(), f"ONNX Runtime {onnxruntime.__version__}, {environment.date[:10]}")
    dispatch = bench.dispatch()
    block = bench.block()
    peak, rates = bench.rates(block.fp32)
    one = bench.threads(block.fp32, 1)
    all_ = one if count == 1 else bench.threads(block.fp32, count)
    execution = ExecutionCosts(
        dispatch_us=bench.figure(dispatch, 1e6, "models with more and fewer nodes that do nothing"),
        bandwidths=bench.bandwidths(block.fp32),
        rates=rates,
    )
    gain = all_.macs_per_s.value / one.macs_per_s.value
    core = bench.figure(Reading(peak), 2e-9, "the fastest convolution, one thread")
    told = f"that of a core times {gain:.2f}, what a dense convolution gains by {count} threads"
    read = f"reading {4 * MATRICES} MiB of weights"
    return DeviceProfile(
        name=name,
        description=f"{environment.cpu}, {count} core{'s' if count > 1 else ''}, calibrated {environment.date[:10]}",
        kind="cpu",
        cores=count,
        channel_block=block,
        peak_gflops_fp32=core if count == 1 else bench.figure(Reading(peak * gain), 2e-9, told),
        memory_gb_per_s=bench.figure(all_.bytes_per_s, 1e-9, f"{read}, {count} thread{'s' if count > 1 else ''}"),
        link=load_profile(default_profile_name()).link,
        core_gflops_fp32=core if count > 1 else None,
        core_gb_per_s=bench.figure(one.bytes_per_s, 1e-9, f"{read}, one thread") if count > 1 else None,
        convolution=_lowering_costs(execution, peak, block.fp32, bench),
        execution=execution,
    )


def _lowering_costs(execution: ExecutionCosts, peak: float, block: int, bench: Bench) -> ConvolutionCosts:
    """The cost table that predicts the forms of grouped layers, out of the same figures."""
    spatial = execution.rates["spatial"].by_filters
    off_block = execution.rates.get("off_block")
    gather, reorder = (execution.bandwidths.get(what) for what in ("gather", "reorder"))
    moves = [table.by_mib[2] * 1e9 for table in (gather, reorder, reorder) if table]  # into the other layout and back
    return ConvolutionCosts(
        rates=spatial,
        off_block_rate=rounded(
            off_block.share(block // 2, WIDTH, 9 * block // 2) if off_block else min(spatial.values())
        ),
        gather_macs_per_element=rounded(macs_per_moved_element(moves, peak)),
        macs_per_node=rounded(execution.dispatch_us.value * 1e-6 * peak),
        certainty="measured",
        source=bench.source("from the figures of [execution]"),
    )
