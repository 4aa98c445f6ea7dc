"""`edgeprune run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from edgeprune.cli.flags.common import Common
from edgeprune.cli.flags.kinds import COMMON, Integer
from edgeprune.cli.tables import facts

if TYPE_CHECKING:
    from edgeprune.pipeline.run import RunResult


def run(
    bundle: Path,
    /,
    *,
    input: Annotated[Path, Parameter(group=COMMON)],
    output: Annotated[Path, Parameter(group=COMMON)],
    executor: Annotated[Literal["local"], Parameter(group=COMMON)] = "local",
    threads: Annotated[Integer, Parameter(group=COMMON)] = 1,
    common: Common = Common(),
) -> None:
    """Run a bundle, split or not, on one batch of inputs.

    **Examples**

    - `edgeprune run split/ --input x.npy --output y.npy`

    Parameters
    ----------
    bundle
        A bundle with an ONNX model; if it is split, every device's part runs in a session and thread of its own.
    input
        .npy with the inputs (N,C,H,W), float32.
    output
        .npy for the outputs; .npz if the model has several.
    executor
        Where the parts of a split bundle run: here, side by side.
    threads
        Threads of each session.
    """
    from edgeprune.pipeline import run as steps

    result = steps.run(bundle, input, output, threads)
    show(result)
    common.write(result)


def show(result: RunResult) -> None:
    pairs = [(f"output {name}", " x ".join(map(str, shape))) for name, shape in result.outputs.items()]
    pairs.append(("first run", f"{result.milliseconds:.3f} ms"))
    pairs += [(f"computing on {device}", f"{ms:.3f} ms") for device, ms in result.devices.items()]
    if result.devices:
        pairs.append(("moved between devices", f"{result.transferred_bytes:,} bytes"))
    facts("run", pairs)
