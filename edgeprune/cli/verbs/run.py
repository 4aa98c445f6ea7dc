"""`edgeprune run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from edgeprune.cli.flags.common import Common
from edgeprune.cli.flags.kinds import COMMON, Integer, OptionalText, parse_open_size
from edgeprune.cli.tables import facts

if TYPE_CHECKING:
    from edgeprune.pipeline.run import RunResult


def run(
    model: Path,
    /,
    *,
    input: Annotated[tuple[str, ...], Parameter(group=COMMON, negative_iterable="")],
    output: Annotated[Path, Parameter(group=COMMON)],
    executor: Annotated[Literal["local"], Parameter(group=COMMON)] = "local",
    threads: Annotated[Integer, Parameter(group=COMMON)] = 1,
    input_size: Annotated[OptionalText, Parameter(group=COMMON)] = "",
    common: Common = Common(),
) -> None:
    """Run a bundle, split or not, or an ONNX file on one batch of inputs.

    **Examples**

    - `edgeprune run split/ --input x.npy --output y.npy`
    - `edgeprune run detector.onnx --input image=x.npy --input scale=s.npy --output y.npz`

    Parameters
    ----------
    model
        A bundle with an ONNX model, or an ONNX file; if the bundle is split, every device's part runs in a session and
        thread of its own.
    input
        .npy with the input, as the model takes it, such as (N,C,H,W), float32; for several inputs NAME=FILE for each
        (repeatable), or one .npz file with arrays of their names.
    output
        .npy for the outputs; .npz if the model has several.
    executor
        Where the parts of a split bundle run: here, side by side.
    threads
        Threads of each session.
    input_size
        Sizes of the input's last axes, such as H,W, where the model leaves them open: it is then optimised for them.
    """
    from edgeprune.pipeline import run as steps

    result = steps.run(model, input, output, threads, input_size=parse_open_size(input_size))
    show(result)
    common.write(result)


def show(result: RunResult) -> None:
    pairs = [(f"output {name}", " x ".join(map(str, shape))) for name, shape in result.outputs.items()]
    pairs.append(("first run", f"{result.milliseconds:.3f} ms"))
    pairs += [(f"computing on {device}", f"{ms:.3f} ms") for device, ms in result.devices.items()]
    if result.devices:
        pairs.append(("moved between devices", f"{result.transferred_bytes:,} bytes"))
    facts("run", pairs)
