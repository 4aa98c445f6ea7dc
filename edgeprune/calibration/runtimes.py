"""What other runtimes and number formats than ONNX Runtime's FP32 want and cost on this machine.

The same small models as in `machine`, as whole models: most runtimes tell no times of nodes. Only what is needed to
choose groups and forms is measured: the channel block, the rates of convolutions in groups, and a Gather.
"""

from __future__ import annotations

from edgeprune.calibration.bench import GROUPS, Bench, Reading, rounded
from edgeprune.calibration.probes import WIDTH, ConvProbe
from edgeprune.calibration.stopwatch import RuntimeStopwatch, Stopwatch
from edgeprune.devices.figures import ConvolutionCosts, Figure, RuntimeCosts
from edgeprune.errors import InputError
from edgeprune.precision.formats import Precision
from edgeprune.profiling.environment import current_environment
from edgeprune.profiling.tuned_for import runtime_here

FILTERS = (4, 8, 16, 32, 64, 128)
"""A group, of convolutions with so many filters as the last together."""
INPUTS = 64
"""Channels a group of these."""


def runtime_costs(
    target: str, precision: Precision = "fp32", pin: tuple[int, ...] = (), stopwatch: Stopwatch | None = None
) -> RuntimeCosts:
    """Of a target on this machine, one thread. InputError if it cannot be used here, or not in this precision."""
    date = current_environment(1).date[:10]
    format = "" if precision == "fp32" else f" in {precision.upper()}"
    bench = Bench(stopwatch or RuntimeStopwatch(target, precision, pin), f"{runtime_here(target)}{format}, {date}")
    dispatch, block = bench.dispatch(), bench.block()
    size = block.fp32
    probes = {
        filters: ConvProbe(FILTERS[-1] // filters, INPUTS, filters, WIDTH) for filters in FILTERS if filters >= size
    }
    off = {0: ConvProbe(2 * GROUPS, size // 2, size // 2, WIDTH)} if size > 1 else {}
    speeds = bench.speeds(probes | off, f"convolutions in {target}{format}")
    peak = max(speeds[filters].value for filters in probes)
    moved = _moved_element(bench)
    costs = ConvolutionCosts(
        rates={filters: rounded(speeds[filters].value / peak) for filters in probes},
        off_block_rate=min(rounded(speeds[0].value / peak), 1.0) if off else 1.0,
        gather_macs_per_element=rounded(moved.value * peak) if moved else None,
        macs_per_node=rounded(dispatch.value * peak),
        certainty="measured",
        source=bench.source("convolutions and a Gather of 2 MiB, one thread", max(s.noise for s in speeds.values())),
    )
    return RuntimeCosts(Figure(size, block.certainty, block.source), costs)


def _moved_element(bench: Bench) -> Reading | None:
    try:
        return bench.moved_element()
    except InputError:  # the runtime has no Gather
        return None
