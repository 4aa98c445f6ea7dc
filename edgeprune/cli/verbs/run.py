"""`edgeprune run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from edgeprune.cli.flags.common import Common
from edgeprune.cli.flags.kinds import COMMON, Integer, OptionalPath, OptionalText, Switch, flags, parse_open_size
from edgeprune.cli.tables import facts

if TYPE_CHECKING:
    from edgeprune.pipeline.run import RunResult


@Parameter(name="*", group=COMMON)
@flags
class ExecutionFlags:
    """Where and how often."""

    executor: Annotated[Literal["local", "process", "cluster"] | None, Parameter(show_default=False)] = None
    """Where the parts of a split bundle run: `process`, in a worker process each on this machine (the default, where
    edgeprune[cluster] is installed); `cluster`, on the workers of --devices; `local`, in threads of this process."""
    devices: OptionalPath = None
    """TOML file with the `address` of each device's worker."""
    repeat: Integer = 1
    """How many times to run it."""
    timeout: float = 10.0
    """Seconds after which an inference counts as failed; not for `local`."""
    for_: Annotated[Literal["latency", "throughput"], Parameter(name="--for")] = "latency"
    """`throughput`: several inferences at a time, on every device the whole model, each on other inferences; or the
    parts of a bundle that was split for throughput, where that is predicted to be faster or all that fits."""
    threads: Integer = 1
    """Threads of each session."""
    discover: Switch = False
    """Look for the workers that have no `address` in --devices, and were started with --discover, too: asks in all
    networks of this machine, by UDP multicast to 224.0.0.224, port 7448, and connects to whoever answers."""


def run(
    model: Path,
    /,
    *,
    input: Annotated[tuple[str, ...], Parameter(group=COMMON, negative_iterable="")],
    output: Annotated[Path, Parameter(group=COMMON)],
    input_size: Annotated[OptionalText, Parameter(group=COMMON)] = "",
    execution: ExecutionFlags = ExecutionFlags(),
    common: Common = Common(),
) -> None:
    """Run a bundle, split or not, or an ONNX file on one batch of inputs.

    **Examples**

    - `edgeprune run split/ --input x.npy --output y.npy`
    - `edgeprune run split/ --input x.npy --output y.npy --executor cluster --devices shelf.toml --repeat 100`
    - `edgeprune run detector.onnx --input image=x.npy --input scale=s.npy --output y.npz`

    Parameters
    ----------
    model
        A bundle with an ONNX model, or an ONNX file.
    input
        .npy with the input, as the model takes it, such as (N,C,H,W), float32; for several inputs NAME=FILE for each
        (repeatable), or one .npz file with arrays of their names.
    output
        .npy for the outputs; .npz if the model has several.
    input_size
        Sizes of the input's last axes, such as H,W, where the model leaves them open: it is then optimised for them.
    """
    from edgeprune.cluster.starting import Execution
    from edgeprune.pipeline import run as steps

    chosen = Execution(
        execution.executor,
        execution.devices,
        execution.repeat,
        execution.timeout,
        execution.for_,
        execution.threads,
        execution.discover,
    )
    result = steps.run(model, input, output, chosen, input_size=parse_open_size(input_size))
    show(result)
    common.write(result)


def show(result: RunResult) -> None:
    pairs = [(f"output {name}", " x ".join(map(str, shape))) for name, shape in result.outputs.items()]
    pairs.append(("first run", f"{result.milliseconds:.3f} ms"))
    if result.latency is not None and result.latency.n > 1:
        spread = result.latency
        pairs += [
            ("p50 / p90 / p99", f"{spread.p50_ms:.3f} / {spread.p90_ms:.3f} / {spread.p99_ms:.3f} ms"),
            ("inferences a second", f"{spread.n / result.seconds:.1f}"),
        ]
    pairs += [(f"computing on {device}", f"{ms:.3f} ms") for device, ms in result.devices.items()]
    if result.devices:
        pairs.append(("moved between devices", f"{result.transferred_bytes:,} bytes an inference"))
    if result.executor != "local":
        answered = result.latency.n if result.latency is not None else 0
        pairs.append(("answered / failed / tried again", f"{answered} / {result.failures} / {result.repeated}"))
    facts(f"run ({result.executor})", pairs)
