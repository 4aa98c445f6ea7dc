"""`edgeprune eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from edgeprune.cli.flags.common import Common
from edgeprune.cli.flags.kinds import DATA, Integer, parse_open_size
from edgeprune.cli.flags.network import NetworkFlags
from edgeprune.cli.tables import facts

if TYPE_CHECKING:
    from edgeprune.training.evaluation import EvalResult, MetricResult


def evaluate(
    model: Path,
    /,
    *,
    data: Annotated[str, Parameter(group=DATA)],
    batch_size: Annotated[Integer, Parameter(group=DATA)] = 100,
    limit: Annotated[int | None, Parameter(group=DATA)] = None,
    network: NetworkFlags = NetworkFlags(),
    common: Common = Common(),
) -> None:
    """Top-1 accuracy of a checkpoint, a bundle or an ONNX file on a test set, or the metric that the data brings.

    **Examples**

    - `edgeprune eval model.pt --arch resnet20 --data imagefolder:cifar/`
    - `edgeprune eval out/ --data digits`
    - `edgeprune eval out/ --data mine.py:street_scenes`

    Parameters
    ----------
    model
        A checkpoint, or an ONNX file (runs in ONNX Runtime), or a bundle (there if it holds an ONNX file).
    data
        digits, imagefolder:DIR, cifar10:DIR, or path/to/file.py:factory: factory("test") gives images (N,C,H,W), uint8
        or normalised floats, and labels (N,); or a dictionary of images, targets and a metric.
    batch_size
        Images at a time.
    limit
        At most so many images: the classes taken in turn, with a metric the first.
    """
    from edgeprune.pipeline import eval as steps

    source = network.source(model, 0) if network.arch or model.is_dir() else None
    result = steps.evaluate(model, data, source, batch_size, limit, input_size=parse_open_size(network.input_size))
    show(result)
    common.write(result)


def show(result: EvalResult | MetricResult) -> None:
    """Numbers by name."""
    from edgeprune.training.evaluation import MetricResult

    loss = [] if result.loss is None else [("loss", f"{result.loss:.4f}")]
    if isinstance(result, MetricResult):
        shown = [(name, f"{value:.4g}") for name, value in result.metrics.items()]
        facts("metric", [*shown, ("images", str(result.n)), *loss])
        return
    facts("accuracy", [("top-1", f"{result.top1:.2f}%"), ("images", str(result.n)), ("loss", f"{result.loss:.4f}")])
